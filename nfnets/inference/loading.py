"""Weights for any number of classes, on any runtime: `nfnets.load`."""

import dataclasses
import functools
from typing import Any

import haiku as hk
import jax

from nfnets import initialization, module_names, zoo
from nfnets.inference import networks, runtimes
from nfnets.weights import files, opening


def load(
  name_or_path: files.Path,
  num_classes: int | None = None,
  seed: int = 0,
  *,
  runtime: str = 'jax',
  precision: str = 'float32',
  threads: int | None = None,
) -> tuple[zoo.Model, hk.Params, hk.State]:
  """Return a model with its weights, for any number of classes.

  Args:
    name_or_path: 'nfnet_f0', which is fetched once, or what else
      `nfnets.weights.find` takes.
    num_classes: how many classes the last layer is to have; that of the weights
      if None. Where the weights have another number, the last layer is a new
      one; 0 leaves it out.
    seed: seed of the new last layer.
    runtime: what computes `logits`, `features` and `embed`: 'jax', in functions
      that can be traced, or 'onnxruntime', 'openvino' or 'auto', the fastest
      that is installed. Other runtimes compute them for the parameters that are
      returned here alone, which cannot be written to then, and give NumPy
      arrays.
    precision: what they compute in, 'float32' or 'bfloat16', which JAX does not
      do here: cast the parameters and the images for that.
    threads: number of threads. None: all cores. JAX always uses all.

  Returns:
    The model, its parameters and its state, float32, {module: {name: array}}.

  Raises:
    OSError: if there is no such file, or it cannot be fetched.
    ValueError: if it is no file of weights, or they fit no model, or for an
      impossible number of classes, runtime or precision.

  Example:
    >>> model, params, state = nfnets.load('digits.npz', num_classes=5)
    >>> model.logits(params, images).shape
    (2, 5)
  """
  opened = functools.cache(
    lambda: _with_classes(opening.open_model(name_or_path), num_classes, seed)
  )
  chosen = runtimes.choose(runtime, precision, threads)
  if chosen.name == 'jax':
    if precision != 'float32':
      raise ValueError(
        'JAX computes in what the parameters and the images are: cast both to '
        f'{precision} for that.'
      )
    return opened()
  network = networks.on_runtime(
    chosen, opened, name_or_path, num_classes=num_classes, seed=seed
  )
  model, params, state = opened()
  for leaf in jax.tree.leaves((params, state)):
    leaf.flags.writeable = False
  fields = {x.name: getattr(model, x.name) for x in dataclasses.fields(model)}
  return _LoadedModel(**fields, network=network), params, state


@dataclasses.dataclass(frozen=True, eq=False)
class _LoadedModel(zoo.Model):
  """A model with another runtime than JAX, for the weights it came with.

  `logits`, `features` and `embed` run on it and return NumPy arrays. The rest,
  such as `apply`, is the model's in JAX.
  """

  network: networks.Network | None = dataclasses.field(default=None, repr=False)

  def _output(
    self, key: str, params: Any, images: Any, state: Any | None
  ) -> Any:
    network = self.network
    # The state belongs to the parameters anyhow.
    given = params, network.state if state is None else state
    leaves, own = map(jax.tree.leaves, (given, (network.params, network.state)))
    if [*map(id, leaves)] != [*map(id, own)]:
      raise ValueError(
        f'This {self.name} was loaded to run on {network.runtime}, which it '
        'does for the parameters that nfnets.load returned with it, as they '
        "are. nfnets.load(..., runtime='jax') gives one for any parameters."
      )
    if isinstance(images, jax.core.Tracer):
      raise ValueError(
        f'This {self.name} runs on {network.runtime}, which JAX cannot trace. '
        "nfnets.load(..., runtime='jax') gives one that it can."
      )
    return network.session.run(key, images)


def _with_classes(
  opened: tuple[zoo.Model, hk.Params, hk.State],
  num_classes: int | None,
  seed: int,
) -> tuple[zoo.Model, hk.Params, hk.State]:
  """Return a model with a last layer for so many classes."""
  model, params, state = opened
  if num_classes is None or num_classes == model.num_classes:
    return model, params, state
  is_last = module_names.is_last_layer
  model = zoo.with_num_classes(model, num_classes)
  params = {k: v for k, v in params.items() if not is_last(k)}
  if num_classes:
    specs, _ = initialization.trace(model.transformed)
    new = {name: spec for name, spec in specs.items() if is_last(name)}
    drawn = initialization.draw(new, jax.random.key(seed))
    params.update(jax.device_get(drawn))  # NumPy's, as all others.
  return model, params, state
