"""The gradient of a batch on one device, and the norms of its layers.

The gradient is computed at once or part by part, or it is the mean of each
example's own gradient, clipped. `log_layers` reports each layer's norms: the
numbers of all layers travel in one array each, and become curves of their own,
with names that sort by depth, where they are written.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from nfnets import conv, module_names, optim
from nfnets.errors import UserError
from nfnets.optim import layers

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# From (parameters, state, batch, key) to (gradient, (state, metrics)).
Gradient = Callable[
  [hk.Params, hk.State, Batch, jax.Array],
  tuple[hk.Params, tuple[hk.State, Metrics]],
]
# The name of the layers' norms in the metrics of a step, and of their curves.
LAYERS, _PREFIX = 'layers', 'layers_'


def make_gradient(
  loss_fn: Callable, config: ml_collections.ConfigDict
) -> Gradient:
  """Builds the mean gradient over a batch.

  Args:
    loss_fn: of `step.make_loss`.
    config: the experiment's. A batch is computed in `accumulate_steps` parts,
      one after the other. With `clip_per_example` the mean is that of each
      example's clipped gradient, `per_example.chunk` examples at a time.

  Returns:
    A function that also returns the state after the last part, and the means of
    the metrics, with `fraction_clipped` of examples' gradients.
  """
  grad_fn = jax.grad(loss_fn, has_aux=True)
  if config.clip_per_example:
    grad_fn = _clip_per_example(grad_fn, config)

  def gradient(params, state, batch, rng):
    parts = config.accumulate_steps
    if config.clip_per_example and config.per_example.chunk:
      # Chunks divide the parts of accumulation, so they take their place.
      rows = config.per_example.chunk * config.augmentation_multiplicity
      parts = batch['labels'].shape[0] // rows
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


def _split(batch: Batch, parts: int) -> Batch:
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


def _clip_per_example(
  grad_fn: Callable, config: ml_collections.ConfigDict
) -> Gradient:
  """Builds the mean of each example's clipped gradient, all at once.

  The gradient of an example is that of the mean loss of its
  `augmentation_multiplicity` rows, which are next to each other. With 'unit'
  the layers are clipped that `nfnets.optim.sgd_agc` would clip.
  """
  settings = config.per_example

  def gradient(params, state, batch, rng):
    number = batch['labels'].shape[0] // config.augmentation_multiplicity
    with conv.per_example():
      grads, (_, metrics) = jax.vmap(grad_fn, (None, None, 0, 0))(
        params, state, _split(batch, number), jax.random.split(rng, number)
      )
    if config.clip_per_example == 'unit':
      clip = optim.per_example_adaptive_grad_clip(
        settings.clipping,
        settings.eps,
        optim.clipped_layers(config.clip_layers, params),
      )
      grads, clip_state = clip.update(grads, clip.init(params), params)
      fraction = clip_state.fraction_clipped
    else:
      leaves, tree = jax.tree.flatten(grads)
      sums, clipped = optax.per_example_global_norm_clip(
        leaves, settings.clipping
      )
      grads = tree.unflatten([x / number for x in sums])
      fraction = clipped / number
    metrics = jax.tree.map(jnp.mean, metrics)
    return grads, (state, {**metrics, 'fraction_clipped': fraction})

  return gradient


def check(
  config: ml_collections.ConfigDict, state: hk.State, num_devices: int
) -> None:
  """Raise UserError for settings of `clip_per_example` that do not fit.

  Args:
    config: the experiment's.
    state: of the network, or its shapes.
    num_devices: how many share a batch.
  """
  settings = config.per_example
  part = config.train_batch_size // num_devices // config.accumulate_steps
  chunk = part if settings.chunk is None else settings.chunk
  for is_wrong, message in (
    (
      config.clip_per_example not in ('unit', 'norm'),
      f'clip_per_example is {config.clip_per_example!r}; it must be '
      "'unit', 'norm' or None.",
    ),
    (
      jax.tree.leaves(state),
      f'clip_per_example: {config.model} has BatchNorm, with which the loss of '
      'an example depends on the others of its batch, so that none has a '
      'gradient of its own; a network without it is nf_resnet50.',
    ),
    (
      config.sam_rho,
      f'clip_per_example: sam_rho is {config.sam_rho}, and the point that SAM '
      'ascends to follows from many examples together; --sam_rho=0 is without.',
    ),
    (
      min(settings.clipping, settings.eps) <= 0,
      f'per_example.clipping is {settings.clipping} and per_example.eps '
      f'{settings.eps}; they must be positive.',
    ),
    (
      chunk < 1 or part % chunk,
      f'per_example.chunk is {chunk}, which does not divide the {part} '
      'examples that each device computes at a time; None is all.',
    ),
  ):
    if is_wrong:
      raise UserError(message, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layers:
  """Numbers of each layer that has a matrix or a kernel, from the input on.

  Units are what AGC clips: the weights that feed one output. Their ratio is the
  norm of the gradient over that of the weights, which counts as `eps` at least.

  Attributes:
    names: of the layers, below the network's own.
    max_ratio: float32 [L], the highest ratio of a layer's units.
    median_ratio: float32 [L].
    fraction_clipped: float32 [L], of the units; None where nothing is clipped.
  """

  names: tuple[str, ...] = dataclasses.field(metadata={'static': True})
  max_ratio: jax.Array
  median_ratio: jax.Array
  fraction_clipped: jax.Array | None

  def scalars(self) -> Iterator[tuple[str, float]]:
    """Yields (name of a curve, its value)."""
    for field in ('max_ratio', 'median_ratio', 'fraction_clipped'):
      values = getattr(self, field)
      if values is not None:
        for i, value in enumerate(np.asarray(values)):
          yield f'{_PREFIX}{field}/{i:03d} {self.names[i]}', value.item()


def measure_layers(
  params: hk.Params,
  grads: hk.Params,
  opt_state: optax.OptState,
  config: ml_collections.ConfigDict,
) -> Layers:
  """Measures the layers in one update.

  Args:
    params: before the update.
    grads: of the loss, before they are clipped.
    opt_state: the optimizer's, which may have the clipping in it.
    config: the experiment's.
  """
  kwargs = config.optimizer.kwargs
  clipping, eps = None, 1e-3
  # After the gradients of single examples are clipped, the clipping of their
  # mean says nothing.
  if config.optimizer.name == 'sgd_agc' and not config.clip_per_example:
    clipping = kwargs.get('clipping', 0.01)
    clipping = optax.tree.get(opt_state, 'clipping', clipping)
    eps = kwargs.get('eps', eps)
  is_clipped = optim.clipped_layers(config.clip_layers, params)(params)

  kernels = [
    (*layers.path(keys), param, grad, clips)
    for (keys, param), grad, clips in zip(
      jax.tree_util.tree_flatten_with_path(params)[0],
      jax.tree.leaves(grads),
      jax.tree.leaves(is_clipped),
      strict=True,
    )
    if sum(size > 1 for size in param.shape) > 1
  ]
  # Paths come sorted, and their sort is kept where the depth is the same.
  kernels.sort(key=lambda kernel: module_names.depth(kernel[0]))
  names, ratios, clipped = [], [], []
  for module, name, param, grad, clips in kernels:
    ratio = optim.unitwise_norm(grad) / jnp.maximum(
      optim.unitwise_norm(param), eps
    )
    ratios.append(ratio.reshape(-1))
    if clipping is not None:
      clipped.append(jnp.mean(clips * (ratio > clipping), dtype=jnp.float32))
    parts = module_names.parts(module)[1:] or [module]
    names.append('/'.join(parts if name == 'w' else [*parts, name]))
  # Padded, to be sorted as one: compiling a sort per layer takes a minute.
  most = max(len(ratio) for ratio in ratios)
  padded = jnp.stack(
    [
      jnp.pad(ratio, (0, most - len(ratio)), constant_values=jnp.nan)
      for ratio in ratios
    ]
  )
  return Layers(
    tuple(names),
    jnp.nanmax(padded, axis=1),
    jnp.nanmedian(padded, axis=1),
    jnp.stack(clipped) if clipped else None,
  )
