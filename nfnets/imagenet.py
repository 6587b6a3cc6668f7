"""ImageNet: statistics and preparation of its images, names of its classes.

`nfnets.data.preprocess.preprocess_eval` says what the names of preprocessings
mean, and does them; TensorFlow is not needed here.
"""

import json
import pathlib
import re

import numpy as np

# Mean and standard deviation of the channels, red, green, blue, on the scale of
# 0 to 255.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
EVAL_MODES = (
  "'crop_resize', 'resize_crop_P' (such as 'resize_crop_32') or "
  "'center_crop_P' (such as 'center_crop_0.9')"
)


def normalize(images, mean=MEAN, std=STD):
  """Normalizes images to what a network takes.

  `nfnets.Model.normalize` knows the statistics that belong to a model.

  Args:
    images: float32 [..., 3] in 0-255; of NumPy, JAX or TensorFlow.
    mean: of the channels, float32 [3].
    std: standard deviation of the channels, float32 [3].

  Returns:
    float32 [..., 3], of the same library.

  Example:
    >>> normalized = preprocess.normalize(np.zeros((32, 32, 3), np.float32))
  """
  # The same rank as the images: JAX can be told not to promote ranks.
  shape = (1,) * (len(images.shape) - 1) + (3,)
  return (images - mean.reshape(shape)) / std.reshape(shape)


def denormalize(images, mean=MEAN, std=STD):
  """Undoes `normalize`: in 0-255 again, neither rounded nor clipped."""
  shape = (1,) * (len(images.shape) - 1) + (3,)
  return images * std.reshape(shape) + mean.reshape(shape)


def check_eval_mode(mode: str) -> None:
  """Raises ValueError unless `preprocess_eval` knows `mode`.

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
      f'Unknown evaluation preprocessing {mode!r}: use {EVAL_MODES}, where P '
      'is a fraction above 0 and at most 1 or, for the second, also a whole '
      'number of pixels.'
    )


def resized_side(mode: str, size: int) -> float:
  """Returns the side in pixels that the image has before it is cropped."""
  if mode == 'crop_resize':
    return size
  margin = float(mode.rpartition('_')[2])
  return size + margin if margin > 1 else size / margin


def check_images(images) -> None:
  """Raises ValueError unless images are what networks take: [B, H, W, 3]."""
  shape, dtype = np.shape(images), getattr(images, 'dtype', np.dtype(float))
  if len(shape) != 4 or shape[3] != 3 or dtype.kind in 'biu':
    raise ValueError(
      'Images have to be normalized floats [B, H, W, 3], not '
      f'{dtype} {list(shape)}. `preprocess` gives one such image, and '
      'image[None] is a batch of one.'
    )


def classes() -> dict[str, str]:
  """Returns {WordNet id: name} of the 1000 classes, in label order.

  Of several names it is the first: 'tench' for 'tench, Tinca tinca'.
  """
  path = pathlib.Path(__file__).with_name('imagenet_classes.json')
  rows = json.loads(path.read_text(encoding='utf-8'))
  return {wnid: names.split(',')[0] for wnid, names in rows}
