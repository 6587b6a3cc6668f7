"""Adaptive gradient clipping (arXiv 2102.06171, section 4)."""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Axis = int | Sequence[int] | None


class AdaptiveGradClipState(NamedTuple):
  """State of `adaptive_grad_clip`.

  Attributes:
    fraction_clipped: float32 scalar, the fraction of units that the last update
      clipped. Find it in a composed state with `optax.tree.get`.

  Example:
    >>> tx = optim.adaptive_grad_clip(0.01)
    >>> _, tx_state = tx.update(grads, tx.init(layers), layers)
    >>> float(tx_state.fraction_clipped)
    1.0
  """

  fraction_clipped: jax.Array


def norm(x: jax.Array, axis: int | Sequence[int] | None = None) -> jax.Array:
  """Returns the L2 norm over some axes, which keep size 1.

  Squares of large and of tiny numbers neither overflow nor vanish, and the
  derivative at zero is zero.

  Args:
    x: any array.
    axis: the axes to sum over; None is all.

  Returns:
    The norm, float32, or float64 for such x.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0)
  largest = jax.lax.stop_gradient(largest)  # The norm does not depend on it.
  scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
  squares = jnp.sum(jnp.square(x / scale), axis=axis, keepdims=True)
  is_zero = squares == 0
  root = jnp.sqrt(jnp.where(is_zero, 1, squares))
  return jnp.where(is_zero, 0, scale * root)


def unitwise_norm(x: jax.Array, axis: Axis = None) -> jax.Array:
  """Returns the norm of the weights that feed each output.

  Args:
    x: any array; of rank up to 5, with the output axis last, if `axis` is None.
    axis: the axes to sum over. None is all but the last, and all of them for
      scalars and for arrays with at most one axis longer than 1.

  Returns:
    The L2 norm; the axes that it sums over keep size 1. float32, or float64 for
    such x.

  Raises:
    ValueError: for a rank above 5 without `axis`, or an axis that x lacks.

  Example:
    >>> optim.unitwise_norm(jnp.ones((3, 3, 16, 8))).shape
    (1, 1, 1, 8)
  """
  if axis is None:
    if x.ndim > 5:
      raise ValueError(
        f'No known meaning for a parameter of shape {x.shape}; `axis` says '
        'which axes to sum over.'
      )
    if sum(size > 1 for size in x.shape) > 1:
      axis = tuple(range(x.ndim - 1))
  return norm(x, axis)


def adaptive_grad_clip(
  clipping: float = 0.01,
  eps: float = 1e-3,
  axis: Axis | Callable[[str, tuple[int, ...]], Axis] = None,
) -> optax.GradientTransformation:
  """Clips each unit's gradient to a multiple of the unit's norm.

  Where the norm of the gradient of the weights that feed one output exceeds
  clipping * max(norm of these weights, eps), it is scaled down to it (equation
  3). Parameters are HWIO or IO kernels, or any array whose last axis is the
  output; a vector is one unit. For other layouts, `axis` says which axes a
  unit's norm sums over:

    adaptive_grad_clip(0.01, axis=(1, 2, 3))  # OIHW kernels.

    def axis(path, shape):
      if path.endswith('query/kernel'):  # [d, heads, head_dim].
        return 0
      return None  # The default rule.

  Differs from `optax.adaptive_grad_clip` in that rank 3 keeps only the last
  axis, and in that the state tells the fraction of units that were clipped.

  Args:
    clipping: largest ratio of the two norms.
    eps: lower bound on the norm of the weights, so that zero weights can move.
    axis: see `unitwise_norm`; or a function from a parameter's path, such as
      'layer_0/query/kernel', and its shape to that.

  Returns:
    An optax transformation. Its `update` needs `params` and raises ValueError
    without.

  Example:
    >>> tx = optax.chain(optim.adaptive_grad_clip(0.01), optax.sgd(0.1))
    >>> updates, tx_state = tx.update(grads, tx.init(layers), layers)
  """

  def init_fn(params):
    del params
    return AdaptiveGradClipState(jnp.zeros((), jnp.float32))

  def update_fn(updates, state, params=None):
    del state
    if params is None:
      raise ValueError(
        'adaptive_grad_clip needs params: call update(grads, state, params).'
      )

    num_units, num_clipped = 0, jnp.zeros((), jnp.float32)

    def clip(path, grad, param):
      nonlocal num_units, num_clipped
      axes = axis
      if callable(axis):
        path = jax.tree_util.keystr(path, simple=True, separator='/')
        axes = axis(path, param.shape)
      grad_norm, param_norm = (unitwise_norm(x, axes) for x in (grad, param))
      max_norm = clipping * jnp.maximum(param_norm, eps)
      too_long = grad_norm > max_norm
      num_units += math.prod(too_long.shape)
      num_clipped += jnp.sum(too_long, dtype=jnp.float32)
      # Where it is not too long, it may be zero.
      direction = grad / jnp.where(too_long, grad_norm, 1)
      clipped = (direction * max_norm).astype(grad.dtype)
      return jnp.where(too_long, clipped, grad)

    updates = jax.tree.map_with_path(clip, updates, params)
    return updates, AdaptiveGradClipState(num_clipped / max(num_units, 1))

  return optax.GradientTransformation(init_fn, update_fn)
