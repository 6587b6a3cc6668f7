"""Adaptive gradient clipping, against optax's and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets import optim

SHAPES = {
  'conv': (3, 3, 4, 5),
  'conv3d': (2, 2, 2, 3, 4),
  'linear': (6, 7),
  'gain': (8,),
  'skip_gain': (),
  'one': (1,),
  'depthwise': (1, 1, 1, 6),
}


def random_tree(shapes, scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: np.asarray(scale * rng.standard_normal(shape), np.float32)
    for name, shape in shapes.items()
  }


@functools.cache
def compiled(make, *args, **kwargs):
  """Returns a function from (grads, params) to (updates, state)."""
  tx = make(*args, **kwargs)
  return jax.jit(
    lambda grads, params: tx.update(grads, tx.init(params), params)
  )


@functools.partial(jax.jit, static_argnames='axis')
def _clip(grads, params, clipping, eps, axis):
  tx = optim.adaptive_grad_clip(clipping, eps, axis)
  return tx.update(grads, tx.init(params), params)


def clip(grads, params, clipping=0.01, eps=1e-3, axis=None):
  updates, state = _clip(grads, params, clipping, eps, axis)
  return updates, float(state.fraction_clipped)


norms = jax.jit(lambda tree: jax.tree.map(optim.unitwise_norm, tree))


def reference(grad, param, clipping, eps):
  """Returns the clipped gradient and which units were clipped, in float64."""
  grad, param = np.float64(grad), np.float64(param)
  if sum(size > 1 for size in grad.shape) <= 1:
    axes = None
  else:
    axes = tuple(range(grad.ndim - 1))

  def norm(x):
    return np.sqrt((x**2).sum(axes, keepdims=True))

  limit = clipping * np.maximum(norm(param), eps)
  over = norm(grad) > limit
  safe = np.where(over, norm(grad), 1)
  return np.where(over, grad * limit / safe, grad), over


# Scales of the gradient at which all, some and none of the units are clipped.
@pytest.mark.parametrize('scale', [1.0, 0.03, 1e-4])
def test_clipping_agrees_with_optax(scale, clipping=0.01):
  params = random_tree(SHAPES)
  grads = random_tree(SHAPES, scale, seed=1)
  updates, _ = clip(grads, params, clipping)
  expected, _ = compiled(optax.adaptive_grad_clip, clipping)(grads, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected
  )


@pytest.mark.parametrize('scale', [1.0, 0.03, 1e-4])
def test_clipping_and_fraction_agree_with_float64(scale):
  shapes = {**SHAPES, 'conv1d': (3, 4, 5)}
  params = random_tree(shapes)
  grads = random_tree(shapes, scale, seed=1)
  updates, fraction = clip(grads, params, clipping=0.02, eps=0.5)
  units = []
  for name in shapes:
    expected, over = reference(grads[name], params[name], 0.02, 0.5)
    np.testing.assert_allclose(updates[name], expected, rtol=1e-5)
    units += over.ravel().tolist()
  assert len(units) == 5 + 4 + 7 + 1 + 1 + 1 + 1 + 5
  assert fraction == pytest.approx(np.mean(units))
  assert fraction in {1.0: (1.0,), 1e-4: (0.0,)}.get(scale, (fraction,))


# Squares of the largest overflow in float32, and those of the smallest vanish.
@pytest.mark.parametrize('scale', [1e30, 1e-24])
def test_gradients_of_any_size_agree_with_float64(scale):
  params = random_tree(SHAPES, 1e-3)
  grads = random_tree(SHAPES, scale, seed=1)
  clipping = 1e-2 * min(scale, 1)
  updates, fraction = clip(grads, params, clipping)
  for name in SHAPES:
    expected, _ = reference(grads[name], params[name], clipping, 1e-3)
    np.testing.assert_allclose(updates[name], expected, rtol=1e-5)
  assert fraction == 1


def test_derivative_at_a_zero_gradient_is_one():
  params = random_tree(SHAPES)
  tx = optim.adaptive_grad_clip()

  def total(grads):
    updates, _ = tx.update(grads, tx.init(params), params)
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))

  slopes = jax.jit(jax.grad(total))(jax.tree.map(jnp.zeros_like, params))
  assert all((leaf == 1).all() for leaf in jax.tree.leaves(slopes))


def test_default_arguments_are_the_published_ones():
  one = {'w': jnp.ones((1, 1))}
  tx = optim.adaptive_grad_clip()
  updates, _ = tx.update(one, tx.init(one), one)
  np.testing.assert_allclose(updates['w'], 0.01, rtol=1e-6)
  updates, _ = tx.update(one, tx.init(one), {'w': jnp.zeros((1, 1))})
  np.testing.assert_allclose(updates['w'], 0.01 * 1e-3, rtol=1e-6)


def test_zero_gradients_stay_zero_even_of_zero_parameters():
  zeros = jax.tree.map(np.zeros_like, random_tree(SHAPES))
  for params in (zeros, random_tree(SHAPES)):
    updates, fraction = clip(zeros, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    assert fraction == 0


def test_vector_along_any_axis_is_one_unit():
  shapes = [(1, 1, 1, 4), (9, 1), (), (3, 3, 1, 2)]
  row, column, scalar, kernel = norms([jnp.ones(shape) for shape in shapes])
  np.testing.assert_array_equal(row, [[[[2]]]])
  np.testing.assert_array_equal(column, [[3]])
  assert scalar == 1
  np.testing.assert_array_equal(kernel, [[[[3, 3]]]])


def test_fraction_counts_units_not_tensors():
  # Three units of a matrix, one vector and one scalar; norms of the gradient
  # beside limits of 0.01 times the norm of the parameter.
  params = {
    'matrix': jnp.array([[3.0, 0.0, 6.0], [4.0, 1.0, 8.0]]),
    'vector': jnp.array([3.0, 4.0]),
    'scalar': jnp.array(10.0),
  }
  grads = {
    'matrix': jnp.array([[0.06, 0.0, 0.0], [0.0, 0.009, 0.09]]),
    'vector': jnp.array([0.0, 0.04]),
    'scalar': jnp.array(-0.2),
  }
  updates, fraction = clip(grads, params)
  assert fraction == pytest.approx(2 / 5)  # 0.06 of 0.05; 0.2 of 0.1.
  np.testing.assert_allclose(
    updates['matrix'], [[0.05, 0, 0], [0, 0.009, 0.09]], rtol=1e-6
  )
  np.testing.assert_array_equal(updates['vector'], grads['vector'])
  np.testing.assert_allclose(updates['scalar'], -0.1, rtol=1e-6)


def test_fraction_is_found_in_a_composed_state():
  params = {'a': jnp.ones((2, 2)), 'b': jnp.ones((2, 2))}
  grads = {'a': jnp.array([[1.0, 0.0], [0.0, 0.0]]), 'b': jnp.ones((2, 2))}
  tx = optax.chain(
    optax.masked(optim.adaptive_grad_clip(), {'a': True, 'b': False}),
    optax.sgd(0.1, momentum=0.9),
  )
  state = tx.init(params)
  assert optax.tree.get(state, 'fraction_clipped') == 0
  updates, state = jax.jit(tx.update)(grads, state, params)
  fraction = optax.tree.get(state, 'fraction_clipped')
  assert fraction.dtype == jnp.float32 and fraction.shape == ()
  assert fraction == 0.5
  np.testing.assert_allclose(updates['b'], -0.1, rtol=1e-6)


def test_missing_params_are_refused():
  tx = optim.adaptive_grad_clip()
  grads = {'w': jnp.ones(3)}
  with pytest.raises(ValueError, match='params'):
    tx.update(grads, tx.init(grads))


AXES = [(3, 4), -1]


@pytest.mark.parametrize('axis', AXES)
def test_given_axes_are_the_ones_that_optax_takes(axis):
  params = random_tree({'w': (2, 2, 2, 3, 4)})
  grads = random_tree({'w': (2, 2, 2, 3, 4)}, 0.03, seed=1)
  updates, fraction = clip(grads, params, 0.05, axis=axis)
  expected, _ = compiled(optax.adaptive_grad_clip, 0.05, axis=axis)(
    grads, params
  )
  np.testing.assert_allclose(updates['w'], expected['w'], rtol=1e-5)
  assert 0 < fraction <= 1
  norm = optim.unitwise_norm(grads['w'], axis)
  want = optax.transforms.unitwise_norm(grads['w'], axis)
  np.testing.assert_allclose(jnp.broadcast_to(norm, want.shape), want, 1e-6)


def test_axes_may_depend_on_path_and_shape():
  """A scanned stack of layers is clipped as its layers are one by one."""
  stack = (4, 6, 7)
  params = {'scan': {'w': random_tree({'w': stack})['w']}, 'b': np.ones(3)}
  grads = {
    'scan': {'w': random_tree({'w': stack}, 0.02, seed=1)['w']},
    'b': np.ones(3, np.float32),
  }
  asked = []

  def axis(path, shape):
    asked.append((path, shape))
    return 1 if path.startswith('scan/') else None

  updates, _ = clip(grads, params, axis=axis)
  assert sorted(set(asked)) == [('b', (3,)), ('scan/w', stack)]
  for i in range(len(params['scan']['w'])):
    one, _ = clip({'w': grads['scan']['w'][i]}, {'w': params['scan']['w'][i]})
    np.testing.assert_allclose(updates['scan']['w'][i], one['w'], rtol=1e-5)
  np.testing.assert_allclose(updates['b'], 0.01, rtol=1e-5)  # A whole vector.


def test_rank_six_needs_axes():
  assert optim.unitwise_norm(jnp.ones([2] * 6), (0, 1, 2)).shape == (
    *(1, 1, 1),
    *(2, 2, 2),
  )


def test_rank_above_five_is_refused():
  with pytest.raises(ValueError, match=r'\(1, 2, 1, 2, 1, 2\)'):
    optim.unitwise_norm(jnp.ones((1, 2, 1, 2, 1, 2)))


def test_dtype_of_gradients_is_kept_and_norms_are_float32():
  grads = {'w': jnp.full((4096, 1, 2), 1.0, jnp.bfloat16)}
  params = {'w': jnp.full((4096, 1, 2), 1.0, jnp.bfloat16)}
  updates, _ = clip(grads, params)
  assert updates['w'].dtype == jnp.bfloat16
  norm = optim.unitwise_norm(grads['w'])
  assert norm.dtype == jnp.float32
  assert (norm == 64).all()  # A bfloat16 sum of ones stops at 256.
  np.testing.assert_allclose(np.float32(updates['w']), 0.01, rtol=4e-3)


def test_nan_stays_in_its_unit():
  params = {'w': jnp.ones((2, 3)), 'b': jnp.ones(2)}
  grads = {
    'w': jnp.array([[np.nan, 1.0, 0.0], [1.0, 1.0, 0.0]]),
    'b': jnp.array([np.nan, 0.0]),
  }
  updates, fraction = clip(grads, params)
  assert np.isnan(updates['w'][0, 0]) and np.isnan(updates['b'][0])
  assert np.isfinite(updates['w'][:, 1:]).all()
  assert fraction == pytest.approx(1 / 4)
