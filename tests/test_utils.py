"""Losses, averages and trees, against closed forms."""

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets import utils


def test_haiku_tree_is_flattened_to_dotted_names():
  tree = {
    'NFNet/~/nf_block_3/~/conv1b': {'w': 1, 'gain': 2},
    'NFNet/~/linear': {'b': 3},
    'outer/inner': {'w': 4},
    'NFNet': {'w': 5},
  }
  assert utils.flatten_haiku_tree(tree) == {
    'NFNet.nf_block_3.conv1b.w': 1,
    'NFNet.nf_block_3.conv1b.gain': 2,
    'NFNet.linear.b': 3,
    'outer.inner.w': 4,
    'NFNet.w': 5,
  }


def random_logits_and_labels():
  rng = np.random.default_rng(0)
  labels = rng.uniform(size=(6, 7))
  labels /= labels.sum(-1, keepdims=True)
  return np.float32(3 * rng.standard_normal((6, 7))), np.float32(labels)


def test_softmax_cross_entropy_agrees_with_float64():
  logits, labels = random_logits_and_labels()
  loss = utils.softmax_cross_entropy(logits, labels)
  x = np.float64(logits)
  log_probs = x - np.log(np.exp(x).sum(-1, keepdims=True))
  np.testing.assert_allclose(loss, -(labels * log_probs).sum(-1), rtol=1e-5)


def test_sigmoid_cross_entropy_agrees_with_float64():
  logits, labels = random_logits_and_labels()
  loss = utils.sigmoid_cross_entropy(logits, labels)
  p = 1 / (1 + np.exp(-np.float64(logits)))
  terms = labels * np.log(p) + (1 - labels) * np.log(1 - p)
  np.testing.assert_allclose(loss, -terms.sum(-1), rtol=1e-5)


@pytest.mark.parametrize(
  'loss_fn', [utils.softmax_cross_entropy, utils.sigmoid_cross_entropy]
)
def test_losses_are_finite_float32_for_any_logits(loss_fn):
  logits = jnp.array([[1e4, -1e4, 0]], jnp.bfloat16)
  labels = jnp.array([[0, 1, 0]], jnp.bfloat16)
  loss = loss_fn(logits, labels)
  assert loss.dtype == jnp.float32 and loss.shape == (1,)
  assert np.isfinite(loss).all() and loss[0] > 9e3
  assert np.isfinite(jax.grad(lambda x: loss_fn(x, labels).sum())(logits)).all()


def test_smoothed_labels_are_mixed_with_the_uniform_distribution():
  labels = np.eye(5, dtype=np.float32)[[1, 4]]
  out = utils.smooth_labels(labels, 0.1)
  np.testing.assert_allclose(out[0], [0.02, 0.92, 0.02, 0.02, 0.02], rtol=1e-6)
  np.testing.assert_array_equal(utils.smooth_labels(labels, 0), labels)


def test_topk_agrees_with_sorting():
  rng = np.random.default_rng(0)
  logits = np.float32(rng.standard_normal((200, 20)))
  labels = rng.integers(0, 20, 200)
  out = jax.jit(utils.topk_correct)(logits, labels)
  assert set(out) == {'top_1_acc', 'top_5_acc'}
  order = np.argsort(-logits, axis=-1)
  for k in (1, 5):
    expected = (order[:, :k] == labels[:, None]).any(-1)
    np.testing.assert_array_equal(out[f'top_{k}_acc'], expected)
    assert out[f'top_{k}_acc'].dtype == jnp.float32


def test_topk_counts_ties_and_nan_as_wrong():
  nan = np.nan
  logits = jnp.array(
    [
      [1.0, 1.0, 1.0, 1.0],  # All equal.
      [2.0, 2.0, 1.0, 0.0],  # Ties for the first place.
      [nan, nan, nan, nan],
      [nan, 3.0, 2.0, 1.0],  # The label is NaN.
      [2.0, nan, 1.0, 0.0],  # Another is NaN.
    ]
  )
  out = utils.topk_correct(logits, jnp.zeros(5, int), topk=(1, 2))
  np.testing.assert_array_equal(out['top_1_acc'], [0, 0, 0, 0, 0])
  np.testing.assert_array_equal(out['top_2_acc'], [0, 1, 0, 0, 1])


def test_moving_average_agrees_with_golden():
  golden = golden_lib.load('sgd_agc')['tf1_ema']
  update = jax.jit(
    lambda average, step: utils.ema_update(
      average, {'x': jnp.sin(step)}, utils.ema_decay(step, 0.99999)
    )
  )
  average, averages = {'x': jnp.ones(())}, []
  for step in range(1, 30):
    average = update(average, np.float32(step))
    averages.append(average['x'])
  np.testing.assert_allclose(averages, golden, atol=2e-6)


def test_decay_of_the_average_rises_to_its_limit():
  steps = np.array([0, 1, 90, 10**8])
  expected = [0.1, 2 / 11, 91 / 100, 0.99]
  np.testing.assert_allclose(utils.ema_decay(steps, 0.99), expected, rtol=1e-6)


def test_moving_average_keeps_float32_and_copies_integers():
  average = {'w': jnp.ones(3), 'count': jnp.array(1)}
  value = {'w': jnp.zeros(3, jnp.bfloat16), 'count': jnp.array(5)}
  out = utils.ema_update(average, value, jnp.float32(0.75))
  assert out['w'].dtype == jnp.float32 and out['count'].dtype == jnp.int32
  np.testing.assert_array_equal(out['w'], [0.75] * 3)
  assert out['count'] == 5
