"""Makes a tiny ImageNet of drawn images, with TFDS's own imagenet2012 builder.

`make` writes the two archives that ImageNet consists of into
DIR/downloads/manual and has TFDS prepare them, so that everything downstream
sees the real dataset, only smaller.
"""

import contextlib
import io
import os
import pathlib
import sys
import tarfile

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# [height, width, channels], in turn; most of ImageNet is like the first.
SHAPES = (
  (375, 500, 3),
  (500, 375, 3),
  (333, 500, 3),
  (375, 500, 1),
  (60, 80, 3),
  (500, 334, 3),
)
_NUM_CLASSES = 8


def make_jpeg(seed: int, shape: tuple[int, int, int] = SHAPES[0]) -> bytes:
  """Draws a JPEG: a smooth coloured background, a disc and some noise.

  Args:
    seed: The same seed draws the same image.
    shape: Height, width and number of channels (1 or 3).

  Returns:
    The encoded image, about as many bytes as a photo of that size.
  """
  rng = np.random.default_rng(seed)
  height, width, channels = shape
  coarse = rng.uniform(0, 255, (6, 8, channels))
  image = tf.image.resize(coarse, (height, width), 'bicubic').numpy()
  y, x = np.mgrid[:height, :width]
  centre = rng.uniform(0.2, 0.8, 2) * (height, width)
  radius = rng.uniform(0.1, 0.4) * min(height, width)
  disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
  image[disc] = rng.uniform(0, 255, channels)
  image += rng.normal(0, 12, shape)
  image = np.clip(image, 0, 255).astype(np.uint8)
  return tf.io.encode_jpeg(image, quality=90).numpy()


def make(
  data_dir: str | os.PathLike[str],
  num_train: int = 64,
  num_valid: int = 37,
  shapes: tuple[tuple[int, int, int], ...] = SHAPES,
) -> tfds.core.DatasetBuilder:
  """Makes the dataset unless it is there.

  Args:
    data_dir: The TFDS data directory.
    num_train: The number of training images, spread over 8 classes.
    num_valid: The number of validation images.
    shapes: Shapes of the images, taken in turn.

  Returns:
    The prepared TFDS builder.
  """
  manual = pathlib.Path(data_dir, 'downloads', 'manual')
  manual.mkdir(parents=True, exist_ok=True)
  builder = tfds.builder('imagenet2012', data_dir=data_dir)
  if builder.is_prepared():
    return builder
  wnids = builder.info.features['label'].names[:_NUM_CLASSES]

  def jpeg(i: int) -> bytes:
    return make_jpeg(i, shapes[i % len(shapes)])

  with tarfile.open(manual / 'ILSVRC2012_img_train.tar', 'w') as archive:
    for label, wnid in enumerate(wnids):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode='w') as images:
        for i in range(label, num_train, _NUM_CLASSES):
          _add(images, f'{wnid}_{i}.JPEG', jpeg(i))
      _add(archive, f'{wnid}.tar', inner.getvalue())
  with tarfile.open(manual / 'ILSVRC2012_img_val.tar', 'w') as archive:
    for i in range(num_valid):
      name = f'ILSVRC2012_val_{i + 1:08}.JPEG'
      _add(archive, name, jpeg(num_train + i))
  with contextlib.redirect_stdout(sys.stderr):
    builder.download_and_prepare()
  return builder


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
  member = tarfile.TarInfo(name)
  member.size = len(content)
  archive.addfile(member, io.BytesIO(content))
