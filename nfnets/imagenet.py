"""ImageNet: normalization, evaluation modes and class names.

`nfnets.data.preprocess.preprocess_eval` explains and implements the modes. This
module does not import TensorFlow.
"""

import json
import pathlib
import re

import numpy as np

# Mean and standard deviation of the channels of RGB images in 0-255.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
EVAL_MODES = (
  "'crop_resize', 'resize_crop_P' (such as 'resize_crop_32') or "
  "'center_crop_P' (such as 'center_crop_0.9')"
)


def normalize(images, mean=MEAN, std=STD):
  """Normalize images to what a network takes.

  `nfnets.Model.normalize` uses the statistics of its model.

  Args:
    images: float32 [..., 3] in 0-255; a NumPy, JAX or TensorFlow array.
    mean: channel means, float32 [3].
    std: channel standard deviations, float32 [3].

  Returns:
    float32 [..., 3], an array of the same library.

  Example:
    >>> normalized = preprocess.normalize(np.zeros((32, 32, 3), np.float32))
  """
  # The same rank as the images, for jax_numpy_rank_promotion='raise'.
  shape = (1,) * (len(images.shape) - 1) + (3,)
  return (images - mean.reshape(shape)) / std.reshape(shape)


def denormalize(images, mean=MEAN, std=STD):
  """Undo `normalize`. The result, in 0-255, is not rounded or clipped."""
  shape = (1,) * (len(images.shape) - 1) + (3,)
  return images * std.reshape(shape) + mean.reshape(shape)


def check_eval_mode(mode: str) -> None:
  """Raise ValueError unless `preprocess_eval` knows `mode`.

  Example:
    >>> preprocess.check_eval_mode('crop_resize')
  """
  fraction = r'(?:0?\.\d+|1(?:\.0*)?)'
  pattern = rf'resize_crop_(?P<P>\d+|{fraction})|center_crop_(?P<Q>{fraction})'
  margin = re.fullmatch(pattern, mode)
  if mode != 'crop_resize' and not (
    margin and float(margin['P'] or margin['Q']) > 0
  ):
    raise ValueError(
      f'Unknown evaluation preprocessing {mode!r}. Use {EVAL_MODES}. P is a '
      'fraction in (0, 1], or for resize_crop also a number of pixels.'
    )


def resized_side(mode: str, size: int) -> float:
  """Return the side of the resized image before the crop, in pixels."""
  if mode == 'crop_resize':
    return size
  margin = float(mode.rpartition('_')[2])
  return size + margin if margin > 1 else size / margin


def check_images(images) -> None:
  """Raise ValueError unless images are floats [B, H, W, 3]."""
  shape, dtype = np.shape(images), getattr(images, 'dtype', np.dtype(float))
  if len(shape) != 4 or shape[3] != 3 or dtype.kind in 'biu':
    raise ValueError(
      'Images must be normalized floats [B, H, W, 3], not '
      f'{dtype} {list(shape)}. `preprocess` returns one image; image[None] is '
      'a batch of one.'
    )


def classes() -> dict[str, str]:
  """Return {WordNet id: name} of the 1000 classes, in label order.

  A class with several names has the first: 'tench' for 'tench, Tinca tinca'.
  """
  path = pathlib.Path(__file__).with_name('imagenet_classes.json')
  rows = json.loads(path.read_text(encoding='utf-8'))
  return {wnid: names.split(',')[0] for wnid, names in rows}
