"""The gradient of a batch on one device: at once, or part by part.

And of each example by itself, clipped before the mean is taken.
"""

from collections.abc import Callable
import math

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments import loss as loss_lib
from nfnets import conv, optim

# From (parameters, state, batch, key) to (gradient, (state, metrics)).
Gradient = Callable[
  [hk.Params, hk.State, loss_lib.Batch, jax.Array],
  tuple[hk.Params, tuple[hk.State, loss_lib.Metrics]],
]


def make_gradient(
  loss_fn: Callable, config: ml_collections.ConfigDict
) -> Gradient:
  """Builds the mean gradient over a batch.

  Args:
    loss_fn: of `loss.make_loss`.
    config: the experiment's. A batch is computed in `accumulate_steps` parts,
      one after the other. With `clip_per_example` the mean is that of each
      example's clipped gradient, `per_example.chunk` examples at a time.

  Returns:
    A function that also returns the state after the last part, and the means of
    the metrics, with `fraction_clipped` of examples' gradients.
  """
  grad_fn = jax.grad(loss_fn, has_aux=True)
  if config.clip_per_example:
    grad_fn = _of_each_example(grad_fn, config)

  def gradient(params, state, batch, rng):
    parts = _count_parts(config, batch)
    if parts == 1:
      return grad_fn(params, state, batch, rng)

    def add_part(total_and_state, batch_and_rng):
      total, state = total_and_state
      grads, (state, metrics) = grad_fn(params, state, *batch_and_rng)
      total = jax.tree.map(lambda t, g: t + g / parts, total, grads)
      return (total, state), metrics

    with conv.in_loop():
      (grads, state), metrics = jax.lax.scan(
        add_part,
        (jax.tree.map(jnp.zeros_like, params), state),
        (_split(batch, parts), jax.random.split(rng, parts)),
      )
    return grads, (state, jax.tree.map(jnp.mean, metrics))

  return gradient


def _count_parts(
  config: ml_collections.ConfigDict, batch: loss_lib.Batch
) -> int:
  """Returns how many parts a batch is computed in."""
  chunk = config.per_example.chunk
  if not config.clip_per_example or not chunk:
    return config.accumulate_steps
  # Chunks divide the parts of accumulation, so these go up in them.
  rows = chunk * config.augmentation_multiplicity
  return batch['labels'].shape[0] // rows


def _split(batch: loss_lib.Batch, parts: int) -> loss_lib.Batch:
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


def _of_each_example(
  grad_fn: Callable, config: ml_collections.ConfigDict
) -> Gradient:
  """Builds the mean of each example's clipped gradient, all at once.

  The gradient of an example is that of the mean loss of its
  `augmentation_multiplicity` rows, which are next to each other.
  """
  clip = _CLIPS[config.clip_per_example]
  rows = config.augmentation_multiplicity

  def gradient(params, state, batch, rng):
    number = batch['labels'].shape[0] // rows
    with conv.of_examples():
      grads, (_, metrics) = jax.vmap(grad_fn, (None, None, 0, 0))(
        params, state, _split(batch, number), jax.random.split(rng, number)
      )
    grads, fraction = clip(grads, params, config)
    metrics = jax.tree.map(jnp.mean, metrics)
    return grads, (state, {**metrics, 'fraction_clipped': fraction})

  return gradient


def _clip_units(grads, params, config):
  """Clips the layers that `nfnets.optim.sgd_agc` would."""
  clip = optim.per_example_adaptive_grad_clip(
    config.per_example.clipping,
    config.per_example.eps,
    optim.clipped_layers(config.clip_layers, params),
  )
  grads, state = clip.update(grads, clip.init(params), params)
  return grads, state.fraction_clipped


def _clip_norm(grads, params, config):
  del params
  leaves, tree = jax.tree.flatten(grads)
  number = leaves[0].shape[0]
  sums, clipped = optax.per_example_global_norm_clip(
    leaves, config.per_example.clipping
  )
  return tree.unflatten([x / number for x in sums]), clipped / number


_CLIPS = {'unit': _clip_units, 'norm': _clip_norm}


def check(
  config: ml_collections.ConfigDict, state: hk.State, num_devices: int
) -> None:
  """Raises ValueError for settings of `clip_per_example` that do not fit.

  Args:
    config: the experiment's.
    state: of the network, or its shapes.
    num_devices: how many share a batch.
  """
  if not config.clip_per_example:
    return
  if config.clip_per_example not in _CLIPS:
    raise ValueError(
      f'clip_per_example is {config.clip_per_example!r}; it must be '
      f"{', '.join(map(repr, _CLIPS))} or ''."
    )
  if jax.tree.leaves(state):
    raise ValueError(
      f'clip_per_example: {config.model} has BatchNorm, with which the loss of '
      'an example depends on the others of its batch, so that none has a '
      'gradient of its own; a network without it is nf_resnet50.'
    )
  if config.sam_rho:
    raise ValueError(
      f'clip_per_example: sam_rho is {config.sam_rho}, and the point that SAM '
      'ascends to follows from many examples together; --sam_rho=0 is without.'
    )
  settings = config.per_example
  for key in ('clipping', 'eps'):
    if not settings[key] > 0:
      raise ValueError(
        f'per_example.{key} is {settings[key]}; it must be positive.'
      )
  part = config.train_batch_size // num_devices // config.accumulate_steps
  if settings.chunk < 0 or settings.chunk and part % settings.chunk:
    raise ValueError(
      f'per_example.chunk is {settings.chunk}, which does not divide the '
      f'{part} examples that each device computes at a time; 0 is all of them.'
    )


def ascent_part(
  batch: loss_lib.Batch, config: ml_collections.ConfigDict
) -> loss_lib.Batch:
  """Returns the part of a batch that SAM's ascent takes: `sam_fraction`."""
  parts = config.accumulate_steps
  size = batch['labels'].shape[0]
  size = parts * math.ceil(config.sam_fraction * size / parts)
  return jax.tree.map(lambda x: x[:size], batch)
