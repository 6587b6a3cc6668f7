"""The signals of small networks, beside what they must be."""

import math

import golden_lib
import jax.numpy as jnp
import numpy as np
import pytest
import signal_variance
import tiny_networks

from experiments.studies import signal_measure
from nfnets import network, zoo
from nfnets.weights import matching

_DEPTH = [3, 2, 0, 0]
_IN_STAGE = np.array([1, 2, 3, 1, 2])  # Which of its stage's blocks it is.
_RELU_GAMMA = 1.7139588594436646
_SLOW = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def tiny():
  with tiny_networks.variants(_DEPTH):
    yield


def make(text):
  """Returns a network of the zoo with _DEPTH blocks."""
  named = signal_measure.parse(text)
  kwargs = {'variant': 'tiny'}
  if 'resnet' in named.name:
    kwargs['width'] = 2
  return named, zoo.create_model(named.name, 0, **kwargs)


def draw(model, change=None):
  """Draws kernels from N(0, 1 / fan_in), and changes each; gains are 1.

  Gates have kernels of zero, so that they are 1/2.
  """
  rng = np.random.default_rng(0)

  def value(module, name, leaf):
    if name in ('gain', 'skip_gain', 'scale'):
      return np.ones(leaf.shape, np.float32)
    if name != 'w' or 'squeeze_excite' in module:
      return np.zeros(leaf.shape, np.float32)
    stddev = math.prod(leaf.shape[:-1]) ** -0.5
    kernel = stddev * rng.standard_normal(leaf.shape)
    return np.float32(kernel if change is None else change(kernel))

  params, _ = matching.model_shapes(model)
  return golden_lib.with_leaves(params, value), {}


def measure(text, change=None, size=32):
  """Returns {field of a row: its value for each block}, and the rows."""
  named, model = make(text)
  images = np.random.default_rng(1).standard_normal((8, size, size, 3))
  rows = signal_measure.measure(
    named, model, jnp.float32(images), draw(model, change)
  )
  return {
    name: np.array([getattr(row, name) for row in rows[1:]], np.float64)
    for name in (
      *('stage', 'transition', 'avg_sq_mean', 'avg_var', 'res_avg_var'),
      *('expected_var', 'expected_res_var'),
    )
  }


@pytest.mark.parametrize(
  ('order', 'branch'),
  [
    ('norm_act_conv', (1 - 1 / math.pi) / 2),
    pytest.param('act_norm_conv', 1.0, marks=_SLOW),
  ],
)
def test_batch_norm_grows_linearly_until_a_transition(order, branch):
  # The variance of a rectified normal distribution is (1 - 1 / pi) / 2, of its
  # square's mean of 1/2. A transition's shortcut has as much as its branch.
  rows = measure(f'resnet50:order={order}')
  is_first = _IN_STAGE == 1
  np.testing.assert_array_equal(rows['transition'], is_first)
  np.testing.assert_array_equal(rows['stage'], [1, 1, 1, 2, 2])
  np.testing.assert_allclose(rows['res_avg_var'], branch, rtol=0.1)
  steps = np.diff(rows['avg_var'], prepend=0)
  np.testing.assert_allclose(steps[~is_first], branch, rtol=0.1)
  np.testing.assert_allclose(rows['avg_var'][is_first], 2 * branch, rtol=0.15)
  expected = branch * (_IN_STAGE + 1)
  np.testing.assert_allclose(rows['expected_var'], expected, rtol=0.1)
  # Without a mean of its input a convolution makes none, and rectifying does.
  assert (rows['avg_sq_mean'] < 0.05 * rows['avg_var']).all() == (
    order == 'act_norm_conv'
  )


@pytest.mark.parametrize('alpha', [0.5, pytest.param(1.0, marks=_SLOW)])
def test_each_block_adds_alpha_squared_to_1(alpha, monkeypatch):
  signal_variance.leave_out_what_the_analysis_does(monkeypatch)
  rows = measure(f'nf_resnet50:alpha={alpha}')
  expected = 1 + alpha**2 * _IN_STAGE
  np.testing.assert_allclose(rows['expected_var'], expected, rtol=1e-6)
  np.testing.assert_allclose(rows['expected_res_var'], 1, rtol=1e-6)
  np.testing.assert_allclose(rows['avg_var'], expected, rtol=0.1)
  np.testing.assert_allclose(rows['res_avg_var'], 1, rtol=0.1)
  # So the shortcut of each transition brings it back to 1.
  first = rows['transition'] == 1
  shortcut = rows['avg_var'] - alpha**2 * rows['res_avg_var']
  np.testing.assert_allclose(shortcut[first], 1, rtol=0.1)


def test_branches_without_gain_leave_the_signal_alone():
  rows = measure('nf_resnet50:skip_gain=0')
  in_stage = rows['transition'] == 0
  for name in ('avg_var', 'avg_sq_mean'):
    steps = np.diff(rows[name])
    np.testing.assert_array_equal(steps[in_stage[1:]], 0)
  # Of alpha = 0.2; the second transition's beta is of what it would be.
  expected = [1, 1, 1, 1 / 1.12, 1 / 1.12]
  np.testing.assert_allclose(rows['expected_var'], expected, rtol=1e-6)


def test_gamma_is_in_every_activation_of_a_branch():
  # Rectifying keeps factors, so three of them are one.
  scaled = measure('nf_resnet50')['res_avg_var'][0]
  plain = measure('nf_resnet50:scaled_activations=no')['res_avg_var'][0]
  assert scaled / plain == pytest.approx(_RELU_GAMMA**6, rel=1e-4)


@pytest.mark.slow
def test_a_gate_has_a_factor_of_2():
  with_factor = measure('nfnet_f0')['res_avg_var'][0]
  without = measure('nfnet_f0:se_factor=no')['res_avg_var'][0]
  assert with_factor / without == pytest.approx(4, rel=1e-5)


@pytest.mark.slow
def test_kernels_are_taken_as_they_are_drawn():
  def standardize(kernel):
    axes = (0, 1, 2)
    kernel = kernel - kernel.mean(axes)
    return kernel / kernel.std(axes) / math.prod(kernel.shape[:-1]) ** 0.5

  def shift(kernel):
    return kernel + math.prod(kernel.shape[:-1]) ** -0.5

  name = 'nf_resnet50:weight_standardization=no'
  standardized = measure('nf_resnet50', shift)
  same = measure('nf_resnet50', lambda kernel: standardize(shift(kernel)))
  drawn = measure(name, standardize)
  for field in ('avg_var', 'res_avg_var'):
    np.testing.assert_allclose(standardized[field], same[field], rtol=1e-3)
    np.testing.assert_allclose(drawn[field], same[field], rtol=1e-3)
  # Means of the activations become means of channels.
  shifted = measure(name, shift)
  assert (shifted['avg_sq_mean'] > 100 * drawn['avg_sq_mean']).all()


@pytest.mark.slow
@pytest.mark.parametrize(
  'text',
  [
    *('nf_regnet_b0:activation=tanh:alpha=1', 'resnet50_v1'),
    *('skipinit_resnet50:activation=silu', 'fixup_resnet50:init=he'),
    'timm/test_nfnet:se_factor=no:skip_gain=2',
  ],
)
def test_networks_of_other_kinds_have_signals(text):
  rows = measure(text)
  for name in ('avg_sq_mean', 'avg_var', 'res_avg_var'):
    assert np.isfinite(rows[name]).all() and (rows[name] > 0).all()


@pytest.mark.parametrize('name', ['nfnet_f0', 'timm/nfnet_l0'])
def test_the_rule_is_the_one_that_the_networks_have(name, monkeypatch):
  # What is expected after a block is what the next one's beta undoes.
  betas, call_block = [], network.call_block

  def watch(block, *args, **kwargs):
    betas.append(block.beta)
    return call_block(block, *args, **kwargs)

  monkeypatch.setattr(network, 'call_block', watch)
  rows = measure(name)
  expected = np.float64(betas[1 - sum(_DEPTH) :]) ** -2
  np.testing.assert_allclose(rows['expected_var'][:-1], expected, rtol=1e-6)
  np.testing.assert_allclose(rows['expected_res_var'], 1, rtol=1e-6)
