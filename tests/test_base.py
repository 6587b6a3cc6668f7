"""Building blocks, against float64 numpy and their definitions."""

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets import base

# A grid fine enough that the sum is the integral to 1e-9.
GRID = np.linspace(-12, 12, 48_001)
WEIGHTS = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi) * (GRID[1] - GRID[0])


def normal_variance(y):
  """Returns the variance of y(x) for x of N(0, 1), given y on the grid."""
  return np.sum(y**2 * WEIGHTS) - np.sum(y * WEIGHTS) ** 2


ELEMENTWISE = sorted(set(base.nonlinearities) - {'glu', 'log_softmax'})


@pytest.mark.parametrize('name', ELEMENTWISE)
def test_elementwise_activation_preserves_the_variance_of_a_normal(name):
  with jax.enable_x64(True):
    y = np.asarray(base.nonlinearities[name](jnp.asarray(GRID)))
  assert y.dtype == np.float64
  # The published gammas were estimated from samples; tanh's is 0.17 % off.
  assert normal_variance(y) == pytest.approx(1, abs=2e-3)


def test_glu_preserves_the_variance_of_a_normal():
  # a * sigmoid(b) of independent a, b has the variance E[sigmoid(b)^2].
  a, b = np.float32(3.0), np.float32(GRID)
  y = base.nonlinearities['glu'](np.stack([np.full_like(b, a), b], axis=-1))
  gate = np.float64(y[:, 0]) / 3
  assert np.sum(gate**2 * WEIGHTS) == pytest.approx(1, abs=3e-3)


def test_log_softmax_preserves_the_variance_of_normals():
  x = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)
  y = np.float64(base.nonlinearities['log_softmax'](x))
  # The variance of a million samples: its own standard deviation is 0.0014.
  assert y.var(axis=1).mean() == pytest.approx(1, abs=5e-3)


def test_gelu_is_the_tanh_form_and_gelu_erf_the_exact_one():
  x = np.linspace(-4, 4, 101)
  tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  cdf = np.interp(x, GRID, np.cumsum(WEIGHTS) - WEIGHTS / 2)
  for name, expected in (('gelu', tanh), ('gelu_erf', x * cdf)):
    y = base.nonlinearities[name](np.float32(x)) / 1.7015043497085571
    np.testing.assert_allclose(y, expected, atol=2e-6)
  assert np.abs(tanh - x * cdf).max() > 1e-4


# Their published gammas are checked above.
@pytest.mark.parametrize('name', sorted(base.unscaled_nonlinearities))
def test_unscaled_activation_is_the_other_over_its_gamma(name):
  x = np.float32(np.random.default_rng(0).standard_normal((3, 8)))
  unscaled = base.get_nonlinearity(name, scaled=False)(x)
  scaled = base.get_nonlinearity(name)(x)
  gamma = np.sum(scaled * unscaled) / np.sum(unscaled**2)
  np.testing.assert_allclose(scaled, gamma * unscaled, rtol=1e-5, atol=1e-6)
  assert gamma == 1 if name == 'identity' else gamma > 1


def test_relu_without_gamma_is_relu():
  relu = base.get_nonlinearity('relu', scaled=False)
  np.testing.assert_array_equal(relu(np.array([-2.0, 3.0])), [0, 3])
  with pytest.raises(ValueError, match="'gelu_erf'; there are celu.*tanh"):
    base.get_nonlinearity('gelu_erf', scaled=False)


@pytest.mark.parametrize(
  ('args', 'kwargs'),
  [
    ((6, 3), {'stride': 2, 'with_bias': False}),
    ((4, (1, 3)), {'padding': 'VALID', 'b_init': jnp.ones, 'w_init': jnp.ones}),
    ((10, 3), {'feature_group_count': 5}),
  ],
)
def test_convolution_is_haikus(args, kwargs):
  x = np.float32(np.random.default_rng(0).standard_normal((2, 9, 8, 5)))
  results = []
  for conv2d in (base.Conv2D, hk.Conv2D):
    forward = hk.transform(
      lambda x, c=conv2d: c(*args, **kwargs, name='conv')(x)
    )
    params = forward.init(jax.random.key(0), x)
    results.append((params, golden_lib.jit(forward.apply)(params, None, x)))
  (params, out), (haiku_params, expected) = results
  assert jax.tree.structure(params) == jax.tree.structure(haiku_params)
  jax.tree.map(np.testing.assert_array_equal, params, haiku_params)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def ws_conv(params, x, *args, **kwargs):
  forward = hk.transform(lambda x: base.WSConv2D(*args, **kwargs, name='c')(x))
  return golden_lib.jit(forward.apply)({'c': params}, None, x)


def effective_kernel(params, in_ch, *args, groups=1, **kwargs):
  """Returns the kernel [3, 3, in_ch, K] from the responses to impulses."""
  x = np.zeros((in_ch, 5, 5, in_ch), np.float32)
  x[np.arange(in_ch), 2, 2, np.arange(in_ch)] = 1
  y = ws_conv(params, x, *args, feature_group_count=groups, **kwargs)
  response = np.asarray(y)[:, 1:4, 1:4] - params['bias']
  return response[:, ::-1, ::-1].transpose(1, 2, 0, 3)


def random_conv_params(shape, seed=0):
  rng = np.random.default_rng(seed)
  params = {
    'w': 3 + 2 * rng.standard_normal(shape),
    'gain': 1 + 0.3 * rng.standard_normal(shape[-1:]),
    'bias': rng.standard_normal(shape[-1:]),
  }
  return {name: np.float32(value) for name, value in params.items()}


@pytest.mark.parametrize('groups', [1, 2])
def test_standardized_kernel_agrees_with_float64(groups):
  params = random_conv_params((3, 3, 8 // groups, 6))
  kernel = effective_kernel(params, 8, 6, 3, groups=groups)
  w, gain = np.float64(params['w']), np.float64(params['gain'])
  fan_in = 72 // groups
  var = ((w - w.mean((0, 1, 2))) ** 2).mean((0, 1, 2))
  expected = gain * (w - w.mean((0, 1, 2))) / np.sqrt(var * fan_in)
  size = 8 // groups
  for k in range(6):
    group = k // (6 // groups)
    inside = slice(group * size, (group + 1) * size)
    seen = kernel[:, :, inside, k].astype(np.float64)
    np.testing.assert_allclose(seen, expected[..., k], atol=1e-5)
    assert seen.mean() == pytest.approx(0, abs=1e-6)
    assert seen.var() == pytest.approx(gain[k] ** 2 / fan_in, rel=1e-5)
    outside = np.delete(kernel[..., k], inside, axis=2)
    assert not outside.any()


def test_kernels_of_little_variance_meet_the_floor_of_eps():
  params = random_conv_params((3, 3, 4, 3))
  rng = np.random.default_rng(1)
  params['w'][..., 0] = 7  # Constant: nothing is left of it.
  params['w'][..., 1] = 1e-4 * rng.standard_normal((3, 3, 4))
  kernel = np.float64(effective_kernel(params, 4, 3, 3))
  np.testing.assert_allclose(kernel[..., 0], 0, atol=1e-5)
  w = np.float64(params['w'][..., 1])
  assert w.var() * 36 < 1e-4
  expected = params['gain'][1] * (w - w.mean()) / np.sqrt(1e-4)
  np.testing.assert_allclose(kernel[..., 1], expected, atol=1e-6)
  assert kernel[..., 2].var() * 36 == pytest.approx(params['gain'][2] ** 2)


def test_bias_is_added_to_every_pixel():
  params = random_conv_params((1, 1, 4, 3))
  zeros = np.zeros((2, 4, 5, 4), np.float32)
  out = ws_conv(params, zeros, 3, 1)
  np.testing.assert_array_equal(
    out, np.broadcast_to(params['bias'], (2, 4, 5, 3))
  )


def test_stride_padding_and_dilation_reach_the_convolution():
  params = random_conv_params((3, 3, 4, 3))
  x = np.ones((1, 9, 9, 4), np.float32)

  def shape(**kwargs):
    return ws_conv(params, x, 3, 3, **kwargs).shape[1:3]

  assert shape() == (9, 9)
  assert shape(stride=2) == (5, 5)
  assert shape(padding='VALID') == (7, 7)
  assert shape(padding='VALID', rate=2) == (5, 5)


def test_channels_that_do_not_divide_into_groups_are_refused():
  forward = hk.transform(
    lambda x: base.WSConv2D(6, 3, feature_group_count=3, name='odd')(x)
  )
  with pytest.raises(ValueError, match='odd: 8 input channels.*3 groups'):
    jax.eval_shape(forward.init, jax.random.key(0), jnp.ones((1, 4, 4, 8)))


def test_squeeze_excite_agrees_with_float64():
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((2, 5, 6, 8)))
  params = {
    f'se/~/{name}': {
      'w': np.float32(rng.standard_normal(shape)),
      'b': np.float32(rng.standard_normal(shape[1])),
    }
    for name, shape in (('linear', (8, 2)), ('linear_1', (2, 12)))
  }
  forward = hk.transform(
    lambda x: base.SqueezeExcite(8, 12, 0.25, name='se')(x)
  )
  out = golden_lib.jit(forward.apply)(params, None, x)
  first, last = params['se/~/linear'], params['se/~/linear_1']
  hidden = np.maximum(np.float64(x).mean((1, 2)) @ first['w'] + first['b'], 0)
  gate = 1 / (1 + np.exp(-(hidden @ last['w'] + last['b'])))
  assert out.shape == (2, 1, 1, 12)
  np.testing.assert_allclose(out[:, 0, 0], gate, rtol=1e-5)


@pytest.mark.parametrize(
  ('kwargs', 'hidden'),
  [({}, 4), ({'se_ratio': 0.01}, 1), ({'hidden_ch': 5}, 5)],
)
def test_squeeze_excite_has_the_hidden_channels_asked_for(kwargs, hidden):
  forward = hk.transform(lambda x: base.SqueezeExcite(8, 8, **kwargs)(x))
  x = jax.ShapeDtypeStruct((1, 2, 2, 8), jnp.float32)
  params = jax.eval_shape(forward.init, jax.random.key(0), x)
  assert params['squeeze_excite/~/linear']['w'].shape == (8, hidden)


def stoch_depth(x, is_training, rng, *args, **kwargs):
  forward = hk.transform(
    lambda x: base.StochDepth(*args, **kwargs)(x, is_training)
  )
  return np.asarray(forward.apply({}, rng, x))


@pytest.mark.parametrize(('scale', 'kept'), [(False, 1.0), (True, 1 / 0.7)])
def test_stochastic_depth_drops_whole_examples(scale, kept):
  x = np.ones((20_000, 2, 1, 3), np.float32)
  out = stoch_depth(x, True, jax.random.key(0), 0.3, scale_by_keep=scale)
  first = out[:, 0, 0, 0]
  np.testing.assert_array_equal(out, first[:, None, None, None] * x)
  np.testing.assert_allclose(first[first != 0], kept, rtol=1e-6)
  # Five standard deviations of the fraction that is kept.
  assert (first != 0).mean() == pytest.approx(0.7, abs=0.0162)


def test_stochastic_depth_is_off_in_evaluation_and_without_a_rate():
  x = np.float32(np.random.default_rng(0).standard_normal((4, 2, 2, 3)))
  evaluated = stoch_depth(x, False, None, 0.9, scale_by_keep=True)
  np.testing.assert_array_equal(evaluated, x)
  np.testing.assert_array_equal(stoch_depth(x, True, None, 0), x)


@pytest.mark.parametrize('rate', [-0.1, 1.0, 2])
def test_stochastic_depth_rate_outside_its_range_is_refused(rate):
  with pytest.raises(ValueError, match=rf'\[0, 1\), not {rate}'):
    stoch_depth(np.ones((1, 1)), True, None, rate)


@pytest.mark.parametrize('shape', [(64, 1, 1, 128), (2, 3, 5, 4), (2, 4, 1, 3)])
def test_average_pooling_does_not_count_padding(shape):
  x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  got = jax.jit(base.avg_pool_2x2)(x)
  _, h, w, _ = shape
  for i in range(-(-h // 2)):
    for j in range(-(-w // 2)):
      window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
      want = window.mean(axis=(1, 2), dtype=np.float64)
      np.testing.assert_allclose(got[:, i, j], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_gelu_and_its_derivative_are_those_of_jax(dtype):
  x = jnp.array([-300, -30, -8, -3, -1, -1e-3, 0, 0.5, 2, 9, 40, 300], dtype)
  gamma = 1.7015043497085571
  got = jax.vmap(jax.value_and_grad(base.nonlinearities['gelu']))(x)
  # In bfloat16 JAX's own loses most of its digits where x is negative.
  want = jax.vmap(jax.value_and_grad(lambda x: jax.nn.gelu(x) * gamma))(
    x.astype(jnp.float32)
  )
  tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
  for g, w in zip(got, want, strict=True):
    assert g.dtype == dtype
    g = np.asarray(g, np.float32)
    np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)
