"""The operations of AutoAugment, on packed pixels.

Here an image is int32 [H, W]: red in the lowest byte of each number, then green
and blue. Whole pixels move in one piece, and most operations become a single
loop of whole numbers when XLA compiles them.

The arithmetic is that of the published code, step by step, so that results
agree to the last bit, whether compiled or not and on every processor.
"""

from collections.abc import Callable
import math

import numpy as np
import tensorflow as tf

# What appears where the image has moved away or is cut out.
_FILL = 0x808080


def pack(image: tf.Tensor) -> tf.Tensor:
  """Packs uint8 [H, W, 3] into int32 [H, W]."""
  return tf.bitcast(tf.pad(image, [[0, 0], [0, 0], [0, 1]]), tf.int32)


def unpack(pixels: tf.Tensor) -> tf.Tensor:
  """Undoes `pack`."""
  return tf.bitcast(pixels, tf.uint8)[..., :3]


def autocontrast(pixels: tf.Tensor) -> tf.Tensor:
  """Stretches each channel to 0-255."""

  def stretch(channel):
    low, high = tf.reduce_min(channel), tf.reduce_max(channel)
    scale = 255 / tf.cast(tf.maximum(high - low, 1), tf.float32)
    offset = -tf.cast(low, tf.float32) * scale
    stretched = _product(tf.cast(channel, tf.float32), scale) + offset
    return tf.where(high > low, _to_level(stretched), channel)

  return _each_channel(stretch, pixels)


def equalize(pixels: tf.Tensor) -> tf.Tensor:
  """Evens out the histogram of each channel."""

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

  return _each_channel(spread, pixels)


def invert(pixels: tf.Tensor) -> tf.Tensor:
  """Subtracts every channel from 255."""
  return 0xFFFFFF - pixels


def rotate(pixels: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
  """Rotates counterclockwise around the centre."""
  # In float64, because libraries differ in the last bit of float32.
  radians = tf.cast(tf.cast(degrees, tf.float32), tf.float64) * (math.pi / 180)
  cos, sin = tf.cos(radians), tf.sin(radians)
  bottom, right = tf.unstack(tf.cast(tf.shape(pixels) - 1, tf.float64))
  down = (bottom - (sin * right + cos * bottom)) / 2
  across = (right - (cos * right - sin * bottom)) / 2
  cos, sin, down, across = (
    tf.cast(v, tf.float32) for v in (cos, sin, down, across)
  )
  y, x = _coordinates(pixels)
  return _sample(
    pixels,
    _product(sin, x) + _product(cos, y) + down,
    _product(cos, x) + _product(-sin, y) + across,
  )


def posterize(pixels: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Keeps the top bits of each channel."""
  # Nothing shifts a byte by 8: 0 bits became 1 in the published code.
  dropped = tf.clip_by_value(8 - tf.cast(bits, tf.int32), 0, 7)
  kept = 256 - tf.bitwise.left_shift(1, dropped)
  return tf.bitwise.bitwise_and(pixels, 0x10101 * kept)


def solarize(pixels: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
  """Inverts levels from the threshold on."""
  threshold = tf.cast(threshold, tf.int32)
  return _each_channel(lambda c: tf.where(c < threshold, c, 255 - c), pixels)


def solarize_add(pixels: tf.Tensor, addition: tf.Tensor) -> tf.Tensor:
  """Adds to levels below 128."""
  addition = tf.cast(addition, tf.int32)

  def add(channel):
    added = tf.clip_by_value(channel + addition, 0, 255)
    return tf.where(channel < 128, added, channel)

  return _each_channel(add, pixels)


def color(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends the grey image with the image."""
  grey = _grey(pixels)
  return _each_channel(lambda c: _blend(grey, c, factor), pixels)


def contrast(
  pixels: tf.Tensor, factor: tf.Tensor, constant_grey: bool
) -> tf.Tensor:
  """Blends one grey level with the image."""
  size = tf.size(pixels)
  if constant_grey:
    # Published was the mean over the bins of a histogram, so of their counts.
    grey = tf.minimum(size // 256, 255)
  else:
    size = tf.cast(size, tf.int64)
    total = tf.reduce_sum(tf.cast(_grey(pixels), tf.int64))
    grey = tf.cast((total + size // 2) // size, tf.int32)
  return _each_channel(lambda c: _blend(grey, c, factor), pixels)


def brightness(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends black with the image."""
  return _each_channel(lambda c: _blend(0, c, factor), pixels)


def sharpness(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends the smoothed image with the image; the border stays."""
  # The centre weighs 5, its neighbours 1, over 13. Where the mean is a whole
  # number, rounding decides whether it comes out one lower: as published, a sum
  # in float32 that is rounded once per neighbour.
  weights = np.full([3, 3], np.float32(1) / np.float32(13), np.float64)
  weights[1, 1] = np.float32(5) / np.float32(13)
  h, w = tf.unstack(tf.shape(pixels))

  def sharpen(channel):
    mean = tf.zeros([h, w])
    for (y, x), weight in np.ndenumerate(weights):
      neighbour = tf.cast(channel[y : y + h, x : x + w], tf.float64)
      exact = tf.cast(mean, tf.float64) + weight * neighbour
      mean = tf.cast(exact, tf.float32)
    return _blend(_to_level(mean), channel[1:-1, 1:-1], factor)

  sharpened = _each_channel(sharpen, tf.pad(pixels, [[1, 1], [1, 1]]))
  y, x = _coordinates(pixels)
  inside = (y > 0) & (x > 0) & (y < y[-1]) & (x < x[:, -1:])
  return tf.where(inside, sharpened, pixels)


def shear_x(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
  """Moves row y to the left by level * y."""
  y, x = _coordinates(pixels)
  return _sample(pixels, y, x + _product(tf.cast(level, tf.float32), y))


def shear_y(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
  """Moves column x up by level * x."""
  y, x = _coordinates(pixels)
  return _sample(pixels, y + _product(tf.cast(level, tf.float32), x), x)


def translate_x(pixels: tf.Tensor, distance: tf.Tensor) -> tf.Tensor:
  """Moves everything to the left."""
  y, x = _coordinates(pixels)
  return _sample(pixels, y, x + tf.cast(distance, tf.float32))


def translate_y(pixels: tf.Tensor, distance: tf.Tensor) -> tf.Tensor:
  """Moves everything up."""
  y, x = _coordinates(pixels)
  return _sample(pixels, y + tf.cast(distance, tf.float32), x)


def cutout(
  pixels: tf.Tensor, half_side: tf.Tensor, centre: tf.Tensor
) -> tf.Tensor:
  """Cuts out a square around (y, x)."""
  half_side = tf.cast(half_side, tf.int32)
  first = tf.cast(centre, tf.int32) - half_side
  y, x = _coordinates(pixels, tf.int32)
  rows = (y >= first[0]) & (y < first[0] + 2 * half_side)
  columns = (x >= first[1]) & (x < first[1] + 2 * half_side)
  return tf.where(rows & columns, _FILL, pixels)


def _channels(pixels: tf.Tensor) -> list[tf.Tensor]:
  return [
    tf.bitwise.bitwise_and(tf.bitwise.right_shift(pixels, shift), 255)
    for shift in (0, 8, 16)
  ]


def _each_channel(
  run: Callable[[tf.Tensor], tf.Tensor], pixels: tf.Tensor
) -> tf.Tensor:
  red, green, blue = map(run, _channels(pixels))
  return red + 0x100 * green + 0x10000 * blue


def _grey(pixels: tf.Tensor) -> tf.Tensor:
  """Returns the luma as levels, int32 [H, W]."""
  red, green, blue = (tf.cast(c, tf.float32) for c in _channels(pixels))
  # A whole number, and exact. TensorFlow's rgb_to_grayscale divides by 255,
  # multiplies by 255.5 and rounds down.
  luma = 2989 * red + 5870 * green + 1140 * blue
  return tf.cast(luma * (511 / 510 / 10_000), tf.int32)


def _blend(start: tf.Tensor, end: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Returns start + factor * (end - start), for levels in int32."""
  start, end = tf.cast(start, tf.float32), tf.cast(end, tf.float32)
  return _to_level(start + _product(tf.cast(factor, tf.float32), end - start))


def _to_level(values: tf.Tensor) -> tf.Tensor:
  return tf.cast(tf.clip_by_value(values, 0, 255), tf.int32)


def _product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
  """Returns a * b, rounded.

  Where a sum follows, a compiler may merge both into one instruction that
  rounds once, on processors that have it. The limit, out of every result's
  reach, keeps the two apart.
  """
  return tf.maximum(a * b, -1e9)


def _coordinates(
  pixels: tf.Tensor, dtype: tf.DType = tf.float32
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns y [H, 1] and x [1, W]."""
  h, w = tf.unstack(tf.shape(pixels))
  y, x = tf.range(h)[:, tf.newaxis], tf.range(w)[tf.newaxis]
  return tf.cast(y, dtype), tf.cast(x, dtype)


def _sample(pixels: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
  """Reads the pixels nearest to (y, x), float32 that broadcast to [H, W]."""
  h, w = tf.unstack(tf.shape(pixels))

  def nearest(position, size):
    # Halves are rounded away from zero, so -0.5 is outside.
    index = tf.cast(tf.floor(position + 0.5), tf.int32)
    return index, (position > -0.5) & (index < size)

  (y, y_inside), (x, x_inside) = nearest(y, h), nearest(x, w)
  inside = y_inside & x_inside
  flat = tf.where(inside, y * w + x, 0)
  return tf.where(inside, tf.gather(tf.reshape(pixels, [-1]), flat), _FILL)
