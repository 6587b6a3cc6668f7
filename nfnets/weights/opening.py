"""Weights by name or path: their numbers, and the model that they are of."""

from collections.abc import Mapping
import os
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnets import errors, messages, module_names, zoo
from nfnets.weights import fetching, files, hub, matching, metadata


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

  Example:
    >>> params, state = weights.read_weights('digits.npz')
  """
  weights = files.load_any(fetching.find(name_or_path))
  return jax.tree.map(
    lambda x: x.astype(np.float32, copy=False) if x.dtype.kind == 'f' else x,
    weights,
  )


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

  Example:
    >>> weights.read_metadata('digits.npz')
    {}
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

  Example:
    >>> model, params, state = weights.open_model('digits.npz')
  """
  path = fetching.find(name_or_path)
  params, state = read_weights(path)
  described = files.read_metadata(path)
  if name is None and not os.path.exists(name_or_path):
    name = hub.model_name(os.fspath(name_or_path))
  with errors.prefix(str(path)):
    if name is None:
      name = described.get('model') or matching.identify(params).name
    model = _create(name, params, described)
    matching.check_fits(params, model, state)
    return metadata.apply(model, described), params, state


def _create(
  name: str, params: hk.Params, described: Mapping[str, Any]
) -> zoo.Model:
  """Returns the model of that name, with the arguments in the metadata."""
  num_classes = module_names.num_classes(params)
  plain = zoo.create_model(name, num_classes)
  kwargs = described.get('model_kwargs')
  if not kwargs or name != described.get('model', name):
    return plain
  try:
    model = zoo.create_model(name, num_classes, **kwargs)
    matching.model_shapes(model)
  except Exception as error:  # Nothing is known about the arguments.
    # Raises what is wrong without them, too, which they are not to blame for.
    matching.model_shapes(plain)
    raise ValueError(
      f'The metadata have arguments that {name} does not take: '
      f'{ascii(kwargs)[:200]}. {messages.one_line(error)}'
    ) from error
  return model
