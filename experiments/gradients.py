"""The gradient of a batch on one device: at once, or part by part."""

from collections.abc import Callable
import math

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections

from experiments import loss as loss_lib
from nfnets import conv

# From (parameters, state, batch, key) to (gradient, (state, metrics)).
Gradient = Callable[
  [hk.Params, hk.State, loss_lib.Batch, jax.Array],
  tuple[hk.Params, tuple[hk.State, loss_lib.Metrics]],
]


def make_gradient(loss_fn: Callable, accumulate_steps: int) -> Gradient:
  """Builds the mean gradient over a batch.

  Args:
    loss_fn: of `loss.make_loss`.
    accumulate_steps: parts that a batch is computed in, one after the other.

  Returns:
    A function that also returns the state after the last part, and the means of
    the metrics.
  """
  grad_fn = jax.grad(loss_fn, has_aux=True)
  parts = accumulate_steps
  if parts == 1:
    return grad_fn

  def gradient(params, state, batch, rng):
    def add_part(total_and_state, batch_and_rng):
      total, state = total_and_state
      grads, (state, metrics) = grad_fn(params, state, *batch_and_rng)
      total = jax.tree.map(lambda t, g: t + g / parts, total, grads)
      return (total, state), metrics

    with conv.in_loop():
      (grads, state), metrics = jax.lax.scan(
        add_part,
        (jax.tree.map(jnp.zeros_like, params), state),
        (
          jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch),
          jax.random.split(rng, parts),
        ),
      )
    return grads, (state, jax.tree.map(jnp.mean, metrics))

  return gradient


def ascent_part(
  batch: loss_lib.Batch, config: ml_collections.ConfigDict
) -> loss_lib.Batch:
  """Returns the part of a batch that SAM's ascent takes: `sam_fraction`."""
  parts = config.accumulate_steps
  size = batch['labels'].shape[0]
  size = parts * math.ceil(config.sam_fraction * size / parts)
  return jax.tree.map(lambda x: x[:size], batch)
