"""Metadata of a file of weights, a dict of JSON values.

These keys are optional and checked:

  model                a name of `nfnets.list_models()`
  model_kwargs         other arguments of `nfnets.create_model`
  num_classes          size of the last layer, 0 without one
  class_names          [str], in the order of the logits
  image_size           evaluation image size, in pixels
  train_size           training image size, in pixels
  preprocessing        evaluation mode of `preprocess_eval`
  train_preprocessing  training preprocessing
  mean, std            [3] each, channel statistics in 0-255
  privacy              {name: number} of private training, see PRIVACY

Other keys, such as `step` and `accuracy`, are kept.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import numpy as np

from nfnets import imagenet, zoo
from nfnets.errors import UserError, prefix

_MAX_BYTES = 2**22  # Of JSON; 20,000 class names need a tenth.
_MAX_SIDE = 8192  # Pixels, also before the crop.
_MAX_CLASSES = 10**6
_MAX_STATISTIC = 1000.0
# {metadata key: field of `variants.Entry`}.
_FIELDS = {
  'image_size': 'test_size',
  'train_size': 'train_size',
  'preprocessing': 'eval_preproc',
  'mean': 'mean',
  'std': 'std',
}
# Numbers of private training. `key_is_secret` is 0 if a setting fixed noise and
# sampling, so that epsilon does not hold.
PRIVACY = (
  *('epsilon', 'delta', 'noise_multiplier', 'clipping', 'batch_size'),
  *('largest_batch', 'num_examples', 'steps', 'key_is_secret'),
)
# Arguments that do not change the function of the network.
_NOT_OF_THE_NETWORK = ('remat',)


def describe(model: zoo.Model, /, **others: Any) -> dict[str, Any]:
  """Return the metadata of a model for `save_weights`.

  Args:
    model: the model. Initializers and other function arguments are omitted,
      because they have no effect with weights.
    **others: additional or different values. None removes a key.

  Example:
    >>> weights.describe(model, step=3000)['model']
    'nfnet_digits'
  """
  entry = model.entry
  described = {
    'model': model.name,
    'model_kwargs': {
      # Nested configs are ml_collections.ConfigDict.
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
  """Return the model with sizes, preprocessing and class names from metadata.

  Args:
    model: the model, with the number of classes of the weights.
    metadata: the result of `decode`.

  Raises:
    ValueError: if the number of classes differs, or a size is too large.
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
  given = {_FIELDS[key]: metadata[key] for key in _FIELDS.keys() & metadata}
  given |= {k: np.float32(given[k]) for k in ('mean', 'std') if k in given}
  entry = dataclasses.replace(model.entry, **given) if given else model.entry
  side = imagenet.resized_side(entry.eval_preproc, entry.test_size)
  if side > _MAX_SIDE:
    raise ValueError(
      f'The metadata ask for images of {side:g} pixels: {entry.eval_preproc} '
      f'for {entry.test_size}.'
    )
  return dataclasses.replace(
    model, entry=entry, class_names=tuple(names) if names else None
  )


def encode(metadata: Mapping[str, Any]) -> str:
  """Encode metadata as ASCII JSON.

  Raises:
    UserError: if they are not JSON, too large, or wrong.
  """
  try:
    text = json.dumps(dict(metadata), allow_nan=False)
  except (TypeError, ValueError) as error:
    raise UserError(f'is to have metadata that are no JSON: {error}') from error
  decode(text)
  return text


def decode(text: str | bytes) -> dict[str, Any]:
  """Decode and check the metadata of a file.

  Raises:
    UserError: if they are damaged or too large, or a value is wrong. The
    message
      is the rest of a sentence.
  """
  if len(text) > _MAX_BYTES:
    raise UserError(f'has metadata of more than {_MAX_BYTES} bytes')
  with prefix('has metadata that are damaged'):
    metadata = json.loads(text, parse_constant=_refuse_constant)
  if not isinstance(metadata, dict):
    raise UserError('has metadata that are no dictionary')
  for key, (is_right, what) in _RULES.items():
    if key in metadata and not is_right(metadata[key]):
      shown = ascii(metadata[key])[:100]
      raise UserError(f'has metadata whose {key} is not {what}: {shown}')
  return metadata


def _refuse_constant(name: str) -> float:
  raise ValueError(f'{name} is no number of JSON')


def _is_list(x: Any, kinds: Sequence[type], length: int = 0) -> bool:
  """Return whether x is a list of values of these types."""
  is_long = isinstance(x, list) and length in (0, len(x))
  return is_long and all(type(value) in kinds for value in x)


def _is_eval_mode(x: Any) -> bool:
  try:
    imagenet.check_eval_mode(x)
  except (TypeError, ValueError):
    return False
  return math.isfinite(imagenet.resized_side(x, 1))


_NAME = lambda x: isinstance(x, str) and 0 < len(x) <= 1000, 'a name'
_SIDE = lambda x: type(x) is int and 0 < x <= _MAX_SIDE, 'a side in pixels'
_NUMBERS = int, float
_RULES = {
  'model': _NAME,
  'model_kwargs': (lambda x: isinstance(x, dict), 'a dictionary'),
  'num_classes': (
    lambda x: type(x) is int and 0 <= x <= _MAX_CLASSES,
    'a number of classes',
  ),
  'class_names': (lambda x: _is_list(x, (str,)), 'a list of names'),
  'image_size': _SIDE,
  'train_size': _SIDE,
  'preprocessing': (_is_eval_mode, 'one of ' + imagenet.EVAL_MODES),
  'train_preprocessing': _NAME,
  'mean': (
    lambda x: _is_list(x, _NUMBERS, 3) and max(map(abs, x)) <= _MAX_STATISTIC,
    'three numbers',
  ),
  'std': (
    lambda x: (
      _is_list(x, _NUMBERS, 3) and 1e-3 <= min(x) <= max(x) <= _MAX_STATISTIC
    ),
    'three numbers above 0',
  ),
  'privacy': (
    lambda x: (
      isinstance(x, dict)
      and {*x} == {*PRIVACY}
      and _is_list([*x.values()], _NUMBERS)
    ),
    'numbers called ' + ', '.join(PRIVACY),
  ),
}
