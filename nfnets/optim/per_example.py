"""Adaptive gradient clipping of each example's own gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from nfnets.optim import agc
from nfnets.optim.layers import Mask


def per_example_adaptive_grad_clip(
  clipping: float = 0.01,
  eps: float = 1e-3,
  mask: Mask | None = None,
  axis: agc.Axis | Callable[[str, tuple[int, ...]], agc.Axis] = None,
) -> optax.GradientTransformation:
  """Clip each unit of each example's gradient, and average over examples.

  It does to each example's gradient what `adaptive_grad_clip` does to the
  gradient of a batch. Put it first in a chain, and give it the gradients of
  `jax.vmap(jax.grad(loss), (None, 0))`.
  (`optax.per_example_global_norm_clip` clips by the norm of the whole
  gradient instead.)

  Args:
    clipping: see `adaptive_grad_clip`.
    eps: see `adaptive_grad_clip`.
    mask: a function from parameters to a tree of bools, such as `clip_mask`:
      those to clip. The others are only averaged. None: clip all. (Do not use
      `optax.masked`: it would not average the others.)
    axis: see `adaptive_grad_clip`; without the axis of the examples.

  Returns:
    An optax transformation from gradients [B, ...] to updates [...]. Its
    `update` raises ValueError without `params`, and if a gradient does not have
    a parameter's shape behind the axis of the examples. Its state is an
    `AdaptiveGradClipState` of all units of all examples.

  Example:
    >>> each = jax.tree.map(lambda g: jnp.stack([g, g]), grads)  # [B, ...]
    >>> tx = optim.per_example_adaptive_grad_clip(0.01)
    >>> updates, tx_state = tx.update(each, tx.init(layers), layers)
  """
  clip = agc.adaptive_grad_clip(clipping, eps, axis)

  def init_fn(params):
    return clip.init(params)

  def update_fn(updates, state, params=None):
    del state
    if params is None:
      raise ValueError(
        'per_example_adaptive_grad_clip needs params: call '
        'update(grads, state, params).'
      )
    _check_shapes(updates, params)
    of_one = clip if mask is None else optax.masked(clip, mask)

    def clip_one(grads):
      grads, state = of_one.update(grads, of_one.init(params), params)
      return grads, optax.tree.get(state, 'fraction_clipped')

    clipped, fractions = jax.vmap(clip_one)(updates)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), clipped)
    return mean, agc.AdaptiveGradClipState(jnp.mean(fractions))

  return optax.GradientTransformation(init_fn, update_fn)


def _check_shapes(updates: optax.Updates, params: optax.Params) -> None:
  """Raise ValueError unless all updates have the same leading axis."""
  size = jax.tree.leaves(updates)[0].shape[:1]

  def check(update, param):
    if update.shape != (*size, *param.shape):
      raise ValueError(
        'per_example_adaptive_grad_clip needs the gradient of each example, '
        f'[B, ...]: for a parameter of shape {list(param.shape)} it got '
        f'{list(update.shape)}.'
      )

  jax.tree.map(check, updates, params)
