"""What RandAugment and AutoAugment choose: operations and their arguments.

Each choice is made of uniform numbers alone, one row of them per layer.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

OPERATIONS = (
  'AutoContrast Equalize Invert Rotate Posterize Solarize Color Contrast '
  'Brightness Sharpness ShearX ShearY TranslateX TranslateY Cutout SolarizeAdd'
).split()
_SIGNED = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')

# The policy "v0": (operation, probability, magnitude) twice per line.
_POLICY = """
  Equalize     0.8 1   ShearY       0.8 4
  Color        0.4 9   Equalize     0.6 3
  Color        0.4 1   Rotate       0.6 8
  Solarize     0.8 3   Equalize     0.4 7
  Solarize     0.4 2   Solarize     0.6 2
  Color        0.2 0   Equalize     0.8 8
  Equalize     0.4 8   SolarizeAdd  0.8 3
  ShearX       0.2 9   Rotate       0.6 8
  Color        0.6 1   Equalize     1.0 2
  Invert       0.4 9   Rotate       0.6 0
  Equalize     1.0 9   ShearY       0.6 3
  Color        0.4 7   Equalize     0.6 0
  Posterize    0.4 6   AutoContrast 0.4 7
  Solarize     0.6 8   Color        0.6 9
  Solarize     0.2 4   Rotate       0.8 9
  Rotate       1.0 7   TranslateY   0.8 9
  ShearX       0.0 0   Solarize     0.8 4
  ShearY       0.8 0   Color        0.6 4
  Color        1.0 0   Rotate       0.6 2
  Equalize     0.8 4   Equalize     0.0 8
  Equalize     1.0 4   AutoContrast 0.6 2
  ShearY       0.4 7   SolarizeAdd  0.6 7
  Posterize    0.8 2   Solarize     0.6 10
  Solarize     0.6 8   Equalize     0.6 1
  Color        0.8 6   Rotate       0.4 5
"""


class Choice(NamedTuple):
  """The operations of L layers.

  Attributes:
    operations: int32 [L], numbers in `OPERATIONS`; 16 is none.
    arguments: float32 [L]; 0 where an operation has none.
    places: float32 [L, 2], where a cutout goes, in parts of the height and the
      width.
  """

  operations: tf.Tensor
  arguments: tf.Tensor
  places: tf.Tensor


def choose_any(
  uniform: tf.Tensor, magnitude: float, wrap_solarize: bool
) -> Choice:
  """Chooses for `rand_augment`, from uniform numbers in [0, 1), [L, 4]."""
  arguments = [
    _argument(name, magnitude, wrap_solarize, translate=10)
    for name in OPERATIONS
  ]
  operations = tf.cast(uniform[:, 0] * len(OPERATIONS), tf.int32)
  arguments = tf.gather(tf.constant(arguments, tf.float32), operations)
  return _with_signs(operations, arguments, uniform[:, 1:])


def choose_policy(uniform: tf.Tensor, wrap_solarize: bool) -> Choice:
  """Chooses for `auto_augment`, from uniform numbers in [0, 1), [2, 5]."""
  policy = np.array(_POLICY.split()).reshape(-1, 2, 3)
  operations = [[OPERATIONS.index(name) for name, *_ in row] for row in policy]
  arguments = [
    [
      _argument(name, int(magnitude), wrap_solarize, translate=25)
      for name, _, magnitude in row
    ]
    for row in policy
  ]
  probabilities = policy[..., 1].astype(np.float32)
  row = tf.cast(uniform[0, 0] * len(policy), tf.int32)
  operations, arguments, probabilities = (
    tf.gather(tf.constant(table), row)
    for table in (operations, np.float32(arguments), probabilities)
  )
  applied = uniform[:, 1] < probabilities
  operations = tf.where(applied, operations, len(OPERATIONS))
  return _with_signs(operations, arguments, uniform[:, 2:])


def _with_signs(
  operations: tf.Tensor, arguments: tf.Tensor, uniform: tf.Tensor
) -> Choice:
  """Completes a choice with uniform numbers [L, 3]: of the sign and place."""
  signed = [OPERATIONS.index(name) for name in _SIGNED]
  negative = tf.reduce_any(operations[:, tf.newaxis] == signed, 1)
  negative &= uniform[:, 0] < 0.5
  arguments = tf.where(negative, -arguments, arguments)
  return Choice(operations, arguments, uniform[:, 1:])


def _argument(
  name: str, magnitude: float, wrap_solarize: bool, translate: int
) -> float:
  """Returns an operation's argument; 0 where it has none.

  Args:
    name: Of the operation.
    magnitude: How strong it is.
    wrap_solarize: See `rand_augment`.
    translate: How far to move, in pixels per unit of magnitude.
  """
  threshold = int(25.6 * magnitude)
  factor = 0.18 * magnitude + 0.1
  return {
    'Rotate': 3 * magnitude,
    'Posterize': int(0.4 * magnitude),
    'Solarize': threshold % 256 if wrap_solarize else threshold,
    'Color': factor,
    'Contrast': factor,
    'Brightness': factor,
    'Sharpness': factor,
    'ShearX': 0.03 * magnitude,
    'ShearY': 0.03 * magnitude,
    'TranslateX': translate * magnitude,
    'TranslateY': translate * magnitude,
    'Cutout': int(4 * magnitude),
    'SolarizeAdd': int(11 * magnitude),
  }.get(name, 0)
