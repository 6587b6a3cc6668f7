"""AutoAugment and RandAugment, in TensorFlow.

Cubuk et al., "AutoAugment" (arXiv 1805.09501) and "RandAugment" (arXiv
1909.13719), with the operations that the released models were trained with,
to the last bit.

An operation takes and returns uint8 [H, W, 3] of any height and width; its
argument is a number or a scalar tensor. All functions work eagerly as well as
inside tf.data, and random choices follow from a seed alone. What an operation
uncovers or cuts out becomes grey (128).
"""

from collections.abc import Callable, Sequence
import functools
import numbers
import os

import tensorflow as tf

from nfnets.data import pixel_ops, policies

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
# Of uniform numbers in [0, 1), one row per layer.
_Choose = Callable[[tf.Tensor], policies.Choice]


def rand_augment(
  image: tf.Tensor,
  seed: tf.Tensor,
  num_layers: int,
  magnitude: float,
  *,
  wrap_solarize: bool = True,
  constant_grey: bool = True,
) -> tf.Tensor:
  """Applies operations that are drawn uniformly from the 16, one per layer.

  Where a graph is built for images of a known size, as in tf.data, XLA compiles
  all layers together: several times as fast, and with the same result.

  Args:
    image: uint8 [H, W, 3].
    seed: int64 [2]; the same seed gives the same result.
    num_layers: The number of operations, 1 or more.
    magnitude: How strong they are, in [0, 30], which is as far as the paper
      looks. From 20 on, posterizing changes nothing.
    wrap_solarize: Whether the threshold of solarizing is taken modulo 256. It
      was when the released models were trained: it is 128 at magnitudes 5 and
      15, and 0 at magnitude 10, which inverts the image. If not, solarizing
      changes nothing from magnitude 10 on.
    constant_grey: See `contrast`.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: The number of layers, the magnitude or the shape of the image is
      out of range.
    TypeError: The image is not uint8.
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
  choose = functools.partial(
    policies.choose_any, magnitude=magnitude, wrap_solarize=wrap_solarize
  )
  uniform = tf.random.stateless_uniform([num_layers, 4], seed)
  return _augment(image, uniform, choose, constant_grey)


def auto_augment(
  image: tf.Tensor,
  seed: tf.Tensor,
  *,
  wrap_solarize: bool = True,
  constant_grey: bool = True,
) -> tf.Tensor:
  """Applies one of the 25 sub-policies of AutoAugment's policy "v0".

  Each is two operations, either of which is left out with a probability of its
  own. See `rand_augment` for the speed.

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
  """
  choose = functools.partial(
    policies.choose_policy, wrap_solarize=wrap_solarize
  )
  uniform = tf.random.stateless_uniform([2, 5], seed)
  return _augment(image, uniform, choose, constant_grey)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
  """Stretches the levels of each channel to 0-255."""
  return _run(pixel_ops.autocontrast, image)


def equalize(image: tf.Tensor) -> tf.Tensor:
  """Evens out the histogram of each channel."""
  return _run(pixel_ops.equalize, image)


def invert(image: tf.Tensor) -> tf.Tensor:
  """Makes the negative."""
  return _run(pixel_ops.invert, image)


def rotate(image: tf.Tensor, degrees: float) -> tf.Tensor:
  """Rotates around the centre, counterclockwise where degrees are positive."""
  return _run(pixel_ops.rotate, image, degrees)


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
  """Keeps the top bits of each level: up to 8, and 1 where 0 are asked for."""
  return _run(pixel_ops.posterize, image, bits)


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
  """Inverts the levels that are not below the threshold."""
  return _run(pixel_ops.solarize, image, threshold)


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
  """Adds to the levels below 128, up to 255."""
  return _run(pixel_ops.solarize_add, image, addition)


def color(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Changes colours: factor 0 gives the grey image, 1 the image itself."""
  return _run(pixel_ops.color, image, factor)


def contrast(
  image: tf.Tensor, factor: float, *, constant_grey: bool = True
) -> tf.Tensor:
  """Changes the contrast: factor 0 gives one grey, 1 the image itself.

  Args:
    image: uint8 [H, W, 3].
    factor: How far the levels are from the grey, in parts of what they were.
    constant_grey: Whether the grey is min(255, H * W / 256), rounded down: with
      this slip the method was published, and the released models were trained.
      If not, it is the mean of the grey image, rounded.

  Returns:
    uint8 [H, W, 3].
  """
  return _run(pixel_ops.contrast, image, factor, constant_grey)


def brightness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Changes the brightness: factor 0 gives black, 1 the image itself."""
  return _run(pixel_ops.brightness, image, factor)


def sharpness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Changes the sharpness: factor 0 gives a smooth image, 1 the image itself.

  The outermost pixels stay as they are.
  """
  return _run(pixel_ops.sharpness, image, factor)


def shear_x(image: tf.Tensor, level: float) -> tf.Tensor:
  """Moves row y to the left by level * y pixels."""
  return _run(pixel_ops.shear_x, image, level)


def shear_y(image: tf.Tensor, level: float) -> tf.Tensor:
  """Moves column x up by level * x pixels."""
  return _run(pixel_ops.shear_y, image, level)


def translate_x(image: tf.Tensor, pixels: float) -> tf.Tensor:
  """Moves the image to the left by that many pixels."""
  return _run(pixel_ops.translate_x, image, pixels)


def translate_y(image: tf.Tensor, pixels: float) -> tf.Tensor:
  """Moves the image up by that many pixels."""
  return _run(pixel_ops.translate_y, image, pixels)


def cutout(
  image: tf.Tensor,
  half_side: int,
  centre: Sequence[int] | tf.Tensor | None = None,
  *,
  seed: tf.Tensor | None = None,
) -> tf.Tensor:
  """Cuts out a square, or what of it is in the image.

  Args:
    image: uint8 [H, W, 3].
    half_side: Half of the square's side, in pixels.
    centre: (y, x) in pixels. Rows y - half_side to y + half_side - 1 are cut
      out, and columns likewise.
    seed: int64 [2], instead of a centre; draws it, uniform in the image.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: There is neither a centre nor a seed, or both.
  """
  if (centre is None) == (seed is None):
    raise ValueError('Cutout needs either a centre or a seed to draw it from.')
  if centre is None:
    place = tf.random.stateless_uniform([2], seed)
    centre = place * tf.cast(tf.shape(image)[:2], tf.float32)
  return _run(pixel_ops.cutout, image, half_side, centre)


def _run(operation: Callable, image: tf.Tensor, *args) -> tf.Tensor:
  image = _as_image(image)
  result = pixel_ops.unpack(operation(pixel_ops.pack(image), *args))
  return tf.ensure_shape(result, image.shape)


def _as_image(image: tf.Tensor) -> tf.Tensor:
  image = tf.convert_to_tensor(image)
  if image.dtype != tf.uint8:
    raise TypeError(f'The image has to be uint8, not {image.dtype.name}.')
  if not image.shape.is_compatible_with([None, None, 3]):
    raise ValueError(
      f'The image has to have the shape [H, W, 3], not {image.shape}.'
    )
  return image


def _augment(
  image: tf.Tensor, uniform: tf.Tensor, choose: _Choose, constant_grey: bool
) -> tf.Tensor:
  image = _as_image(image)
  run = functools.partial(_layers, choose=choose, constant_grey=constant_grey)
  # For each size that comes up, compiling takes about a second.
  known_size = image.shape.is_fully_defined() and not tf.executing_eagerly()
  if known_size and _can_compile():
    run = tf.function(run, jit_compile=True, autograph=False)
  return tf.ensure_shape(run(image, uniform), image.shape)


@functools.cache
def _can_compile() -> bool:
  """Returns whether this TensorFlow has XLA for the CPU."""
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
  image: tf.Tensor, uniform: tf.Tensor, choose: _Choose, constant_grey: bool
) -> tf.Tensor:
  """Applies the chosen operations one after another."""
  operations, arguments, places = choose(uniform)
  pixels = pixel_ops.pack(image)
  size = tf.cast(tf.shape(pixels), tf.float32)

  def layer(i, pixels):
    argument, centre = arguments[i], places[i] * size
    branches = {
      'AutoContrast': lambda: pixel_ops.autocontrast(pixels),
      'Equalize': lambda: pixel_ops.equalize(pixels),
      'Invert': lambda: pixel_ops.invert(pixels),
      'Rotate': lambda: pixel_ops.rotate(pixels, argument),
      'Posterize': lambda: pixel_ops.posterize(pixels, argument),
      'Solarize': lambda: pixel_ops.solarize(pixels, argument),
      'Color': lambda: pixel_ops.color(pixels, argument),
      'Contrast': lambda: pixel_ops.contrast(pixels, argument, constant_grey),
      'Brightness': lambda: pixel_ops.brightness(pixels, argument),
      'Sharpness': lambda: pixel_ops.sharpness(pixels, argument),
      'ShearX': lambda: pixel_ops.shear_x(pixels, argument),
      'ShearY': lambda: pixel_ops.shear_y(pixels, argument),
      'TranslateX': lambda: pixel_ops.translate_x(pixels, argument),
      'TranslateY': lambda: pixel_ops.translate_y(pixels, argument),
      'Cutout': lambda: pixel_ops.cutout(pixels, argument, centre),
      'SolarizeAdd': lambda: pixel_ops.solarize_add(pixels, argument),
    }
    cases = [branches[name] for name in policies.OPERATIONS]
    return i + 1, tf.switch_case(operations[i], [*cases, lambda: pixels])

  _, pixels = tf.while_loop(
    lambda i, _: i < uniform.shape[0],
    layer,
    (0, pixels),
    shape_invariants=(tf.TensorShape([]), pixels.shape),
  )
  return pixel_ops.unpack(pixels)
