"""Sharpness-aware minimization (arXiv 2010.01412)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def _normalize() -> optax.GradientTransformation:
  """Divides updates by their global norm; zero stays zero."""

  def update_fn(updates, state, params=None):
    del params
    norm = optax.tree.norm(updates)
    scale = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
    return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state

  return optax.GradientTransformation(optax.init_empty_state, update_fn)


def sam(
  base: optax.GradientTransformation, rho: float = 0.05
) -> optax.GradientTransformationExtraArgs:
  """Takes the base optimizer's step with the gradient of a worse point nearby.

  With ascent gradient g, the base optimizer sees the gradient at params + rho *
  g / ||g|| (equation 2). `update` takes the ascent gradient as `updates` and
  the extra argument `grad_fn`, a function of (params, number of the ascent
  step) that returns the descent gradient:

    tx = sam(optax.sgd(0.1), rho=0.05)
    ascent = jax.grad(loss)(params, part_of_batch)
    descent = lambda p, _: jax.lax.pmean(jax.grad(loss)(p, batch), 'i')
    updates, state = tx.update(ascent, state, params, grad_fn=descent)

  The ascent gradient may come from a part of the batch, and differ between
  devices (section 4.1, "m-sharpness"); average the descent gradient.

  Args:
    base: the optimizer of the descent step.
    rho: length of the ascent step.

  Returns:
    An optax transformation with the extra argument `grad_fn`. `update` raises
    ValueError without `params` or without `grad_fn`.
  """
  ascent = optax.chain(_normalize(), optax.sgd(rho))
  inner = optax.contrib.sam(base, ascent, sync_period=2, opaque_mode=True)

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra: Any):
    del extra
    if params is None:
      raise ValueError('sam needs params: update(grads, state, params, ...).')
    if grad_fn is None:
      raise ValueError(
        'sam needs the descent gradient: call update(ascent_gradient, state, '
        'params, grad_fn=lambda params, i: descent_gradient).'
      )
    return inner.update(updates, state, params, grad_fn=grad_fn)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)
