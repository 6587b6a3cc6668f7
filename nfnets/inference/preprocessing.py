"""The published evaluation preprocessings, in NumPy.

The same numbers as `nfnets.data.preprocess.preprocess_eval`, but for rounding,
without TensorFlow, which takes longer to import than a network to answer.
Pictures are read by `nfnets.inference.images`. Plain JPEGs are decoded by the
package `simplejpeg`, whose decoder is TensorFlow's, with the same fast
transform. TensorFlow does it, where it is installed, for 'crop_resize' of JPEGs
with colours of half the size: it decodes the crop alone, and the colours at its
edges then lack those of the neighbours.

Several threads may call this at once; most of its time others can run.
"""

import functools
import importlib.util
import io
import logging
from typing import Any

import numpy as np

from nfnets.imagenet import check_eval_mode

# Pixels that make up each pixel of a result along an axis: their indices, int
# [taps, size], and their weights, float32 [taps, size].
_Taps = tuple[np.ndarray, np.ndarray]

_log = logging.getLogger(__name__)


def preprocess_eval(
  image: Any, image_size: tuple[int, int], mode: str
) -> np.ndarray:
  """Prepare an image for evaluation.

  Args:
    image: see `nfnets.inference.images.read`.
    image_size: (h, w) in pixels.
    mode: see `nfnets.data.preprocess.preprocess_eval`.

  Returns:
    float32 [h, w, 3] in 0-255, not normalized.

  Raises:
    ValueError: The mode is unknown, or this is no image, or a damaged one.
  """
  check_eval_mode(mode)
  from nfnets.inference import images

  image = images.read(image, check=False)
  if isinstance(image, bytes):
    import simplejpeg

    try:
      if mode == 'crop_resize' and _has_small_colours(image):
        from nfnets.data import preprocess

        return np.asarray(preprocess.preprocess_eval(image, image_size, mode))
      # A slightly damaged JPEG is decoded as far as TensorFlow does.
      image = simplejpeg.decode_jpeg(image, 'RGB', fastdct=True, strict=False)
    except ImportError:
      raise
    except Exception:  # Pillow reads more, and says what is wrong.
      image = images.decode(io.BytesIO(image), keep_jpeg=False)
  margin = 1.0 if mode == 'crop_resize' else float(mode.rpartition('_')[2])
  if mode.startswith('center'):
    taps = _centre_of_cover(image.shape[:2], image_size, margin)
    return np.clip(_resample(image, *taps), 0, 255)
  if mode == 'crop_resize':
    image = _centre_window(image, image_size)
  larger = [int(n + margin if margin > 1 else n / margin) for n in image_size]
  return _resample(
    image,
    *(
      _bicubic(n, whole, _centre(whole, size), size)
      for n, whole, size in zip(image.shape, larger, image_size, strict=False)
    ),
  )


@functools.cache
def _has_tensorflow() -> bool:
  if importlib.util.find_spec('tensorflow') is not None:
    return True
  _log.warning(
    'Without TensorFlow, JPEGs with colours of half the size are cropped after '
    'they are decoded, which changes their outermost two pixels a little.'
  )
  return False


def _has_small_colours(content: bytes) -> bool:
  """Return whether TensorFlow decodes other colours at the edges of a crop."""
  import simplejpeg

  subsampling = simplejpeg.decode_jpeg_header(content)[3]
  return subsampling not in ('444', 'Gray') and _has_tensorflow()


def _centre(outer: int, inner: int) -> int:
  return (outer - inner + 1) // 2


def _centre_window(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The centre crop that leaves a margin of 32 pixels at the final scale."""
  sides = np.float32(size)
  scale = np.min(np.float32(image.shape[:2]) / (sides + 32))
  h, w = (max(1, int(side)) for side in scale * sides)
  top, left = _centre(image.shape[0], h), _centre(image.shape[1], w)
  return image[top : top + h, left : left + w]


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' cubic filter with a = -1/2, for x from 0 on."""
  f = np.float32
  near = ((f(1.5) * x - f(2.5)) * x) * x + f(1)
  far = ((f(-0.5) * x + f(2.5)) * x - f(4)) * x + f(2)
  return np.where(x < 1, near, np.where(x < 2, far, f(0)))


@functools.lru_cache(maxsize=256)
def _bicubic(n: int, whole: int, start: int, size: int) -> _Taps:
  """Return how TensorFlow's ResizeBicubic makes part of a longer axis.

  Args:
    n: length of the axis.
    whole: length that it is resized to.
    start: beginning of the part.
    size: its length.
  """
  f = np.float32
  x = np.arange(start, start + size, dtype=f)
  x = (x + f(0.5)) * (f(n) / f(whole)) - f(0.5)
  left = np.floor(x)
  offset = np.rint((x - left) * f(1024)) / f(1024)  # It is from a table there.
  taps = np.arange(-1, 3, dtype=f)[:, None]
  return _within((left + taps).astype(int), _cubic(np.abs(taps - offset)), n)


def _within(indices: np.ndarray, weights: np.ndarray, n: int) -> _Taps:
  """Leave out pixels beyond the image; the weights' sums become 1."""
  weights = np.where((indices >= 0) & (indices < n), weights, np.float32(0))
  total = weights.sum(axis=0, dtype=np.float32)
  return np.clip(indices, 0, n - 1), weights * (np.float32(1) / total)


def _centre_of_cover(
  shape: tuple[int, int], size: tuple[int, int], part: float
) -> list[_Taps]:
  """Return what makes the centre of an image that covers `size` / `part`."""
  h, w = (int(side / part) for side in size)
  height, width = shape
  if h * width >= w * height:
    resized = h, h * width // height
  else:
    resized = w * height // width, w
  return [
    # Halves are rounded to even numbers, as in Python.
    _antialiased(n, whole, float(np.rint((whole - side) / 2)), side)
    for n, whole, side in zip(shape, resized, size, strict=True)
  ]


@functools.lru_cache(maxsize=256)
def _antialiased(n: int, whole: int, start: float, size: int) -> _Taps:
  """As `_bicubic`, by TensorFlow's ScaleAndTranslate with antialiasing."""
  f = np.float32
  inverse = f(1) / (f(whole) / f(n))
  stretch = max(inverse, f(1))
  x = (np.arange(size, dtype=f) + f(0.5)) * inverse + inverse * f(start)
  reach = f(2) * stretch
  first = np.ceil(x - reach - f(0.5)).astype(int)
  count = int(np.floor(x + reach - f(0.5)).max() - first.min()) + 1
  count = min(count, 2 * int(np.ceil(reach)) + 1)
  indices = first + np.arange(count)[:, None]
  distance = np.abs(indices.astype(f) + f(0.5) - x)
  return _within(indices, _cubic(distance * (f(1) / stretch)), n)


def _resample(image: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
  """Return float32 [h, w, 3] of uint8 [H, W, 3]."""
  indices, weights = columns
  low = indices.min()
  result = _along_rows(image[:, low : indices.max() + 1], rows)
  # The same along the other axis, where rows of it are what is contiguous.
  result = np.ascontiguousarray(result.swapaxes(0, 1))
  result = _along_rows(result, (indices - low, weights))
  return np.ascontiguousarray(result.swapaxes(0, 1))


def _along_rows(image: np.ndarray, taps: _Taps) -> np.ndarray:
  pixels = image.reshape(len(image), -1)
  result = np.zeros((taps[0].shape[1], pixels.shape[1]), np.float32)
  for indices, weights in zip(*taps, strict=True):
    result += pixels[indices] * weights[:, None]
  return result.reshape(-1, *image.shape[1:])
