"""The operations of AutoAugment.

They work on packed images, int32 [H, W], with red in the lowest byte, so that
XLA makes one loop of most of them. `autoaugment` offers each as a function of
an image, uint8 [H, W, 3]. The arithmetic follows the published code step by
step, so that results agree to the last bit on every processor.
"""

from collections.abc import Callable, Sequence
import functools
import math

import numpy as np
import tensorflow as tf

# The colour where the image has moved away or is cut out.
_FILL = 0x808080


def pack(image: tf.Tensor) -> tf.Tensor:
  """Pack uint8 [H, W, 3] into int32 [H, W]."""
  return tf.bitcast(tf.pad(image, [[0, 0], [0, 0], [0, 1]]), tf.int32)


def unpack(pixels: tf.Tensor) -> tf.Tensor:
  """Undo `pack`."""
  return tf.bitcast(pixels, tf.uint8)[..., :3]


def as_image(image: tf.Tensor) -> tf.Tensor:
  """Return uint8 [H, W, 3], or raise TypeError or ValueError."""
  image = tf.convert_to_tensor(image)
  if image.dtype != tf.uint8:
    raise TypeError(f'The image has to be uint8, not {image.dtype.name}.')
  if not image.shape.is_compatible_with([None, None, 3]):
    raise ValueError(
      f'The image has to have the shape [H, W, 3], not {image.shape}.'
    )
  return image


def _on_images(operation: Callable) -> Callable:
  """Return the function of an image; `packed` is that of a packed one."""

  @functools.wraps(operation)
  def run(image, *args, **kwargs):
    image = as_image(image)
    result = unpack(operation(pack(image), *args, **kwargs))
    return tf.ensure_shape(result, image.shape)

  run.packed = operation
  return run


@_on_images
def autocontrast(image: tf.Tensor) -> tf.Tensor:
  """Stretch the levels of each channel to 0-255.

  Example:
    >>> image = autoaugment.autocontrast(image)
  """

  def stretch(channel):
    low, high = tf.reduce_min(channel), tf.reduce_max(channel)
    scale = 255 / tf.cast(tf.maximum(high - low, 1), tf.float32)
    offset = -tf.cast(low, tf.float32) * scale
    stretched = _product(tf.cast(channel, tf.float32), scale) + offset
    return tf.where(high > low, _to_level(stretched), channel)

  return _each_channel(stretch, image)


@_on_images
def equalize(image: tf.Tensor) -> tf.Tensor:
  """Even out the histogram of each channel.

  Example:
    >>> image = autoaugment.equalize(image)
  """

  def spread(channel):
    counts = tf.raw_ops.DenseBincount(
      input=tf.reshape(channel, [-1]),
      size=256,
      weights=tf.constant([], tf.int32),
    )
    # The pixels of the brightest level that occurs do not count.
    brightest = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0))
    step = (tf.size(channel) - tf.gather(counts, brightest)) // 255
    below = tf.cumsum(counts, exclusive=True)
    # Not tf.where: the table would be computed anew for every pixel.
    table = tf.cond(
      step > 0,
      lambda: tf.minimum((below + step // 2) // step, 255),
      lambda: tf.range(256),
    )
    return tf.gather(table, channel)

  return _each_channel(spread, image)


@_on_images
def invert(image: tf.Tensor) -> tf.Tensor:
  """Make the negative.

  Example:
    >>> image = autoaugment.invert(image)
  """
  return 0xFFFFFF - image


@_on_images
def rotate(image: tf.Tensor, degrees: float) -> tf.Tensor:
  """Rotate around the centre, counterclockwise where degrees are positive.

  Example:
    >>> image = autoaugment.rotate(image, degrees=30)
  """
  # In float64, because libraries differ in the last bit of float32.
  radians = tf.cast(tf.cast(degrees, tf.float32), tf.float64) * (math.pi / 180)
  cos, sin = tf.cos(radians), tf.sin(radians)
  bottom, right = tf.unstack(tf.cast(tf.shape(image) - 1, tf.float64))
  down = (bottom - (sin * right + cos * bottom)) / 2
  across = (right - (cos * right - sin * bottom)) / 2
  cos, sin, down, across = (
    tf.cast(v, tf.float32) for v in (cos, sin, down, across)
  )
  y, x = _coordinates(image)
  return _sample(
    image,
    _product(sin, x) + _product(cos, y) + down,
    _product(cos, x) + _product(-sin, y) + across,
  )


@_on_images
def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
  """Keep the top bits of each level: up to 8, and 1 where 0 are asked for.

  Example:
    >>> image = autoaugment.posterize(image, bits=4)
  """
  # Nothing shifts a byte by 8: 0 bits became 1 in the published code.
  dropped = tf.clip_by_value(8 - tf.cast(bits, tf.int32), 0, 7)
  kept = 256 - tf.bitwise.left_shift(1, dropped)
  return tf.bitwise.bitwise_and(image, 0x10101 * kept)


@_on_images
def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
  """Invert the levels that are not below the threshold.

  Example:
    >>> image = autoaugment.solarize(image, threshold=128)
  """
  threshold = tf.cast(threshold, tf.int32)
  return _each_channel(lambda c: tf.where(c < threshold, c, 255 - c), image)


@_on_images
def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
  """Add to the levels below 128, up to 255.

  Example:
    >>> image = autoaugment.solarize_add(image, addition=30)
  """
  addition = tf.cast(addition, tf.int32)

  def add(channel):
    added = tf.clip_by_value(channel + addition, 0, 255)
    return tf.where(channel < 128, added, channel)

  return _each_channel(add, image)


@_on_images
def color(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Change colours: factor 0 gives the grey image, 1 the image itself.

  Example:
    >>> image = autoaugment.color(image, factor=0.5)
  """
  grey = _grey(image)
  return _each_channel(lambda c: _blend(grey, c, factor), image)


@_on_images
def contrast(
  image: tf.Tensor, factor: float, *, constant_grey: bool = True
) -> tf.Tensor:
  """Change the contrast: factor 0 gives one grey, 1 the image itself.

  Args:
    image: uint8 [H, W, 3].
    factor: Factor of the distance of each level from the grey.
    constant_grey: Whether the grey is min(255, H * W / 256), rounded down. The
      published code has this slip, and the released models were trained with
      it. If False, the grey is the rounded mean of the grey image.

  Returns:
    uint8 [H, W, 3].

  Example:
    >>> image = autoaugment.contrast(image, factor=0.5)
  """
  size = tf.size(image)
  if constant_grey:
    # Published was the mean over the bins of a histogram, so of their counts.
    grey = tf.minimum(size // 256, 255)
  else:
    size = tf.cast(size, tf.int64)
    total = tf.reduce_sum(tf.cast(_grey(image), tf.int64))
    grey = tf.cast((total + size // 2) // size, tf.int32)
  return _each_channel(lambda c: _blend(grey, c, factor), image)


@_on_images
def brightness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Change the brightness: factor 0 gives black, 1 the image itself.

  Example:
    >>> image = autoaugment.brightness(image, factor=0.5)
  """
  return _each_channel(lambda c: _blend(0, c, factor), image)


@_on_images
def sharpness(image: tf.Tensor, factor: float) -> tf.Tensor:
  """Change the sharpness: factor 0 gives a smooth image, 1 the image itself.

  The outermost pixels stay as they are.

  Example:
    >>> image = autoaugment.sharpness(image, factor=0.5)
  """
  # The centre weighs 5, its neighbours 1, over 13. Where the mean is a whole
  # number, rounding decides whether it comes out one lower: as published, a sum
  # in float32 that is rounded once per neighbour.
  weights = np.full([3, 3], np.float32(1) / np.float32(13), np.float64)
  weights[1, 1] = np.float32(5) / np.float32(13)
  h, w = tf.unstack(tf.shape(image))

  def sharpen(channel):
    mean = tf.zeros([h, w])
    for (y, x), weight in np.ndenumerate(weights):
      neighbour = tf.cast(channel[y : y + h, x : x + w], tf.float64)
      exact = tf.cast(mean, tf.float64) + weight * neighbour
      mean = tf.cast(exact, tf.float32)
    return _blend(_to_level(mean), channel[1:-1, 1:-1], factor)

  sharpened = _each_channel(sharpen, tf.pad(image, [[1, 1], [1, 1]]))
  y, x = _coordinates(image)
  inside = (y > 0) & (x > 0) & (y < y[-1]) & (x < x[:, -1:])
  return tf.where(inside, sharpened, image)


@_on_images
def shear_x(image: tf.Tensor, level: float) -> tf.Tensor:
  """Move row y to the left by level * y pixels.

  Example:
    >>> image = autoaugment.shear_x(image, level=0.3)
  """
  y, x = _coordinates(image)
  return _sample(image, y, x + _product(tf.cast(level, tf.float32), y))


@_on_images
def shear_y(image: tf.Tensor, level: float) -> tf.Tensor:
  """Move column x up by level * x pixels.

  Example:
    >>> image = autoaugment.shear_y(image, level=0.3)
  """
  y, x = _coordinates(image)
  return _sample(image, y + _product(tf.cast(level, tf.float32), x), x)


@_on_images
def translate_x(image: tf.Tensor, pixels: float) -> tf.Tensor:
  """Move the image to the left by that many pixels.

  Example:
    >>> image = autoaugment.translate_x(image, pixels=4)
  """
  y, x = _coordinates(image)
  return _sample(image, y, x + tf.cast(pixels, tf.float32))


@_on_images
def translate_y(image: tf.Tensor, pixels: float) -> tf.Tensor:
  """Move the image up by that many pixels.

  Example:
    >>> image = autoaugment.translate_y(image, pixels=4)
  """
  y, x = _coordinates(image)
  return _sample(image, y + tf.cast(pixels, tf.float32), x)


@_on_images
def cutout(
  image: tf.Tensor,
  half_side: int,
  centre: Sequence[int] | tf.Tensor | None = None,
  *,
  seed: tf.Tensor | None = None,
) -> tf.Tensor:
  """Cut out a square, or what of it is in the image.

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

  Example:
    >>> image = autoaugment.cutout(image, half_side=8, centre=(16, 16))
  """
  if (centre is None) == (seed is None):
    raise ValueError('Cutout needs either a centre or a seed to draw it from.')
  if centre is None:
    place = tf.random.stateless_uniform([2], seed)
    centre = place * tf.cast(tf.shape(image), tf.float32)
  half_side = tf.cast(half_side, tf.int32)
  first = tf.cast(centre, tf.int32) - half_side
  y, x = _coordinates(image, tf.int32)
  rows = (y >= first[0]) & (y < first[0] + 2 * half_side)
  columns = (x >= first[1]) & (x < first[1] + 2 * half_side)
  return tf.where(rows & columns, _FILL, image)


def _channels(pixels: tf.Tensor) -> list[tf.Tensor]:
  return [
    tf.bitwise.bitwise_and(tf.bitwise.right_shift(pixels, shift), 255)
    for shift in (0, 8, 16)
  ]


def _each_channel(run: Callable, pixels: tf.Tensor) -> tf.Tensor:
  red, green, blue = map(run, _channels(pixels))
  return red + 0x100 * green + 0x10000 * blue


def _grey(pixels: tf.Tensor) -> tf.Tensor:
  """Return the luma as levels, int32 [H, W]."""
  red, green, blue = (tf.cast(c, tf.float32) for c in _channels(pixels))
  # A whole number, and exact. TensorFlow's rgb_to_grayscale divides by 255,
  # multiplies by 255.5 and rounds down.
  luma = 2989 * red + 5870 * green + 1140 * blue
  return tf.cast(luma * (511 / 510 / 10_000), tf.int32)


def _blend(start: tf.Tensor, end: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Return start + factor * (end - start), for levels in int32."""
  start, end = tf.cast(start, tf.float32), tf.cast(end, tf.float32)
  return _to_level(start + _product(tf.cast(factor, tf.float32), end - start))


def _to_level(values: tf.Tensor) -> tf.Tensor:
  return tf.cast(tf.clip_by_value(values, 0, 255), tf.int32)


def _product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
  """Return a * b, rounded.

  Where a sum follows, a compiler may merge both into one instruction that
  rounds once, on processors that have it. The limit, out of every result's
  reach, keeps the two apart.
  """
  return tf.maximum(a * b, -1e9)


def _coordinates(pixels: tf.Tensor, dtype=tf.float32) -> tuple:
  """Return y [H, 1] and x [1, W]."""
  h, w = tf.unstack(tf.shape(pixels))
  y, x = tf.range(h)[:, tf.newaxis], tf.range(w)[tf.newaxis]
  return tf.cast(y, dtype), tf.cast(x, dtype)


def _sample(pixels: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
  """Read the pixels nearest to (y, x), float32 that broadcast to [H, W]."""
  h, w = tf.unstack(tf.shape(pixels))

  def nearest(position, size):
    # Halves are rounded away from zero, so -0.5 is outside.
    index = tf.cast(tf.floor(position + 0.5), tf.int32)
    return index, (position > -0.5) & (index < size)

  (y, y_inside), (x, x_inside) = nearest(y, h), nearest(x, w)
  inside = y_inside & x_inside
  flat = tf.where(inside, y * w + x, 0)
  return tf.where(inside, tf.gather(tf.reshape(pixels, [-1]), flat), _FILL)
