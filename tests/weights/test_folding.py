"""Folded weights give the same outputs without standardizing."""

import functools

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_lib
import reference_params

import nfnets
from nfnets import base
from nfnets.weights import folding, matching

quickly_compiled = quick_lib.quickly_compiled


@functools.cache
def outputs():
  """Returns images, and logits and embeddings of `quick_lib.digits()`."""
  model, params = quick_lib.digits()
  images = reference_params.reference_images(2, 32, 32, 0)
  out, _ = jax.jit(model.apply, static_argnums=4)(
    params, {}, None, images, False
  )
  return images, out


def test_outputs_are_the_same():
  model, params = quick_lib.digits()
  folded = folding.fold_weights(params)
  images, expected = outputs()
  actual, _ = jax.jit(model.apply, static_argnums=4)(
    folded, {}, None, images, False
  )
  for key in ('logits', 'pool'):
    difference = np.linalg.norm(actual[key] - expected[key])
    assert difference < 1e-5 * np.linalg.norm(expected[key])


@pytest.mark.slow
def test_logits_of_f0_are_those_of_the_golden_file():
  golden = golden_lib.load('nfnet_f0')
  model = nfnets.create_model('nfnet_f0')
  params = reference_params.reference_params(matching.model_shapes(model)[0])
  folded = folding.fold_weights(params, model)
  logits = model.logits(folded, reference_params.reference_images(2, 64, 64, 0))
  difference = np.linalg.norm(logits - golden['logits'])
  assert difference < 1e-5 * np.linalg.norm(golden['logits'])


def test_kernels_are_standardized_and_the_rest_is_kept():
  _, params = quick_lib.digits()
  folded = folding.fold_weights(params)
  assert folded.keys() == params.keys()
  assert 'gain' in params['NFNet/~/stem_conv0']  # What was given is kept.
  for module, leaves in params.items():
    if 'gain' not in leaves:
      assert folded[module] == leaves
      continue
    assert folded[module].keys() == {base.FOLDED, 'bias'}
    w = np.asarray(leaves['w'], np.float64)
    var = w.var(axis=(0, 1, 2))
    w = (w - w.mean(axis=(0, 1, 2))) / np.sqrt(
      np.maximum(var * np.prod(w.shape[:3]), 1e-4)
    )
    np.testing.assert_allclose(
      folded[module][base.FOLDED], w * leaves['gain'], atol=1e-6
    )


def test_program_of_folded_weights_standardizes_nothing():
  model, params = quick_lib.digits()
  images = jnp.zeros((1, 32, 32, 3))

  def square_roots(params):
    jaxpr = jax.make_jaxpr(
      lambda p, x: model.apply(p, {}, None, x, is_training=False)
    )(params, images)
    return str(jaxpr).count('rsqrt')

  num_kernels = sum('gain' in leaves for leaves in params.values())
  assert square_roots(params) == num_kernels
  assert square_roots(folding.fold_weights(params)) == 0


def test_folding_twice_and_networks_without_standardization_change_nothing():
  folded = folding.fold_weights(quick_lib.digits()[1])
  assert folding.fold_weights(folded) == folded
  params, _ = matching.model_shapes(nfnets.create_model('resnet50'))
  assert folding.fold_weights(params) == params


def test_a_network_that_is_not_listed_needs_its_model():
  model = nfnets.create_model('nfnet_digits', 10, use_two_convs=False)
  params = reference_params.reference_params(matching.model_shapes(model)[0])
  with pytest.raises(ValueError, match='nfnet_digits is closest: missing'):
    folding.fold_weights(params)
  folded = folding.fold_weights(params, model)
  assert any('gain' in leaves for leaves in params.values())
  assert not any('gain' in leaves for leaves in folded.values())


def test_a_kernel_whose_gain_is_lost_is_not_taken_for_a_folded_one():
  conv = hk.without_apply_rng(hk.transform(lambda x: base.WSConv2D(4, 3)(x)))
  x = jnp.ones((1, 5, 5, 2))
  params = conv.init(jax.random.key(0), x)
  del params['ws_conv2_d']['gain']
  with pytest.raises(ValueError, match='gain'):
    conv.apply(params, x)


def test_frozen_model_is_a_function_of_images_alone():
  model, params = quick_lib.digits()
  images, expected = outputs()
  np.testing.assert_allclose(
    folding.freeze(model, params)(images),
    expected['logits'],
    rtol=1e-4,
    atol=1e-5,
  )
  with pytest.raises(ValueError, match="'logit'; it has logits, pool"):
    folding.freeze(model, params, output='logit')
