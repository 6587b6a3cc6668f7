"""Sharpness-aware minimization (arXiv 2010.01412)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nfnets.optim import agc


def sam_ascent(
  params: optax.Params, gradient: optax.Updates, rho: float = 0.05
) -> optax.Params:
  """Return params + rho * g / ||g||, where the loss is higher (equation 2).

  Args:
    params: tree of arrays.
    gradient: g, a tree of the same shapes. It may come from a part of the
      batch, and differ between devices (section 4.1, "m-sharpness"). If it is
      zero, the function returns `params`.
    rho: length of the step.

  Returns:
    A tree with the shapes and dtypes of `params`. Compute the gradient for the
    descent step there, on the whole batch, averaged over devices.

  Example:
    >>> worse = optim.sam_ascent(layers, grads, rho=0.05)
  """
  norms = [agc.norm(g).ravel() for g in jax.tree.leaves(gradient)]
  norm = agc.norm(jnp.concatenate(norms))[0]
  norm = jnp.where(norm > 0, norm, 1)
  return jax.tree.map(
    lambda p, g: (p + rho * (g / norm)).astype(p.dtype), params, gradient
  )


def sam_descent(
  base: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Return the base optimizer with the state of `sam`.

  For training steps that compute both gradients themselves:

    worse = sam_ascent(params, ascent_gradient, rho)
    loss, grads = jax.value_and_grad(loss_fn)(worse, batch)
    updates, state = sam_descent(base).update(grads, state, params)

  Args:
    base: the optimizer of the descent step. Its `update` gets the gradient at
      the point of `sam_ascent` and the parameters before it, for weight decay
      and AGC.

  Returns:
    An optax transformation whose `update` calls that of `base`.

  Example:
    >>> tx = optim.sam_descent(optax.sgd(0.1))
    >>> updates, tx_state = tx.update(grads, tx.init(layers), layers)
  """
  base = optax.with_extra_args_support(base)

  def init_fn(params):
    # The tree of optax.contrib.sam in its opaque mode, because checkpoints hold
    # it; only `opt_state` ever changes.
    empty = optax.EmptyState()
    return optax.contrib.SAMState(
      steps_since_sync=jnp.zeros((), jnp.int32),
      opt_state=base.init(params),
      adv_state=(empty, (empty, empty)),
      cache=None,
    )

  def update_fn(updates, state, params=None, **extra: Any):
    updates, opt_state = base.update(updates, state.opt_state, params, **extra)
    return updates, state._replace(opt_state=opt_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def sam(
  base: optax.GradientTransformation, rho: float = 0.05
) -> optax.GradientTransformationExtraArgs:
  """Return SAM: the base optimizer, with the gradient at the ascended point.

  `update` does `sam_ascent` and `sam_descent`. Its `updates` are the ascent
  gradient, and its extra argument `grad_fn` is a function of (params, 0) that
  returns the descent gradient:

    tx = sam(optax.sgd(0.1), rho=0.05)
    ascent = jax.grad(loss)(params, part_of_batch)
    descent = lambda p, _: jax.lax.pmean(jax.grad(loss)(p, batch), 'i')
    updates, state = tx.update(ascent, state, params, grad_fn=descent)

  Args:
    base: the optimizer of the descent step.
    rho: length of the ascent step.

  Returns:
    An optax transformation with the extra argument `grad_fn`. `update` raises
    ValueError without `params` or without `grad_fn`.

  Example:
    >>> tx = optim.sam(optax.sgd(0.1), rho=0.05)
    >>> updates, tx_state = tx.update(
    ...   grads, tx.init(layers), layers, grad_fn=lambda params, i: grads
    ... )
  """
  descent = sam_descent(base)

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra: Any):
    if params is None:
      raise ValueError('sam needs params: update(grads, state, params, ...).')
    if grad_fn is None:
      raise ValueError(
        'sam needs the descent gradient: call update(ascent_gradient, state, '
        'params, grad_fn=lambda params, i: descent_gradient).'
      )
    updates = grad_fn(sam_ascent(params, updates, rho), 0)
    return descent.update(updates, state, params, **extra)

  return optax.GradientTransformationExtraArgs(descent.init, update_fn)
