"""The published evaluation preprocessings, in NumPy.

The same numbers as `nfnets.data.preprocess.preprocess_eval`, but for rounding,
without TensorFlow, which takes longer to import than a network to answer. JPEGs
are decoded by the package `simplejpeg`, whose decoder is TensorFlow's, with the
same fast transform. TensorFlow does it where that is not installed, and, if it
can, for 'crop_resize' of JPEGs with colours of half the size: it decodes the
crop alone, and the colours at its edges then lack those of the neighbours.

Several threads may call this at once; most of its time others can run.
"""

import functools
import importlib.util
import io
import logging
from typing import NamedTuple

import numpy as np

from nfnets.eval_modes import check_eval_mode

_JPEG = b'\xff\xd8\xff'
_TABLE_SIZE = 1024  # TensorFlow takes the filter from a table.
_ONE = np.float32(1)

_log = logging.getLogger(__name__)


class _Taps(NamedTuple):
  """Which pixels along an axis make up each pixel of a result.

  Attributes:
    indices: int [taps, size].
    weights: float32 [taps, size].
  """

  indices: np.ndarray
  weights: np.ndarray


def preprocess_eval(
  image: bytes | np.ndarray, image_size: tuple[int, int], mode: str
) -> np.ndarray:
  """Prepares an image for evaluation.

  Args:
    image: an encoded JPEG or PNG, or uint8 [H, W, 1 or 3].
    image_size: (h, w) in pixels.
    mode: see `nfnets.data.preprocess.preprocess_eval`.

  Returns:
    float32 [h, w, 3] in 0-255, not normalized.

  Raises:
    ValueError: The mode is unknown, or the image is damaged.
    TypeError: The image is neither encoded nor uint8.
  """
  check_eval_mode(mode)
  if isinstance(image, bytes):
    if image.startswith(_JPEG) and not _can_decode(image, mode):
      from nfnets.data import preprocess

      return np.asarray(preprocess.preprocess_eval(image, image_size, mode))
    image = _decode(image)
  if image.dtype != np.uint8:
    raise TypeError(
      'An image has to be encoded bytes or an array of uint8, not of '
      f'{image.dtype}.'
    )
  if mode == 'crop_resize':
    image = _centre_window(image, image_size)
    rows, columns = (
      _bicubic(n, size, 0, size)
      for n, size in zip(image.shape, image_size, strict=False)
    )
    return _resample(image, rows, columns)
  margin = float(mode.rpartition('_')[2])
  if mode.startswith('center'):
    rows, columns = _centre_of_cover(image.shape[:2], image_size, margin)
    return np.clip(_resample(image, rows, columns), 0, 255)
  if margin > 1:
    larger = [side + int(margin) for side in image_size]
  else:
    larger = [int(side / margin) for side in image_size]
  rows, columns = (
    _bicubic(n, whole, _centre(whole, size), size)
    for n, whole, size in zip(image.shape, larger, image_size, strict=False)
  )
  return _resample(image, rows, columns)


@functools.cache
def _has_simplejpeg() -> bool:
  return importlib.util.find_spec('simplejpeg') is not None


@functools.cache
def _has_tensorflow() -> bool:
  if importlib.util.find_spec('tensorflow') is not None:
    return True
  _log.warning(
    'Without TensorFlow, JPEGs with colours of half the size are cropped after '
    'they are decoded, which changes their outermost two pixels a little.'
  )
  return False


def _can_decode(content: bytes, mode: str) -> bool:
  """Returns whether the pixels are TensorFlow's, as far as can be had."""
  if not _has_simplejpeg():
    return False
  if mode != 'crop_resize':
    return True
  import simplejpeg

  if simplejpeg.decode_jpeg_header(content)[3] in ('444', 'Gray'):
    return True
  return not _has_tensorflow()


def _decode(content: bytes) -> np.ndarray:
  if content.startswith(_JPEG):
    import simplejpeg

    return simplejpeg.decode_jpeg(content, 'RGB', fastdct=True)
  from nfnets.inference import images

  return images.decode(io.BytesIO(content))


def _centre(outer: int, inner: int) -> int:
  return (outer - inner + 1) // 2


def _centre_window(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The centre crop that leaves a margin of 32 pixels at the final scale."""
  shape = np.float32(image.shape[:2])
  sides = np.float32(size)
  scale = np.min(shape / (sides + 32))
  h, w = (max(1, int(side)) for side in scale * sides)
  top, left = _centre(image.shape[0], h), _centre(image.shape[1], w)
  return image[top : top + h, left : left + w]


@functools.cache
def _table() -> np.ndarray:
  """Keys' cubic filter at 0 to 1 and at 1 to 2, float32 [1025, 2]."""
  x = np.arange(_TABLE_SIZE + 1, dtype=np.float32) / np.float32(_TABLE_SIZE)
  return np.stack([_cubic(x), _cubic(x + _ONE)], axis=1)


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' cubic filter with a = -1/2, for x from 0 on."""
  f = np.float32
  near = ((f(1.5) * x - f(2.5)) * x) * x + _ONE
  far = ((f(-0.5) * x + f(2.5)) * x - f(4)) * x + f(2)
  return np.where(x < 1, near, np.where(x < 2, far, f(0)))


@functools.lru_cache(maxsize=256)
def _bicubic(n: int, whole: int, start: int, size: int) -> _Taps:
  """Returns how TensorFlow's ResizeBicubic makes part of a longer axis.

  Args:
    n: length of the axis.
    whole: length that it is resized to.
    start: where the part begins.
    size: its length.
  """
  scale = np.float32(n) / np.float32(whole)
  x = np.arange(start, start + size, dtype=np.float32)
  x = (x + np.float32(0.5)) * scale - np.float32(0.5)
  left = np.floor(x)
  offset = np.rint((x - left) * np.float32(_TABLE_SIZE)).astype(int)
  table = _table()
  indices = left.astype(int) + np.arange(-1, 3)[:, None]
  weights = np.stack(
    [
      table[offset, 1],
      table[offset, 0],
      table[_TABLE_SIZE - offset, 0],
      table[_TABLE_SIZE - offset, 1],
    ]
  )
  return _within(indices, weights, n)


def _within(indices: np.ndarray, weights: np.ndarray, n: int) -> _Taps:
  """Leaves out pixels beyond the image; the weights' sums become 1."""
  weights = np.where((indices >= 0) & (indices < n), weights, np.float32(0))
  total = weights.sum(axis=0, dtype=np.float32)
  return _Taps(np.clip(indices, 0, n - 1), weights * (_ONE / total))


def _centre_of_cover(
  shape: tuple[int, int], size: tuple[int, int], part: float
) -> tuple[_Taps, _Taps]:
  """Returns what makes the centre of an image that covers `size` / `part`."""
  h, w = (int(side / part) for side in size)
  height, width = shape
  if h * width >= w * height:
    resized = h, h * width // height
  else:
    resized = w * height // width, w
  taps = []
  for n, long, side in zip(shape, resized, size, strict=True):
    # Halves are rounded to even numbers, as in Python.
    corner = np.rint((np.float32(long) - np.float32(side)) / 2)
    taps.append(_antialiased(n, long, float(corner), side))
  return taps[0], taps[1]


@functools.lru_cache(maxsize=256)
def _antialiased(n: int, whole: int, start: float, size: int) -> _Taps:
  """As `_bicubic`, by TensorFlow's ScaleAndTranslate with antialiasing."""
  f = np.float32
  inverse = f(1) / (f(whole) / f(n))
  stretch = max(inverse, _ONE)
  x = (np.arange(size, dtype=f) + f(0.5)) * inverse + inverse * f(start)
  reach = f(2) * stretch
  first = np.ceil(x - reach - f(0.5)).astype(int)
  count = int(np.floor(x + reach - f(0.5)).max() - first.min()) + 1
  count = min(count, 2 * int(np.ceil(reach)) + 1)
  indices = first + np.arange(count)[:, None]
  distance = np.abs(indices.astype(f) + f(0.5) - x)
  return _within(indices, _cubic(distance * (_ONE / stretch)), n)


def _resample(image: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
  """Returns float32 [h, w, 3] of uint8 [H, W, C]."""
  low, high = columns.indices.min(), columns.indices.max() + 1
  image = image[:, low:high]
  result = _along_rows(image, rows)
  # The same along the other axis, where rows of it are what is contiguous.
  result = np.ascontiguousarray(result.swapaxes(0, 1))
  result = _along_rows(result, _Taps(columns.indices - low, columns.weights))
  result = np.ascontiguousarray(result.swapaxes(0, 1))
  if result.shape[2] == 1:
    result = np.repeat(result, 3, axis=2)
  return result


def _along_rows(image: np.ndarray, taps: _Taps) -> np.ndarray:
  shape = image.shape[1:]
  pixels = image.reshape(len(image), -1)
  result = np.zeros((taps.indices.shape[1], pixels.shape[1]), np.float32)
  for indices, weights in zip(*taps, strict=True):
    result += pixels[indices] * weights[:, None]
  return result.reshape(-1, *shape)
