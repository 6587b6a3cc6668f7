"""AutoAugment and RandAugment, in TensorFlow.

Cubuk et al., "AutoAugment" (arXiv 1805.09501) and "RandAugment" (arXiv
1909.13719), with the operations that the released models were trained with,
to the last bit.

An operation takes and returns uint8 [H, W, 3] of any height and width; its
argument is a number or a scalar tensor. All functions work eagerly as well as
inside tf.data, and random choices follow from a seed alone. What an operation
uncovers or cuts out becomes grey (128).
"""

from collections.abc import Callable
import functools
import numbers
import os

import numpy as np
import tensorflow as tf

from nfnets.data import pixel_ops
from nfnets.data.pixel_ops import (
  autocontrast,
  brightness,
  color,
  contrast,
  cutout,
  equalize,
  invert,
  posterize,
  rotate,
  sharpness,
  shear_x,
  shear_y,
  solarize,
  solarize_add,
  translate_x,
  translate_y,
)

__all__ = [
  'auto_augment',
  'autocontrast',
  'brightness',
  'color',
  'contrast',
  'cutout',
  'equalize',
  'invert',
  'posterize',
  'rand_augment',
  'rotate',
  'sharpness',
  'shear_x',
  'shear_y',
  'solarize',
  'solarize_add',
  'translate_x',
  'translate_y',
]

_MAX_MAGNITUDE = 30

_OPERATIONS = (
  'AutoContrast Equalize Invert Rotate Posterize Solarize Color Contrast '
  'Brightness Sharpness ShearX ShearY TranslateX TranslateY Cutout SolarizeAdd'
).split()
_SIGNED = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')

_BLENDS = ('Color', 'Contrast', 'Brightness', 'Sharpness')

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


# Operations int32 [L], numbers in `_OPERATIONS` or 16 for none; their arguments
# float32 [L], 0 where there is none; and where cutouts go, float32 [L, 2], in
# parts of the height and the width.
_Choice = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def rand_augment(
  image: tf.Tensor,
  seed: tf.Tensor,
  num_layers: int,
  magnitude: float,
  *,
  wrap_solarize: bool = True,
  constant_grey: bool = True,
) -> tf.Tensor:
  """Apply operations that are drawn uniformly from the 16, one per layer.

  Where a graph is built for images of a known size, as in tf.data, XLA compiles
  all layers together: several times as fast, and with the same result.

  Args:
    image: uint8 [H, W, 3].
    seed: int64 [2]; the same seed gives the same result.
    num_layers: The number of operations, 1 or more.
    magnitude: Their strength, in [0, 30] as in the paper. From 20 on, posterize
      changes nothing.
    wrap_solarize: Whether to take the threshold of solarize modulo 256, as for
      the released models: it is 128 at magnitudes 5 and 15, and 0 at magnitude
      10, which inverts the image. If False, solarize changes nothing from
      magnitude 10 on.
    constant_grey: See `contrast`.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: The number of layers, the magnitude or the shape of the image is
      out of range.
    TypeError: The image is not uint8.

  Example:
    >>> image = autoaugment.rand_augment(image, seed, num_layers=4, magnitude=5)
  """
  if not isinstance(num_layers, numbers.Integral) or num_layers < 1:
    raise ValueError(
      'RandAugment needs a whole number of layers, 1 or more, not '
      f'{num_layers!r}.'
    )
  if not (
    isinstance(magnitude, numbers.Real) and 0 <= magnitude <= _MAX_MAGNITUDE
  ):
    raise ValueError(
      f'The magnitude of RandAugment has to be in [0, {_MAX_MAGNITUDE}], not '
      f'{magnitude!r}.'
    )
  uniform = tf.random.stateless_uniform([num_layers, 4], seed)
  return _augment(
    image,
    uniform,
    lambda uniform: _choose_any(uniform, magnitude, wrap_solarize),
    constant_grey,
  )


def auto_augment(
  image: tf.Tensor,
  seed: tf.Tensor,
  *,
  wrap_solarize: bool = True,
  constant_grey: bool = True,
) -> tf.Tensor:
  """Apply one of the 25 sub-policies of AutoAugment's policy "v0".

  Each is two operations, and each operation is applied with its own
  probability. See `rand_augment` for the speed.

  Args:
    image: uint8 [H, W, 3].
    seed: int64 [2]; the same seed gives the same result.
    wrap_solarize: See `rand_augment`.
    constant_grey: See `contrast`.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: The image has another shape.
    TypeError: The image is not uint8.

  Example:
    >>> image = autoaugment.auto_augment(image, seed)
  """
  uniform = tf.random.stateless_uniform([2, 5], seed)
  return _augment(
    image,
    uniform,
    lambda uniform: _choose_policy(uniform, wrap_solarize),
    constant_grey,
  )


def _augment(
  image: tf.Tensor,
  uniform: tf.Tensor,
  choose: Callable[[tf.Tensor], _Choice],
  constant_grey: bool,
) -> tf.Tensor:
  """Do what is chosen by uniform numbers in [0, 1), one row per layer."""
  image = pixel_ops.as_image(image)

  def run(image: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    return _layers(image, *choose(uniform), constant_grey)

  # For each size that comes up, compiling takes about a second.
  known_size = image.shape.is_fully_defined() and not tf.executing_eagerly()
  if known_size and _can_compile():
    run = tf.function(run, jit_compile=True, autograph=False)
  return tf.ensure_shape(run(image, uniform), image.shape)


@functools.cache
def _can_compile() -> bool:
  """Return whether this TensorFlow has XLA for the CPU."""
  # At its first compilation, TensorFlow's XLA reads flags that are meant for
  # JAX's, and ends the process if it does not know one.
  flags = os.environ.pop('XLA_FLAGS', None)
  try:
    with tf.init_scope():
      tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(1)
  except tf.errors.OpError:
    return False
  finally:
    if flags is not None:
      os.environ['XLA_FLAGS'] = flags
  return True


def _layers(
  image: tf.Tensor,
  operations: tf.Tensor,
  arguments: tf.Tensor,
  places: tf.Tensor,
  constant_grey: bool,
) -> tf.Tensor:
  """Apply the chosen operations one after another."""
  pixels = pixel_ops.pack(image)
  size = tf.cast(tf.shape(pixels), tf.float32)

  def layer(i, pixels):
    argument, centre = arguments[i], places[i] * size
    branches = [
      lambda: autocontrast.packed(pixels),
      lambda: equalize.packed(pixels),
      lambda: invert.packed(pixels),
      lambda: rotate.packed(pixels, argument),
      lambda: posterize.packed(pixels, argument),
      lambda: solarize.packed(pixels, argument),
      lambda: color.packed(pixels, argument),
      lambda: contrast.packed(pixels, argument, constant_grey=constant_grey),
      lambda: brightness.packed(pixels, argument),
      lambda: sharpness.packed(pixels, argument),
      lambda: shear_x.packed(pixels, argument),
      lambda: shear_y.packed(pixels, argument),
      lambda: translate_x.packed(pixels, argument),
      lambda: translate_y.packed(pixels, argument),
      lambda: cutout.packed(pixels, argument, centre),
      lambda: solarize_add.packed(pixels, argument),
      lambda: pixels,
    ]
    return i + 1, tf.switch_case(operations[i], branches)

  _, pixels = tf.while_loop(
    lambda i, _: i < operations.shape[0],
    layer,
    (0, pixels),
    shape_invariants=(tf.TensorShape([]), pixels.shape),
  )
  return pixel_ops.unpack(pixels)


def _choose_any(
  uniform: tf.Tensor, magnitude: float, wrap_solarize: bool
) -> _Choice:
  """Choose for `rand_augment`, from uniform numbers in [0, 1), [L, 4]."""
  arguments = [
    _argument(name, magnitude, wrap_solarize, translate=10)
    for name in _OPERATIONS
  ]
  operations = tf.cast(uniform[:, 0] * len(_OPERATIONS), tf.int32)
  arguments = tf.gather(tf.constant(arguments, tf.float32), operations)
  return _with_signs(operations, arguments, uniform[:, 1:])


def _choose_policy(uniform: tf.Tensor, wrap_solarize: bool) -> _Choice:
  """Choose for `auto_augment`, from uniform numbers in [0, 1), [2, 5]."""
  policy = np.array(_POLICY.split()).reshape(-1, 2, 3)
  operations = [[_OPERATIONS.index(name) for name, *_ in row] for row in policy]
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
  operations = tf.where(applied, operations, len(_OPERATIONS))
  return _with_signs(operations, arguments, uniform[:, 2:])


def _with_signs(
  operations: tf.Tensor, arguments: tf.Tensor, uniform: tf.Tensor
) -> _Choice:
  """Complete a choice with uniform numbers [L, 3]: of the sign and place."""
  signed = [_OPERATIONS.index(name) for name in _SIGNED]
  negative = tf.reduce_any(operations[:, tf.newaxis] == signed, 1)
  negative &= uniform[:, 0] < 0.5
  arguments = tf.where(negative, -arguments, arguments)
  return operations, arguments, uniform[:, 1:]


def _argument(
  name: str, magnitude: float, wrap_solarize: bool, translate: int
) -> float:
  """Return an operation's argument; 0 where it has none.

  Args:
    name: Name of the operation.
    magnitude: Its strength.
    wrap_solarize: See `rand_augment`.
    translate: Translation in pixels per unit of magnitude.
  """
  threshold = int(25.6 * magnitude)
  return {
    'Rotate': 3 * magnitude,
    'Posterize': int(0.4 * magnitude),
    'Solarize': threshold % 256 if wrap_solarize else threshold,
    **dict.fromkeys(_BLENDS, 0.18 * magnitude + 0.1),
    'ShearX': 0.03 * magnitude,
    'ShearY': 0.03 * magnitude,
    'TranslateX': translate * magnitude,
    'TranslateY': translate * magnitude,
    'Cutout': int(4 * magnitude),
    'SolarizeAdd': int(11 * magnitude),
  }.get(name, 0)
