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
  """Clips each unit of each example's gradient, and takes the mean.

  What `adaptive_grad_clip` does to the gradient of a batch, this does to that
  of each example before they are averaged. As optax's transformations of the
  kind (`optax.contrib.differentially_private_aggregate`) it comes first in a
  chain, and takes what `jax.vmap(jax.grad(loss), (None, 0))` gives. By the norm
  of all of a gradient, `optax.per_example_global_norm_clip` clips.

  Args:
    clipping: of `adaptive_grad_clip`.
    eps: of `adaptive_grad_clip`.
    mask: from parameters to bools: which of them are clipped, such as
      `clip_mask`; the others are only averaged. `optax.masked` would leave the
      axis of the examples to these. None clips all.
    axis: of `adaptive_grad_clip`; without the axis of the examples.

  Returns:
    An optax transformation. Its `update` needs `params` and raises ValueError
    without, or where an array is not of a parameter's shape with the examples
    in front: [B, ...]. The updates that it gives have the parameters' shapes.
    Its state is `AdaptiveGradClipState`, of all units of all examples.

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
  """Raises ValueError unless each update has one axis more, of one size."""
  size = jax.tree.leaves(updates)[0].shape[:1]

  def check(update, param):
    if update.shape != (*size, *param.shape):
      raise ValueError(
        'per_example_adaptive_grad_clip takes the gradient of each example, '
        f'[B, ...]: {list(update.shape)} is none of a parameter '
        f'{list(param.shape)}.'
      )

  jax.tree.map(check, updates, params)
