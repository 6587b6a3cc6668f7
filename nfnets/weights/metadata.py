"""What a file of weights says about its network, beside the numbers.

A dict of JSON values. These keys have a meaning, and all may be missing:

  model              as in `nfnets.list_models()`
  model_kwargs       what `nfnets.create_model` is given besides
  num_classes        of the last layer, 0 without one
  class_names        [str], in the order of the logits
  image_size         of evaluation, side in pixels
  train_size         of training
  preprocessing      of evaluation, as `preprocess_eval` names it
  train_preprocessing
  mean, std          [3] each, of the channels in 0-255
  privacy            {name: number} of private training, as PRIVACY names them

Others are carried along: `step`, `accuracy`, what it was trained on.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

import numpy as np

from nfnets import eval_modes, zoo

_MAX_BYTES = 2**22  # As JSON; 20,000 names of classes take a tenth.
_MAX_SIDE = 8192  # Pixels, also of what is cropped afterwards.
_MAX_CLASSES = 10**6
_MAX_STATISTIC = 1000.0
# What is an entry's, and its name there.
_FIELDS = {
  'image_size': 'test_size',
  'train_size': 'train_size',
  'preprocessing': 'eval_preproc',
  'mean': 'mean',
  'std': 'std',
}
# Epsilon for Poisson-sampled batches and for any order of epochs, and how the
# weights were trained.
PRIVACY = (
  *('epsilon', 'epsilon_of_any_order', 'delta', 'noise_multiplier', 'clipping'),
  *('batch_size', 'num_examples', 'steps'),
)
# How training computes, which is the same network.
_NOT_OF_THE_NETWORK = ('remat',)


def describe(model: zoo.Model, **others: Any) -> dict[str, Any]:
  """Returns what there is to say about a model, for `save_weights`.

  Args:
    model: the model. Its initializers, and other functions among its arguments,
      are left out: with weights they make no difference.
    **others: more, or instead; None is as good as missing.
  """
  entry = model.entry
  described = {
    'model': model.name,
    'model_kwargs': {
      # A nested part of a config is one of ml_collections.
      key: value.to_dict() if hasattr(value, 'to_dict') else value
      for key, value in model.overrides.items()
      if key not in _NOT_OF_THE_NETWORK and not callable(value)
    },
    'num_classes': model.num_classes,
    'class_names': model.class_names and list(model.class_names),
    'image_size': entry.test_size,
    'train_size': entry.train_size,
    'preprocessing': entry.eval_preproc,
    'mean': np.asarray(entry.mean, np.float64).tolist(),
    'std': np.asarray(entry.std, np.float64).tolist(),
    **others,
  }
  return {key: x for key, x in described.items() if x is not None}


def apply(model: zoo.Model, metadata: Mapping[str, Any]) -> zoo.Model:
  """Returns a model with the sizes, preprocessing and names of classes.

  Args:
    model: the model, with as many classes as the weights have.
    metadata: as `decode` returns it.

  Raises:
    ValueError: if it speaks of another number of classes, or of sizes that
      cannot be meant.
  """
  names = metadata.get('class_names')
  for what, number in (
    ('num_classes', metadata.get('num_classes')),
    ('class_names', names and len(names)),
  ):
    if number is not None and number != model.num_classes:
      raise ValueError(
        f'The metadata have {number} {what}, and the weights are for '
        f'{model.num_classes} classes.'
      )
  entry = model.entry
  given = {
    field: np.float32(metadata[key])
    if key in ('mean', 'std')
    else metadata[key]
    for key, field in _FIELDS.items()
    if key in metadata
  }
  if given:
    entry = dataclasses.replace(entry, **given)
  side = eval_modes.resized_side(entry.eval_preproc, entry.test_size)
  if side > _MAX_SIDE:
    raise ValueError(
      f'The metadata ask for images of {side:g} pixels: {entry.eval_preproc} '
      f'for {entry.test_size}.'
    )
  return dataclasses.replace(
    model, entry=entry, class_names=tuple(names) if names else None
  )


def encode(metadata: Mapping[str, Any]) -> bytes:
  """Returns metadata as a file has them, in ASCII.

  Raises:
    ValueError: if they are not JSON, too large, or wrong.
  """
  try:
    text = json.dumps(dict(metadata), allow_nan=False).encode('ascii')
  except (TypeError, ValueError) as error:
    raise ValueError(f'The metadata are no JSON: {error}.') from error
  decode(text)
  return text


def decode(text: bytes) -> dict[str, Any]:
  """Returns the metadata of a file, after a look at them.

  Raises:
    ValueError: if they are damaged or too large, or a key with a meaning has
      not the type for it.
  """
  if len(text) > _MAX_BYTES:
    raise ValueError(f'has metadata of more than {_MAX_BYTES} bytes')
  try:
    metadata = json.loads(text, parse_constant=_refuse_constant)
  except (ValueError, RecursionError) as error:
    message = ascii(str(error))[1:-1][:200]
    raise ValueError(f'has metadata that are damaged: {message}') from error
  if not isinstance(metadata, dict):
    raise ValueError('has metadata that are no dictionary')
  for key, (is_right, what) in _RULES.items():
    if key in metadata and not is_right(metadata[key]):
      shown = ascii(metadata[key])[:100]
      raise ValueError(f'has metadata whose {key} is not {what}: {shown}')
  return metadata


def _refuse_constant(name: str) -> float:
  raise ValueError(f'{name} is no number of JSON')


def _is_whole(low: int, high: int):
  return lambda x: type(x) is int and low <= x <= high


def _are_numbers(low: float):
  def are_right(values: Any) -> bool:
    return (
      isinstance(values, list)
      and len(values) == 3
      and all(type(x) in (int, float) for x in values)
      and all(low <= x <= _MAX_STATISTIC for x in values)
    )

  return are_right


def _is_text(x: Any) -> bool:
  return isinstance(x, str) and 0 < len(x) <= 1000


def _is_eval_mode(x: Any) -> bool:
  if not _is_text(x):
    return False
  try:
    eval_modes.check_eval_mode(x)
  except ValueError:
    return False
  return math.isfinite(eval_modes.resized_side(x, 1))


def _are_names(x: Any) -> bool:
  return isinstance(x, list) and all(isinstance(name, str) for name in x)


def _is_privacy(x: Any) -> bool:
  return (
    isinstance(x, dict)
    and set(x) == set(PRIVACY)
    and all(type(value) in (int, float) for value in x.values())
  )


_RULES = {
  'model': (_is_text, 'a name'),
  'model_kwargs': (lambda x: isinstance(x, dict), 'a dictionary'),
  'num_classes': (_is_whole(0, _MAX_CLASSES), 'a number of classes'),
  'class_names': (_are_names, 'a list of names'),
  'image_size': (_is_whole(1, _MAX_SIDE), 'a side in pixels'),
  'train_size': (_is_whole(1, _MAX_SIDE), 'a side in pixels'),
  'preprocessing': (_is_eval_mode, 'one of ' + eval_modes.EVAL_MODES),
  'train_preprocessing': (_is_text, 'a name'),
  'mean': (_are_numbers(-_MAX_STATISTIC), 'three numbers'),
  'std': (_are_numbers(1e-3), 'three numbers above 0'),
  'privacy': (_is_privacy, 'numbers called ' + ', '.join(PRIVACY)),
}
