"""Adaptive gradient clipping (arXiv 2102.06171, section 4)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdaptiveGradClipState(NamedTuple):
  """State of `adaptive_grad_clip`.

  Attributes:
    fraction_clipped: float32 scalar, the fraction of units that the last update
      clipped. Find it in a composed state with `optax.tree.get`.
  """

  fraction_clipped: jax.Array


def unitwise_norm(x: jax.Array) -> jax.Array:
  """Returns the norm of the weights that feed each output.

  Args:
    x: any array of rank up to 5, with the output axis last.

  Returns:
    The L2 norm over all axes but the last, which keep size 1; over everything
    for scalars and for arrays with at most one axis longer than 1. float32, or
    float64 for such x.

  Raises:
    ValueError: for a rank above 5.
  """
  if x.ndim > 5:
    raise ValueError(f'No known meaning for a parameter of shape {x.shape}.')
  vector = sum(size > 1 for size in x.shape) <= 1
  axes = tuple(range(x.ndim if vector else x.ndim - 1))
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def adaptive_grad_clip(
  clipping: float = 0.01, eps: float = 1e-3
) -> optax.GradientTransformation:
  """Clips each unit's gradient to a multiple of the unit's norm.

  Where the norm of the gradient of the weights that feed one output exceeds
  clipping * max(norm of these weights, eps), it is scaled down to it (equation
  3). Parameters are HWIO or IO kernels, or any array whose last axis is the
  output; a vector is one unit.

  Differs from `optax.adaptive_grad_clip` in that rank 3 keeps only the last
  axis, and in that the state tells the fraction of units that were clipped.

  Args:
    clipping: largest ratio of the two norms.
    eps: least norm of the weights that is reckoned with, so that weights that
      start at zero can move.

  Returns:
    An optax transformation. Its `update` needs `params` and raises ValueError
    without.
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

    def clip(grad, param):
      nonlocal num_units, num_clipped
      grad_norm, param_norm = unitwise_norm(grad), unitwise_norm(param)
      max_norm = clipping * jnp.maximum(param_norm, eps)
      too_long = grad_norm > max_norm
      num_units += math.prod(too_long.shape)
      num_clipped += jnp.sum(too_long, dtype=jnp.float32)
      scale = jnp.where(too_long, max_norm / grad_norm, 1)
      return (grad * scale).astype(grad.dtype)

    updates = jax.tree.map(clip, updates, params)
    return updates, AdaptiveGradClipState(num_clipped / max(num_units, 1))

  return optax.GradientTransformation(init_fn, update_fn)
