"""New parameters have the distributions that the modules ask for."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import nfnets
from nfnets import initialization


def draw(init, shape):
  spec = initialization.Spec(shape, jnp.float32, init)
  params = initialization.draw({'m': {'w': spec}}, jax.random.key(3))
  return np.asarray(params['m']['w'], np.float64)


@pytest.mark.parametrize(
  'init, distribution',
  [
    (hk.initializers.RandomNormal(0.5, 2.0), stats.norm(2, 0.5)),
    (
      hk.initializers.TruncatedNormal(0.1),
      stats.truncnorm(-2, 2, scale=0.1),
    ),
    (
      hk.initializers.TruncatedNormal(lower=-1.0, upper=3.0),
      stats.truncnorm(-1, 3),
    ),
    (
      hk.initializers.VarianceScaling(2.0, 'fan_in', 'normal'),
      stats.norm(0, np.sqrt(2 / (3 * 5 * 64))),
    ),
    (
      hk.initializers.VarianceScaling(1.0, 'fan_out', 'truncated_normal'),
      # That has a variance of 1 / fan_out where it is cut at two deviations.
      stats.truncnorm(
        -2, 2, scale=(3 * 5 * 32) ** -0.5 / stats.truncnorm(-2, 2).std()
      ),
    ),
    (
      hk.initializers.VarianceScaling(1.0, 'fan_avg', 'uniform'),
      stats.uniform(-np.sqrt(6 / 1440), 2 * np.sqrt(6 / 1440)),
    ),
    (hk.initializers.RandomUniform(1.0, 4.0), stats.uniform(1, 3)),
  ],
)
def test_each_initializer_is_drawn_from_its_distribution(init, distribution):
  values = draw(init, (3, 5, 64, 32)).ravel()
  assert stats.kstest(values, distribution.cdf).pvalue > 1e-3
  # Moments, within five standard errors for the mean.
  assert abs(values.mean() - distribution.mean()) < (
    5 * distribution.std() / np.sqrt(values.size)
  )
  assert values.std() == pytest.approx(distribution.std(), rel=0.02)
  # Neighbours are independent.
  assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['nfnet_digits', 'resnet50', 'fixup_resnet50', 'timm/eca_nfnet_l0']
)
def test_kernels_have_the_deviations_of_haikus_own_and_constants_its_values(
  name,
):
  model = nfnets.create_model(name, num_classes=10)
  params, state = model.init(jax.random.key(0))
  images = jnp.zeros((1, 32, 32, 3))
  own, own_state = jax.jit(
    lambda: model.transformed.init(jax.random.key(0), images, is_training=True)
  )()
  assert jax.tree.structure(params) == jax.tree.structure(own)
  jax.tree.map(np.testing.assert_array_equal, state, own_state)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(own), strict=True):
    assert (x.shape, x.dtype) == (y.shape, jnp.float32)
    if y.std() == 0:
      np.testing.assert_array_equal(x, y)
    elif y.size > 1000:
      np.testing.assert_allclose(x.std(), y.std(), rtol=0.1)


def test_parameters_follow_from_the_key_alone():
  model = nfnets.create_model('nfnet_digits', num_classes=10)
  first, again, other = (model.init(jax.random.key(i))[0] for i in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  kernels = [x['NFNet/~/stem_conv1']['w'] for x in (first, other)]
  assert abs(np.corrcoef(*(np.ravel(x) for x in kernels))[0, 1]) < 0.1
  traced, _ = jax.jit(model.init)(jax.random.key(0))
  for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(traced), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_no_two_kernels_share_their_numbers():
  params, _ = nfnets.create_model('nf_regnet_b0').init(jax.random.key(0))
  kernels = [x['w'] for x in params.values() if 'w' in x and x['w'].ndim == 4]
  firsts = [np.ravel(w)[:24] / np.std(w) for w in kernels]
  correlations = np.corrcoef(firsts) - np.eye(len(firsts))
  assert np.abs(correlations).max() < 0.95
