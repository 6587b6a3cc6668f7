"""Reads weights by name or path, and builds their model."""

from collections.abc import Mapping
import os
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnets import errors, messages, module_names, zoo
from nfnets.weights import fetching, files, hub, matching, metadata


def read_weights(name_or_path: files.Path) -> files.Weights:
  """Read Haiku's or timm's weights as float32.

  Args:
    name_or_path: a file that `load_weights` reads, a .safetensors or .pth file
      of one of timm's normalizer-free networks, or another name that
      `nfnets.weights.find` accepts.

  Returns:
    Parameters and state.

  Raises:
    OSError: if the file does not exist or the download fails.
    ValueError: if the file does not contain weights.

  Example:
    >>> params, state = weights.read_weights('digits.npz')
  """
  weights = files.load_any(fetching.find(name_or_path))
  return jax.tree.map(
    lambda x: x.astype(np.float32, copy=False) if x.dtype.kind == 'f' else x,
    weights,
  )


def read_metadata(name_or_path: files.Path) -> dict[str, Any]:
  """Read only the metadata of a file of weights.

  Args:
    name_or_path: a name that `nfnets.weights.find` accepts.

  Returns:
    A dict of JSON values, or {}. nfnets/weights/metadata.py describes and
    checks the keys.

  Raises:
    OSError: if the file does not exist or the download fails.
    ValueError: if the file does not contain weights, or its metadata are
      damaged.

  Example:
    >>> weights.read_metadata('digits.npz')
    {}
  """
  return files.read_metadata(fetching.find(name_or_path))


def open_model(
  name_or_path: files.Path, name: str | None = None
) -> tuple[zoo.Model, hk.Params, hk.State]:
  """Read weights and build their model.

  Args:
    name_or_path: a name that `read_weights` accepts.
    name: name of the model. None: the name in the file's metadata, or the model
      that the weights fit.

  Returns:
    The model with the number of classes of the weights, the parameters and the
    state, float32. Sizes, preprocessing, normalization and class names are from
    the metadata, if present.

  Raises:
    OSError: if the file does not exist or the download fails.
    ValueError: if the file does not contain weights, or the weights do not fit
      the named model or any model.

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
  """Build a model with the arguments in the metadata."""
  num_classes = module_names.num_classes(params)
  plain = zoo.create_model(name, num_classes)
  kwargs = described.get('model_kwargs')
  if not kwargs or name != described.get('model', name):
    return plain
  try:
    model = zoo.create_model(name, num_classes, **kwargs)
    matching.model_shapes(model)
  except Exception as error:  # The arguments can have any wrong value.
    # Raise errors that do not depend on the arguments.
    matching.model_shapes(plain)
    raise ValueError(
      f'The metadata have arguments that {name} does not take: '
      f'{ascii(kwargs)[:200]}. {messages.one_line(error)}'
    ) from error
  return model
