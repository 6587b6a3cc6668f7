"""What `log_layers` tells of each layer: how long its gradient is.

The numbers of all layers travel in one array each, and become curves of their
own, with names that sort by depth, where they are written.
"""

from collections.abc import Iterator
import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from nfnets import optim
from nfnets.optim import layers

# The name of all this in the metrics of a step.
NAME = 'layers'
PREFIX = 'layers_'


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
          yield f'{PREFIX}{field}/{i:03d} {self.names[i]}', value.item()


def measure(
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
  clipping = None
  # What is left to clip after examples' own gradients were says nothing.
  if config.optimizer.name == 'sgd_agc' and not config.clip_per_example:
    clipping = kwargs.get('clipping', 0.01)
    clipping = optax.tree.get(opt_state, 'clipping', clipping)
  eps = kwargs.get('eps', 1e-3) if clipping is not None else 1e-3
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
  kernels.sort(key=lambda kernel: layers.depth(kernel[0]))
  names, ratios, clipped = [], [], []
  for module, name, param, grad, clips in kernels:
    ratio = optim.unitwise_norm(grad) / jnp.maximum(
      optim.unitwise_norm(param), eps
    )
    ratios.append(ratio.reshape(-1))
    if clipping is not None:
      clipped.append(jnp.mean(clips * (ratio > clipping), dtype=jnp.float32))
    parts = module.replace('/~', '').split('/')[1:] or [module]
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
