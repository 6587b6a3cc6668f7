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
      clipped. `optax.tree.get` finds it in the state of a chain.

  Example:
    >>> tx = optim.adaptive_grad_clip(0.01)
    >>> _, tx_state = tx.update(grads, tx.init(layers), layers)
    >>> float(tx_state.fraction_clipped)
    1.0
  """

  fraction_clipped: jax.Array


def norm(x: jax.Array, axis: int | Sequence[int] | None = None) -> jax.Array:
  """Return the L2 norm over some axes, which keep size 1.

  The squares of large or tiny numbers do not overflow or underflow, and the
  derivative at zero is zero.

  Args:
    x: any array.
    axis: the axes to sum over. None: all axes.

  Returns:
    The norm, float64 for float64 x and float32 otherwise.
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
  """Return the L2 norm of each unit: the weights that feed one output.

  Args:
    x: any array. If `axis` is None, its rank is at most 5 and its last axis is
      the output.
    axis: the axes to sum over. None: all but the last axis; for scalars and
      arrays with at most one axis longer than 1, all axes.

  Returns:
    The norm, float64 for float64 x and float32 otherwise. The axes that it sums
    over keep size 1.

  Raises:
    ValueError: if the rank is above 5 and `axis` is None, or x has no such
      axis.

  Example:
    >>> optim.unitwise_norm(jnp.ones((3, 3, 16, 8))).shape
    (1, 1, 1, 8)
  """
  if axis is None:
    if x.ndim > 5:
      raise ValueError(
        f'The units of a parameter of shape {x.shape} are unknown: set `axis` '
        'to the axes to sum over.'
      )
    if sum(size > 1 for size in x.shape) > 1:
      axis = tuple(range(x.ndim - 1))
  return norm(x, axis)


def adaptive_grad_clip(
  clipping: float = 0.01,
  eps: float = 1e-3,
  axis: Axis | Callable[[str, tuple[int, ...]], Axis] = None,
) -> optax.GradientTransformation:
  """Clip each unit's gradient to a multiple of the unit's norm.

  A unit is the weights that feed one output. A gradient whose norm is larger
  than clipping * max(norm of the unit, eps) is scaled down to that norm
  (equation 3). By default the last axis of a parameter is the output, as in
  HWIO and IO kernels, and a vector is one unit. For other layouts, `axis` names
  the axes that a unit's norm sums over:

    adaptive_grad_clip(0.01, axis=(1, 2, 3))  # OIHW kernels.

    def axis(path, shape):
      if path.endswith('query/kernel'):  # [d, heads, head_dim].
        return 0
      return None  # The default rule.

  `optax.adaptive_grad_clip` keeps the last two axes of parameters of rank 3,
  and its state does not hold the fraction of clipped units.

  Args:
    clipping: largest ratio of the norms of gradient and unit.
    eps: lower bound on the weight norm, so that zero weights can move.
    axis: see `unitwise_norm`; or a function that returns it from a parameter's
      path, such as 'layer_0/query/kernel', and its shape.

  Returns:
    An optax transformation. Its `update` raises ValueError without `params`.

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
      # A norm that is not too long may be zero.
      direction = grad / jnp.where(too_long, grad_norm, 1)
      clipped = (direction * max_norm).astype(grad.dtype)
      return jnp.where(too_long, clipped, grad)

    updates = jax.tree.map_with_path(clip, updates, params)
    return updates, AdaptiveGradClipState(num_clipped / max(num_units, 1))

  return optax.GradientTransformation(init_fn, update_fn)
