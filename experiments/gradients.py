"""Gradients of a batch on one device, and norms per layer.

The gradient is computed for the whole batch, in parts (`accumulate_steps`), or
as the mean of clipped gradients per example (`clip_per_example`). `log_layers`
reports the norms of each layer.
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
# Key of the norms per layer in the metrics, and prefix of their curves.
LAYERS, _PREFIX = 'layers', 'layers_'


def make_gradient(
  loss_fn: Callable, config: ml_collections.ConfigDict
) -> Gradient:
  """Build the mean gradient over a batch.

  Args:
    loss_fn: what `step.make_loss` returns.
    config: the experiment's. `accumulate_steps` parts of a batch are computed
      one after another. With `clip_per_example`, each example's gradient is
      clipped before averaging, `per_example.chunk` examples at a time.

  Returns:
    A `Gradient`. It returns the state after the last part, and the mean
    metrics; with `clip_per_example` also `fraction_clipped`.
  """
  grad_fn = jax.grad(loss_fn, has_aux=True)
  if config.clip_per_example:
    grad_fn = _clip_per_example(grad_fn, config)

  def gradient(params, state, batch, rng):
    parts = config.accumulate_steps
    if config.clip_per_example and config.per_example.chunk:
      # Chunks divide the parts of accumulation, and replace them.
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
  """Build the mean of clipped gradients per example, for all at once.

  An example's loss is the mean over its `augmentation_multiplicity` rows, which
  are adjacent. 'unit' clips the same layers as `nfnets.optim.sgd_agc`.
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
  """Raise UserError if `clip_per_example` does not fit the other settings.

  Args:
    config: the experiment's.
    state: the network's state, or its shapes.
    num_devices: the number of devices that share a batch.
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
      f'clip_per_example: {config.model} has BatchNorm, so the loss of an '
      'example depends on the rest of its batch, and there is no gradient per '
      'example. Use a network without it, such as nf_resnet50.',
    ),
    (
      config.sam_rho,
      f'clip_per_example does not work with SAM (sam_rho is {config.sam_rho}), '
      'whose ascent needs many examples; use --sam_rho=0.',
    ),
    (
      min(settings.clipping, settings.eps) <= 0,
      f'per_example.clipping is {settings.clipping} and per_example.eps is '
      f'{settings.eps}; both must be positive.',
    ),
    (
      chunk < 1 or part % chunk,
      f'per_example.chunk is {chunk}; it must divide the {part} examples that '
      'each device computes at a time. None: all of them.',
    ),
  ):
    if is_wrong:
      raise UserError(message, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layers:
  """Norms of the L layers with a kernel, ordered by depth.

  A unit is the weights that feed one output. Its ratio is the norm of its
  gradient over max(norm of its weights, eps), as in AGC.

  Attributes:
    names: module names, without the network's.
    max_ratio: float32 [L], the largest ratio of the units of each layer.
    median_ratio: float32 [L], their median.
    fraction_clipped: float32 [L], the fraction of units that AGC clips; None
      without AGC.
  """

  names: tuple[str, ...] = dataclasses.field(metadata={'static': True})
  max_ratio: jax.Array
  median_ratio: jax.Array
  fraction_clipped: jax.Array | None

  def scalars(self) -> Iterator[tuple[str, float]]:
    """Yield (name of a curve, value); names sort by depth."""
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
  """Measure the norms per layer in one update.

  Args:
    params: before the update.
    grads: gradients of the loss, before clipping.
    opt_state: the optimizer's; with `traced_hyperparams` it holds the clipping.
    config: the experiment's.
  """
  kwargs = config.optimizer.kwargs
  clipping, eps = None, 1e-3
  # With clipping per example, the optimizer does not clip.
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
  # A stable sort: layers of the same depth stay sorted by path.
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
  # Padded, because compiling one sort per layer would take a minute.
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
