"""Weights by name or path: their numbers, and the model that they are of."""

from collections.abc import Mapping
import functools
import os
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnets import zoo
from nfnets.weights import (
  fetching,
  files,
  hub,
  matching,
  metadata,
  shapes,
  timm,
)


def read_weights(name_or_path: files.Path) -> files.Weights:
  """Reads weights of Haiku's or timm's, as float32.

  Args:
    name_or_path: a file that `load_weights` reads, or a .safetensors or .pth
      file of one of timm's normalizer-free networks, which is converted; or
      what else stands for one, see `nfnets.weights.find`.

  Returns:
    Parameters and state.

  Raises:
    OSError: if there is no such file, or it cannot be fetched.
    ValueError: if it is no file of weights.
  """
  path = fetching.find(name_or_path)
  kind = files.recognize(path)
  tensors = {}
  is_torch = kind in ('torch_zip', 'torch_legacy')
  if is_torch or kind == 'safetensors' and not files.has_modules(path):
    tensors = files.load_tensors(path)
  if tensors and not any('/' in name for name in tensors):
    try:
      weights = files.Weights(timm.guess_tree(tensors), {})
    except ValueError as error:
      raise ValueError(f'{path}: {error}') from error
  else:
    del tensors
    weights = files.load_weights(path)

  def as_float32(x):
    if np.issubdtype(x.dtype, np.floating):
      return x.astype(np.float32, copy=False)
    return x

  return jax.tree.map(as_float32, weights)


def read_metadata(name_or_path: files.Path) -> dict[str, Any]:
  """Reads what `save_weights` was given as metadata, and no weights.

  Args:
    name_or_path: as `nfnets.weights.find` takes it.

  Returns:
    A dict of JSON values, empty where a file has none. What the keys mean, and
    that they have the type for it, is in nfnets/weights/metadata.py.

  Raises:
    OSError: if there is no such file, or it cannot be fetched.
    ValueError: if it is no file of weights, or its metadata are damaged.
  """
  return files.read_metadata(fetching.find(name_or_path))


def open_model(
  name_or_path: files.Path, name: str | None = None
) -> tuple[zoo.Model, hk.Params, hk.State]:
  """Reads weights and finds the model that they are of.

  Args:
    name_or_path: what `read_weights` takes.
    name: the model's name; if None, the one in the file's metadata or, without
      any, the one that the weights fit.

  Returns:
    The model, with as many classes as the weights have, its parameters and its
    state, float32. Sizes, preprocessing, normalization and the names of the
    classes are those of the metadata, where there are any.

  Raises:
    OSError: if there is no such file, or it cannot be fetched.
    ValueError: if it is no file of weights, or its weights fit no model, or not
      the one that was named.
  """
  path = fetching.find(name_or_path)
  params, state = read_weights(path)
  described = files.read_metadata(path)
  if name is None and not os.path.exists(name_or_path):
    name = hub.model_name(os.fspath(name_or_path))
  try:
    if name is None:
      name = described.get('model') or matching.identify(params).name
    model = _create(name, params, described)
    matching.check_fits(params, model, state)
    model = metadata.apply(model, described)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return model, params, state


def load(
  name_or_path: files.Path,
  num_classes: int | None = None,
  seed: int = 0,
  *,
  runtime: str = 'jax',
  precision: str = 'float32',
  threads: int | None = None,
) -> tuple[zoo.Model, hk.Params, hk.State]:
  """Returns a model with its weights, for any number of classes.

  Args:
    name_or_path: 'nfnet_f0', which is fetched once, or what else
      `nfnets.weights.find` takes.
    num_classes: how many classes the last layer is to have; that of the weights
      if None. Where the weights have another number, the last layer is a new
      one; 0 leaves it out.
    seed: of the new last layer.
    runtime: what computes `logits`, `features` and `embed`: 'jax', in functions
      that can be traced, or 'onnxruntime', 'openvino' or 'auto', the fastest
      that is installed. Other runtimes compute them for the parameters that are
      returned here alone, which cannot be written to then, and give NumPy
      arrays.
    precision: what they compute in, 'float32' or 'bfloat16', which JAX does not
      do here: cast the parameters and the images for that.
    threads: how many may compute; all cores if None. JAX takes all.

  Returns:
    The model, its parameters and its state, float32, {module: {name: array}}.

  Raises:
    OSError: if there is no such file, or it cannot be fetched.
    ValueError: if it is no file of weights, or they fit no model, or for an
      impossible number of classes, runtime or precision.
  """
  from nfnets.inference import networks

  opened = functools.cache(
    lambda: _with_classes(open_model(name_or_path), num_classes, seed)
  )
  chosen = networks.choose(runtime, precision, threads)
  if chosen == 'jax':
    if precision != 'float32':
      raise ValueError(
        'JAX computes in what the parameters and the images are: cast both to '
        f'{precision} for that.'
      )
    return opened()
  network = networks.on_graph(
    chosen,
    (precision, threads, False),
    opened,
    os.fspath(name_or_path),
    {'num_classes': num_classes, 'seed': seed},
  )
  from nfnets.inference.runtimes import loaded

  model, params, state = opened()
  return loaded.connect(model, params, state, network.runner), params, state


def _with_classes(
  opened: tuple[zoo.Model, hk.Params, hk.State],
  num_classes: int | None,
  seed: int,
) -> tuple[zoo.Model, hk.Params, hk.State]:
  """Returns a model with a last layer for so many classes."""
  model, params, state = opened
  if num_classes is None or num_classes == model.num_classes:
    return model, params, state
  head, _ = matching.last_layer(model, params)
  model = zoo.with_num_classes(model, num_classes)
  params = {k: v for k, v in params.items() if k not in head}
  if num_classes:
    params.update(_new_modules(model, head, seed))
  return model, params, state


def _new_modules(
  model: zoo.Model, modules: set[str], seed: int
) -> hk.MutableParams:
  """Returns new parameters of a few modules of a model.

  The network tells their initializers when it is traced. To compile all of it,
  as `model.init` does, takes a large one 40 s.
  """
  found = {}

  def look(next_creator, shape, dtype, init, context):
    module, _, name = context.full_name.rpartition('/')
    if module in modules:
      found.setdefault(module, {})[name] = functools.partial(init, shape, dtype)
    return next_creator(shape, dtype, init)

  def trace():
    with hk.custom_creator(look):
      shapes.of_model(model)

  def new():
    return {m: {k: f() for k, f in x.items()} for m, x in found.items()}

  hk.transform(trace).init(None)
  rng = jax.random.key(seed)
  return jax.device_get(hk.transform(new).apply({}, rng))


def _create(
  name: str, params: hk.Params, described: Mapping[str, Any]
) -> zoo.Model:
  """Returns the model of that name, with the arguments in the metadata."""
  zoo.get_entry(name)
  num_classes = matching.num_classes(params, name)
  kwargs = described.get('model_kwargs', {})
  if name != described.get('model', name):
    kwargs = {}
  try:
    model = zoo.create_model(name, num_classes, **kwargs)
    if kwargs:
      shapes.of_model(model)
  # Nothing is known about the arguments.
  except Exception as error:
    if not kwargs:
      raise
    raise ValueError(
      f'The metadata have arguments that {name} does not take: '
      f'{ascii(kwargs)[:200]}. {ascii(str(error))[1:-1][:200]}'
    ) from error
  return model
