"""Images in, model inputs out: the published preprocessings, in TensorFlow.

Every function takes one image, encoded (a scalar string tensor of a JPEG, PNG,
GIF or BMP, or Python bytes, which `nfnets.inference.images` reads) or decoded
(uint8 [H, W, 1 or 3]), and works eagerly as well as inside tf.data. Results are
float32 [h, w, 3] in 0-255, not normalized; the bicubic filter may overshoot
that range a little, as it did when the released models were trained.

From a JPEG only the crop is decoded.
"""

from collections.abc import Callable
import re

import tensorflow as tf

from nfnets.imagenet import check_eval_mode, normalize
from nfnets.inference import images

__all__ = [
  'check_eval_mode',
  'normalize',
  'preprocess_eval',
  'train_crop_flip',
  'train_shift',
]

TRAIN_MODES = "'crop_flip' or 'shift_K' (such as 'shift_3')"

# Chooses [top, left, height, width] (int32 [4]) from [H, W] (int32 [2]).
_Window = Callable[[tf.Tensor], tf.Tensor]


def preprocess_eval(
  image_bytes: bytes | tf.Tensor,
  image_size: tuple[int, int],
  mode: str,
) -> tf.Tensor:
  """Prepare an image for evaluation.

  Modes:
    `crop_resize`: the centre crop of side * min(H / (h + 32), W / (w + 32)) for
      each side of [h, w], resized to [h, w].
    `resize_crop_P`: for an integer P > 1, resizes to [h + P, w + P] and takes
      the centre; for 0 < P <= 1, resizes to [h / P, w / P], rounded down, and
      takes the centre. Does not keep the aspect ratio. 'resize_crop_1' is a
      plain resize.
    `center_crop_P`: for 0 < P <= 1, resizes with antialiasing such that the
      image just covers [h / P, w / P], rounded down, and takes the centre, as
      PyTorch Image Models (timm) does. Keeps the aspect ratio. These results
      are clamped to 0-255, as Pillow's are.

  Args:
    image_bytes: An encoded image, or uint8 [H, W, 1 or 3].
    image_size: (h, w) in pixels.
    mode: One of the modes above.

  Returns:
    float32 [h, w, 3] in 0-255.

  Raises:
    ValueError: The mode is unknown.
    TypeError: The image is neither encoded nor uint8.

  Example:
    >>> image = preprocess.preprocess_eval(png, (32, 32), 'resize_crop_1')
  """
  check_eval_mode(mode)
  size = tuple(image_size)
  image = _as_image(image_bytes)
  if mode == 'crop_resize':
    crop = _decode_window(image, lambda shape: _centre_window(shape, size))
    return _resize(crop, size)
  margin = float(mode.rpartition('_')[2])
  if mode.startswith('center'):
    return _resize_centre(_decode_window(image, _whole_window), size, margin)
  if margin > 1:
    larger = tuple(side + int(margin) for side in size)
  else:
    larger = tuple(int(side / margin) for side in size)
  image = _resize(_decode_window(image, _whole_window), larger)
  top, left = _centre(larger[0], size[0]), _centre(larger[1], size[1])
  return image[top : top + size[0], left : left + size[1]]


def decode(image_bytes: bytes | tf.Tensor) -> tf.Tensor:
  """Decode a whole image, for several crops of it.

  Args:
    image_bytes: An encoded image, or uint8 [H, W, 1 or 3].

  Returns:
    uint8 [H, W, 3]. If a JPEG's colours have half the resolution, border pixels
    of a crop differ from those of decoding the crop alone, because upsampling
    uses their neighbours.
  """
  return _decode_window(_as_image(image_bytes), _whole_window)


def train_preprocessing(
  mode: str, image_size: tuple[int, int]
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Return the training preprocessing of that name.

  Args:
    mode: `crop_flip` or `shift_K`, with K a number of pixels.
    image_size: (h, w) in pixels.

  Returns:
    A function of (image, seed) that returns float32 [h, w, 3] in 0-255.

  Raises:
    ValueError: The mode is unknown.
  """
  if mode == 'crop_flip':
    return lambda image, seed: train_crop_flip(image, image_size, seed)
  shift = re.fullmatch(r'shift_(\d+)', mode)
  if shift is None:
    raise ValueError(
      f'Unknown training preprocessing {mode!r}: use {TRAIN_MODES}, where K '
      'is a whole number of pixels.'
    )
  pixels = int(shift[1])
  return lambda image, seed: train_shift(image, image_size, seed, pixels)


def train_crop_flip(
  image_bytes: bytes | tf.Tensor,
  image_size: tuple[int, int],
  seed: tf.Tensor,
) -> tf.Tensor:
  """Take a random crop, resized, and flip it half of the time.

  The crop covers 8 % to 100 % of the image with an aspect ratio of 3/4 to 4/3
  (Szegedy et al., arXiv 1409.4842). Where ten attempts find none, it is the
  centre crop of `preprocess_eval`'s 'crop_resize'.

  Args:
    image_bytes: An encoded image, or uint8 [H, W, 1 or 3].
    image_size: (h, w) in pixels.
    seed: int64 [2]; the same seed gives the same crop and flip.

  Returns:
    float32 [h, w, 3] in 0-255.

  Example:
    >>> image = preprocess.train_crop_flip(png, (32, 32), seed)
  """
  image = _as_image(image_bytes)
  crop = _decode_window(
    image, lambda shape: random_window(shape, image_size, seed)
  )
  flip = tf.random.stateless_uniform([], tf.random.fold_in(seed, 1)) < 0.5
  crop = tf.cond(flip, lambda: tf.reverse(crop, [1]), lambda: crop)
  return _resize(crop, image_size)


def random_window(
  shape: tf.Tensor, image_size: tuple[int, int], seed: tf.Tensor
) -> tf.Tensor:
  """Choose the crop of `train_crop_flip`.

  Args:
    shape: int32 [2], height and width of the image in pixels.
    image_size: (h, w) that the crop will be resized to, for the fallback.
    seed: int64 [2].

  Returns:
    int32 [4]: top, left, height and width in pixels.
  """
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    tf.concat([shape, [3]], 0),
    bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
    seed=tf.random.fold_in(seed, 0),
    min_object_covered=0.1,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(0.08, 1.0),
    max_attempts=10,
    use_image_if_no_bounding_boxes=True,
  )
  # Failure is reported as a crop of the whole image.
  return tf.cond(
    tf.reduce_all(size[:2] == shape),
    lambda: _centre_window(shape, image_size),
    lambda: tf.concat([begin[:2], size[:2]], 0),
  )


def train_shift(
  image_bytes: bytes | tf.Tensor,
  image_size: tuple[int, int],
  seed: tf.Tensor,
  pixels: int,
) -> tf.Tensor:
  """Resize the whole image and shift it at random; the border is black.

  Args:
    image_bytes: An encoded image, or uint8 [H, W, 1 or 3].
    image_size: (h, w) in pixels.
    seed: int64 [2]; the same seed gives the same shift.
    pixels: The largest shift along each axis, uniform in [-pixels, pixels].

  Returns:
    float32 [h, w, 3] in 0-255.

  Example:
    >>> image = preprocess.train_shift(png, (32, 32), seed, pixels=3)
  """
  h, w = image_size
  image = _decode_window(_as_image(image_bytes), _whole_window)
  padding = [[pixels, pixels], [pixels, pixels], [0, 0]]
  image = tf.pad(_resize(image, image_size), padding)
  offset = tf.random.stateless_uniform(
    [2], seed, maxval=2 * pixels + 1, dtype=tf.int32
  )
  image = tf.slice(image, tf.concat([offset, [0]], 0), [h, w, 3])
  return tf.ensure_shape(image, [h, w, 3])


def _as_image(image) -> tf.Tensor:
  """Return an encoded (string []) or a decoded (uint8 [H, W, C]) image."""
  if isinstance(image, bytes):
    image = images.read(image, check=False)
  image = tf.convert_to_tensor(image)
  if image.dtype not in (tf.string, tf.uint8):
    raise TypeError(
      'An image has to be encoded bytes or an array of uint8, not of '
      f'{image.dtype.name}.'
    )
  return image


def _decode_window(image: tf.Tensor, window: _Window) -> tf.Tensor:
  """Return one window of the image as uint8 [h, w, 3]."""
  if image.dtype == tf.uint8:
    return _crop_decoded(image, window)

  def jpeg() -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(image)[:2]
    return tf.io.decode_and_crop_jpeg(image, window(shape), channels=3)

  def other() -> tf.Tensor:
    decoded = tf.io.decode_image(image, channels=3, expand_animations=False)
    return _crop_decoded(tf.ensure_shape(decoded, [None, None, 3]), window)

  return tf.cond(tf.io.is_jpeg(image), jpeg, other)


def _crop_decoded(image: tf.Tensor, window: _Window) -> tf.Tensor:
  top, left, height, width = tf.unstack(window(tf.shape(image)[:2]))
  crop = image[top : top + height, left : left + width]
  return tf.image.grayscale_to_rgb(crop) if crop.shape[-1] == 1 else crop


def _whole_window(shape: tf.Tensor) -> tf.Tensor:
  return tf.concat([[0, 0], shape], 0)


def _centre_window(shape: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
  """The centre crop that leaves a margin of 32 pixels at the final scale."""
  padded = tf.constant([float(side + 32) for side in size])
  scale = tf.reduce_min(tf.cast(shape, tf.float32) / padded)
  crop = tf.cast(scale * tf.constant(size, tf.float32), tf.int32)
  crop = tf.maximum(crop, 1)
  return tf.concat([_centre(shape, crop), crop], 0)


def _centre(outer, inner):
  return (outer - inner + 1) // 2


def _resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
  """Bicubic without antialiasing; [H, W, 3] to float32 [h, w, 3], unclamped."""
  # The op behind tf.image.resize, which would leave uint8 images alone where
  # no resizing is needed. It reads uint8 directly.
  return tf.raw_ops.ResizeBicubic(
    images=image[tf.newaxis], size=size, half_pixel_centers=True
  )[0]


def _resize_centre(
  image: tf.Tensor, size: tuple[int, int], part: float
) -> tf.Tensor:
  """Return the centre [h, w] of the image resized to cover [h, w] / part."""
  h, w = (tf.constant(int(side / part), tf.int64) for side in size)
  height, width = tf.unstack(tf.shape(image, tf.int64)[:2])
  resized = tf.cond(
    h * width >= w * height,
    lambda: tf.stack([h, h * width // height]),
    lambda: tf.stack([w * height // width, w]),
  )
  resized = tf.cast(resized, tf.float32)
  # Halves are rounded to even numbers, as there.
  corner = tf.round((resized - tf.constant(size, tf.float32)) / 2)
  # The op behind tf.image.resize's antialiasing; it makes the crop alone.
  image = tf.raw_ops.ScaleAndTranslate(
    images=image[tf.newaxis],
    size=size,
    scale=resized / tf.cast(tf.shape(image)[:2], tf.float32),
    translation=-corner,
    kernel_type='keyscubic',
    antialias=True,
  )[0]
  return tf.clip_by_value(image, 0, 255)
