"""What all networks compute, each tried on a small one of its family."""

import functools
import re

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params
import tiny_networks
from tiny_networks import NETWORKS

# Those with stochastic depth.
STOCHASTIC = [name for name in NETWORKS if not name.startswith('ResNet')]
RATES = {'drop_rate': 0.5, 'stochdepth_rate': 0.9}
NO_RATES = {'drop_rate': 0.0, 'stochdepth_rate': 0.0}


@pytest.fixture(autouse=True, scope='module')
def tiny():
  """Two blocks, to compile soon: one with and one without a stride."""
  with tiny_networks.variants([0, 2, 0, 0]):
    yield


def make(name, **kwargs):
  model, arguments = NETWORKS[name]
  return golden_lib.transform(model, 10, **arguments, **kwargs)


@functools.cache
def evaluated(name):
  """Returns a network's parameters and its outputs for `images()`."""
  transformed = make(name)
  params = golden_lib.reference_tree(transformed)
  apply = golden_lib.jit(lambda p, x: transformed.apply(p, None, x))
  return params, apply(params, images())


def images(h=32, w=32):
  return reference_params.reference_images(4, h, w)


def in_bfloat16(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)


@pytest.mark.parametrize('name', NETWORKS)
def test_bfloat16_stays_bfloat16(name):
  transformed = make(name)
  params = golden_lib.reference_tree(transformed)
  out = jax.eval_shape(
    lambda p, x: transformed.apply(p, None, x, metrics=True),
    *in_bfloat16((params, images())),
  )
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(out)}
  assert dtypes == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('name', ['NFNet', 'NF_RegNet', 'ResNet'])
@pytest.mark.slow
def test_bfloat16_is_close_to_float32(name):
  params, exact = evaluated(name)
  transformed = make(name)
  apply = golden_lib.jit(lambda p, x: transformed.apply(p, None, x))
  rough = apply(*in_bfloat16((params, images())))
  for key in ('logits', 'pool'):
    assert 1e-4 < golden_lib.rel_l2(rough[key], exact[key]) < 0.05


@pytest.mark.parametrize('name', STOCHASTIC)
def test_dropout_and_stochastic_depth_act_in_training(name):
  params, expected = evaluated(name)
  transformed = make(name, **RATES)
  train = golden_lib.jit(lambda p, rng, x: transformed.apply(p, rng, x, True))
  first, second = (train(params, jax.random.key(i), images()) for i in range(2))
  for key in ('logits', 'pool'):
    assert golden_lib.rel_l2(first[key], expected[key]) > 1e-3
    assert golden_lib.rel_l2(first[key], second[key]) > 1e-3


def program(transformed, is_training):
  """Returns the text of what a network computes without a key."""
  params = golden_lib.init_shapes(transformed)
  jaxpr = jax.make_jaxpr(
    lambda p, x: transformed.apply(p, None, x, is_training)
  )(params, images())
  return re.sub('0x[0-9a-f]+', '', str(jaxpr))  # Addresses of functions.


@pytest.mark.parametrize('name', STOCHASTIC)
def test_evaluation_is_training_without_rates(name):
  evaluation = program(make(name, **RATES), False)
  assert evaluation == program(make(name, **NO_RATES), True)


def test_dropout_acts_on_the_pooled_features():
  # The last layer is the identity.
  params, expected = evaluated('NFNet')
  features = expected['pool'].shape[1]
  fc = {'w': np.eye(features), 'b': np.zeros(features)}
  params = {**params, 'NFNet/~/linear': jax.tree.map(np.float32, fc)}
  transformed = golden_lib.transform(
    'NFNet/tiny', features, drop_rate=0.25, stochdepth_rate=0
  )
  out = golden_lib.jit(lambda p, rng, x: transformed.apply(p, rng, x, True))(
    params, jax.random.key(0), images()
  )
  assert golden_lib.rel_l2(out['pool'], expected['pool']) < 1e-5
  kept = np.asarray(out['logits']) != 0
  np.testing.assert_allclose(
    out['logits'], np.where(kept, expected['pool'] / 0.75, 0), rtol=1e-4
  )
  # Four standard deviations.
  spread = (0.75 * 0.25 / kept.size) ** 0.5
  assert kept.mean() == pytest.approx(0.75, abs=4 * spread)


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_are_the_last_layer_of_the_pooled_features(name):
  params, out = evaluated(name)
  (fc,) = (
    leaves
    for module, leaves in params.items()
    if module.endswith('/~/linear') and module.count('/') == 2
  )
  x = np.float64(out['pool'])
  if name == 'FixUp_ResNet':
    x += params['FixUp_ResNet']['bias2']
  np.testing.assert_allclose(
    out['logits'], x @ fc['w'] + fc['b'], rtol=1e-4, atol=1e-5
  )


# What is done to a channel of the last map before the mean is taken.
_C = np.sqrt(2 / np.pi)
ACTIVATIONS = {
  'NFNet': lambda x: (
    1.7015043497085571 * 0.5 * x * (1 + np.tanh(_C * (x + 0.044715 * x**3)))
  ),
  'NF_RegNet': lambda x: 1.7881293296813965 * x / (1 + np.exp(-x)),
  'NF_ResNet': lambda x: 1.7139588594436646 * np.maximum(x, 0),
  'SkipInit_ResNet': lambda x: np.maximum(x, 0),
  'FixUp_ResNet': lambda x: x,  # Activated already.
  'ResNet_v1': lambda x: x,
  'NormFreeNet': lambda x: x / (1 + np.exp(-x)),  # Gamma is in the kernels.
}


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_pool_is_the_mean_of_the_last_feature_map(name):
  _, out = evaluated(name)
  pool = ACTIVATIONS[name](np.float64(out['features'][-1])).mean((1, 2))
  np.testing.assert_allclose(out['pool'], pool, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['NFNet', 'NF_RegNet', 'NF_ResNet'])
def test_one_pixel_gives_finite_logits(name):
  params, _ = evaluated(name)
  transformed = make(name)
  apply = golden_lib.jit(lambda p, x: transformed.apply(p, None, x)['logits'])
  logits = apply(params, images(1, 1))
  assert np.isfinite(logits).all() and np.std(logits) > 0
