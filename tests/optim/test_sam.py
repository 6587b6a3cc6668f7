"""Sharpness-aware minimization, against closed forms and optax's."""

import functools

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets import optim

CURVATURE = {'a': np.array([1.0, 2.0, 5.0]), 'b': np.array(3.0)}
START = {'a': jnp.array([1.0, -2.0, 0.5]), 'b': jnp.array(0.7)}


def gradient(params, i=0):
  """Of the loss sum(curvature / 2 * params^2)."""
  del i
  return jax.tree.map(lambda c, p: jnp.float32(c) * p, CURVATURE, params)


def test_step_uses_the_gradient_at_the_end_of_the_ascent():
  rho, lr = 0.1, 0.05
  tx = optim.sam(optax.sgd(lr), rho)
  update = jax.jit(lambda g, s, p: tx.update(g, s, p, grad_fn=gradient))
  params, state = START, tx.init(START)
  expected = jax.tree.map(np.float64, START)
  for _ in range(3):
    updates, state = update(gradient(params), state, params)
    params = optax.apply_updates(params, updates)
    ascent = {k: CURVATURE[k] * expected[k] for k in expected}
    norm = np.sqrt(sum((g**2).sum() for g in ascent.values()))
    for k, value in expected.items():
      at = value + rho * ascent[k] / norm
      expected[k] = value - lr * CURVATURE[k] * at
    for k in expected:
      np.testing.assert_allclose(params[k], expected[k], rtol=1e-5)


def test_rho_is_0_05_by_default():
  seen = []
  tx = optim.sam(optax.sgd(0.1))

  def record(params, i):
    seen.append((params, i))
    return gradient(params)

  tx.update(gradient(START), tx.init(START), START, grad_fn=record)
  ((at, i),) = seen
  moved = jax.tree.map(lambda a, b: a - b, at, START)
  np.testing.assert_allclose(optax.tree.norm(moved), 0.05, rtol=1e-5)
  assert i == 0


def test_two_updates_of_optaxs_transparent_mode_are_one_of_ours():
  base = optax.sgd(0.05, momentum=0.9, nesterov=True)
  ours = optim.sam(base, rho=0.2)
  ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.2))
  theirs = optax.contrib.sam(base, ascent, sync_period=2)
  our_params = their_params = START
  our_state, their_state = ours.init(START), theirs.init(START)
  for _ in range(4):
    updates, our_state = ours.update(
      gradient(our_params), our_state, our_params, grad_fn=gradient
    )
    our_params = optax.apply_updates(our_params, updates)
    for _ in range(2):
      updates, their_state = theirs.update(
        gradient(their_params), their_state, their_params
      )
      their_params = optax.apply_updates(their_params, updates)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      our_params,
      their_params,
    )


def test_two_halves_are_the_whole():
  base = optax.adam(0.05)
  whole, half = optim.sam(base, 0.3), optim.sam_descent(base)
  want = whole.update(
    gradient(START), whole.init(START), START, grad_fn=gradient
  )
  worse = optim.sam_ascent(START, gradient(START), 0.3)
  got = half.update(gradient(worse), half.init(START), START)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), got, want
  )


def test_state_is_that_of_optax_which_checkpoints_hold():
  base = optim.sgd_agc(0.1)
  ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
  want = optax.contrib.sam(base, ascent, opaque_mode=True).init(START)
  tx = optim.sam(base)
  state = tx.init(START)
  assert jax.tree.structure(state) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, state, want)
  _, state = tx.update(START, want, START, grad_fn=gradient)
  assert jax.tree.structure(state) == jax.tree.structure(want)


def test_ascent_along_a_zero_gradient_stays_where_it_is():
  zeros = jax.tree.map(jnp.zeros_like, START)
  worse = optim.sam_ascent(START, zeros)
  jax.tree.map(np.testing.assert_array_equal, worse, START)


# Squares of these overflow, or vanish.
@pytest.mark.parametrize(
  ('dtype', 'scale'),
  [
    *((jnp.float16, 3e4), (jnp.float16, 1e-6)),
    *((jnp.float32, 1e30), (jnp.float32, 1e-30)),
  ],
)
def test_ascent_is_as_long_whatever_the_size_of_the_gradient(dtype, scale):
  if dtype == jnp.float16:
    golden_lib.skip_without_float16()
  params = {'a': jnp.zeros((20, 30), dtype), 'b': jnp.zeros((), dtype)}
  rng = np.random.default_rng(0)
  gradient = jax.tree.map(
    lambda p: jnp.asarray(scale * rng.uniform(0.5, 1, p.shape), dtype), params
  )
  worse = jax.jit(optim.sam_ascent)(params, gradient)
  squares = [np.square(np.float64(x)).sum() for x in worse.values()]
  assert np.sqrt(sum(squares)) == pytest.approx(0.05, rel=2e-3)


def test_ascent_keeps_the_dtypes_of_the_parameters():
  params = {'w': jnp.ones(2, jnp.bfloat16), 'b': jnp.ones(2)}
  worse = optim.sam_ascent(params, jax.tree.map(jnp.float32, params))
  assert worse['w'].dtype == jnp.bfloat16 and worse['b'].dtype == jnp.float32


def test_ascent_may_come_from_another_batch_than_the_descent():
  # Only its direction counts: here, the first coordinate of `a`.
  ascent = {'a': jnp.array([7.0, 0.0, 0.0]), 'b': jnp.array(0.0)}
  tx = optim.sam(optax.sgd(1.0), rho=0.5)
  updates, _ = tx.update(ascent, tx.init(START), START, grad_fn=gradient)
  np.testing.assert_allclose(updates['a'], [-1.5, 4.0, -2.5], rtol=1e-6)
  np.testing.assert_allclose(updates['b'], -2.1, rtol=1e-6)


def test_missing_params_and_descent_gradient_are_refused():
  tx = optim.sam(optax.sgd(0.1))
  state, grads = tx.init(START), gradient(START)
  with pytest.raises(ValueError, match='params'):
    tx.update(grads, state, grad_fn=gradient)
  with pytest.raises(ValueError, match='grad_fn='):
    tx.update(grads, state, START)


def test_base_sees_the_parameters_where_the_step_starts():
  # Weight decay, and the limit of AGC, are those of the parameters themselves.
  params = {'net': {'w': jnp.array([[2.0, 4.0]]).T}}

  def constant(value):
    return lambda p, i: jax.tree.map(lambda x: jnp.full_like(x, value), p)

  tx = optim.sam(optim.sgd_agc(1.0, momentum=0.0, weight_decay=0.5), rho=1.0)
  updates, state = tx.update(
    params, tx.init(params), params, grad_fn=constant(0)
  )
  np.testing.assert_allclose(updates['net']['w'][:, 0], [-1.0, -2.0])
  assert optax.tree.get(state, 'fraction_clipped') == 0
  _, state = tx.update(params, state, params, grad_fn=constant(1))
  assert optax.tree.get(state, 'fraction_clipped') == 1
