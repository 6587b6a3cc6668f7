"""Folded weights give the same outputs without standardizing."""

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params

import nfnets
from nfnets import base
from nfnets.weights import folding


def random_params(model: nfnets.Model) -> dict:
  """Returns parameters in which no gain is 1 and no bias 0."""
  shapes, _ = jax.eval_shape(lambda rng: model.init(rng, 32), jax.random.key(0))
  return reference_params.reference_params(shapes)


@pytest.mark.parametrize('name', ['nfnet_digits', 'timm/test_nfnet'])
def test_outputs_are_the_same(name):
  model = nfnets.create_model(name, 10)
  params = random_params(model)
  folded = folding.fold_weights(params)
  images = reference_params.reference_images(2, 32, 32, 0)
  for output in (model.logits, model.embed):
    expected = output(params, images)
    actual = output(folded, images)
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow
def test_logits_of_f0_are_those_of_the_golden_file():
  golden = golden_lib.load('nfnet_f0')
  model = nfnets.create_model('nfnet_f0')
  folded = folding.fold_weights(random_params(model), model)
  logits = model.logits(folded, reference_params.reference_images(2, 64, 64, 0))
  difference = np.linalg.norm(logits - golden['logits'])
  assert difference < 1e-5 * np.linalg.norm(golden['logits'])


def test_kernels_are_standardized_and_the_rest_is_kept():
  model = nfnets.create_model('nfnet_digits', 10)
  params = random_params(model)
  folded = folding.fold_weights(params)
  assert folded.keys() == params.keys()
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
  model = nfnets.create_model('nfnet_digits', 10)
  params = random_params(model)
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
  model = nfnets.create_model('nfnet_digits', 10)
  folded = folding.fold_weights(random_params(model))
  assert folding.fold_weights(folded) == folded
  shapes, _ = jax.eval_shape(
    nfnets.create_model('resnet50').init, jax.random.key(0)
  )
  assert folding.fold_weights(shapes) == shapes


def test_a_network_that_is_not_listed_needs_its_model():
  model = nfnets.create_model('nfnet_digits', 10, use_two_convs=False)
  params = random_params(model)
  with pytest.raises(ValueError, match='nfnet_digits is closest: missing'):
    folding.fold_weights(params)
  images = reference_params.reference_images(2, 32, 32, 0)
  np.testing.assert_allclose(
    model.logits(folding.fold_weights(params, model), images),
    model.logits(params, images),
    rtol=1e-4,
    atol=1e-5,
  )


def test_a_kernel_whose_gain_is_lost_is_not_taken_for_a_folded_one():
  conv = hk.without_apply_rng(hk.transform(lambda x: base.WSConv2D(4, 3)(x)))
  x = jnp.ones((1, 5, 5, 2))
  params = conv.init(jax.random.key(0), x)
  del params['ws_conv2_d']['gain']
  with pytest.raises(ValueError, match='gain'):
    conv.apply(params, x)


def test_frozen_model_is_a_function_of_images_alone():
  model = nfnets.create_model('nfnet_digits', 10)
  params = random_params(model)
  images = reference_params.reference_images(2, 32, 32, 0)
  np.testing.assert_allclose(
    folding.freeze(model, params)(images),
    model.logits(params, images),
    rtol=1e-4,
    atol=1e-5,
  )
  with pytest.raises(ValueError, match="'logit'; it has logits, pool"):
    folding.freeze(model, params, output='logit')
