"""Facts of ImageNet: the statistics of its images, the names of its classes."""

import json
import pathlib

import numpy as np

# Mean and standard deviation of the channels, red, green, blue, on the scale of
# 0 to 255.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


def normalize(images, mean=MEAN, std=STD):
  """Normalizes images to what a network takes.

  `nfnets.zoo.Entry.normalize` knows the statistics that belong to a model.

  Args:
    images: float32 [..., 3] in 0-255; of NumPy, JAX or TensorFlow.
    mean: of the channels, float32 [3].
    std: standard deviation of the channels, float32 [3].

  Returns:
    float32 [..., 3], of the same library.
  """
  return (images - mean) / std


def denormalize(images, mean=MEAN, std=STD):
  """Undoes `normalize`: in 0-255 again, neither rounded nor clipped."""
  return images * std + mean


def classes() -> dict[str, str]:
  """Returns {WordNet id: name} of the 1000 classes, in label order.

  Of several names it is the first: 'tench' for 'tench, Tinca tinca'.
  """
  path = pathlib.Path(__file__).with_name('imagenet_classes.json')
  rows = json.loads(path.read_text(encoding='utf-8'))
  return {wnid: names.split(',')[0] for wnid, names in rows}
