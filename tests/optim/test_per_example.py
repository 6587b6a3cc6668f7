"""Clipping of each example's gradient, against a loop in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets import optim

_SHAPES = {'conv': (3, 3, 4, 5), 'linear': (6, 7), 'gain': (8,), 'skip': ()}
_BATCH = 6


def _random(shapes, seed, batch=(), scale=1.0):
  rng = np.random.default_rng(seed)
  return {
    name: np.float32(scale * rng.standard_normal((*batch, *shape)))
    for name, shape in shapes.items()
  }


def _clipped(grad, param, clipping, eps):
  """Returns one example's gradient, clipped, and which units were."""
  grad, param = np.float64(grad), np.float64(param)
  axes = tuple(range(grad.ndim - 1)) if grad.ndim > 1 else None

  def norm(x):
    return np.sqrt((x**2).sum(axes, keepdims=True))

  limit = clipping * np.maximum(norm(param), eps)
  over = norm(grad) > limit
  return np.where(over, grad * limit / norm(grad), grad), over.ravel()


# All, some and none of the units are clipped.
@pytest.mark.parametrize('scale', [1.0, 0.03, 1e-4])
@pytest.mark.parametrize('last', [True, False])
def test_the_mean_is_of_clipped_gradients(scale, last):
  """As a loop over the examples has it; `linear` may be left unclipped."""
  params = _random(_SHAPES, 0)
  # Examples of different lengths: to clip the mean would be another thing.
  grads = _random(_SHAPES, 1, (_BATCH,), scale)
  factors = np.float32(np.logspace(-1, 1, _BATCH))
  grads = {k: (v.T * factors).T for k, v in grads.items()}
  mask = None if last else (lambda params: {k: k != 'linear' for k in params})
  tx = optim.per_example_adaptive_grad_clip(0.02, 0.5, mask)
  updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
  units = []
  for name, param in params.items():
    parts = [_clipped(grad, param, 0.02, 0.5) for grad in grads[name]]
    if name != 'linear' or last:
      units += [over for _, over in parts]
      expected = np.mean([part for part, _ in parts], axis=0)
    else:
      expected = np.mean(np.float64(grads[name]), axis=0)
    np.testing.assert_allclose(
      updates[name], expected, atol=1e-6 * scale, rtol=1e-6
    )
  fraction = np.mean(np.concatenate(units))
  assert state.fraction_clipped == pytest.approx(fraction)
  assert 0 < fraction < 1 or scale != 0.03


def test_defaults_and_names_are_those_of_the_clipping_of_a_batch():
  """With one example it is the same, and so composed with optax's."""
  params, grads = _random(_SHAPES, 0), _random(_SHAPES, 1)
  params['gain'] = np.float32([0] * 8)  # Where eps matters.
  tx = optax.chain(
    optim.per_example_adaptive_grad_clip(), optax.sgd(0.1, momentum=0.9)
  )
  one = optax.chain(optim.adaptive_grad_clip(), optax.sgd(0.1, momentum=0.9))
  state = tx.init(params)
  assert optax.tree.get(state, 'fraction_clipped') == 0
  stacked = {k: v[None] for k, v in grads.items()}
  updates, state = jax.jit(tx.update)(stacked, state, params)
  expected, wanted = jax.jit(one.update)(grads, one.init(params), params)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  jax.tree.map(close, updates, expected)
  got, want = (optax.tree.get(s, 'fraction_clipped') for s in (state, wanted))
  assert got == want > 0


def test_gradients_of_a_batch_are_refused():
  tx = optim.per_example_adaptive_grad_clip()
  params = {'a': jnp.ones((2, 3)), 'b': jnp.ones(3)}
  state = tx.init(params)
  with pytest.raises(ValueError, match=r'shape \[2, 3\] it got \[2, 3\]'):
    tx.update(params, state, params)
  unequal = {'a': jnp.ones((4, 2, 3)), 'b': jnp.ones((5, 3))}
  with pytest.raises(ValueError, match=r'shape \[3\] it got \[5, 3\]'):
    tx.update(unequal, state, params)
  with pytest.raises(ValueError, match='needs params'):
    tx.update(unequal, state)


def test_axes_are_those_of_the_parameters():
  params = {'w': _random({'w': (5, 4, 3, 3)}, 0)['w']}  # OIHW.
  grads = {'w': _random({'w': (5, 4, 3, 3)}, 1, (_BATCH,), 0.03)['w']}
  tx = optim.per_example_adaptive_grad_clip(axis=(1, 2, 3))
  updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
  one = optim.adaptive_grad_clip(axis=(1, 2, 3))
  each = [
    one.update({'w': grad}, one.init(params), params)[0]['w']
    for grad in grads['w']
  ]
  np.testing.assert_allclose(updates['w'], np.mean(each, 0), rtol=1e-5)
  assert 0 < state.fraction_clipped <= 1
