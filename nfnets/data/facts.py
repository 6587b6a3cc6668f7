"""What people want to know of a dataset before they trust a number."""

import contextlib
import hashlib
import io
import os
import warnings

import numpy as np
from PIL import Image
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data.builders import find_split, num_classes
from nfnets.data.folders import Folder
from nfnets.data.source import Source

_EXAMPLES_PER_READ = 1024


def labels(builder: tfds.core.DatasetBuilder, split: str) -> np.ndarray:
  """Reads the labels of a split, without decoding its images.

  Args:
    builder: A dataset from `load_builder`.
    split: One of `builders.SPLITS`.

  Returns:
    int32 [N], in the order of the split.

  Raises:
    DatasetError: The split is unknown, empty or damaged.
  """
  if isinstance(builder, Folder):
    return np.array(builder.labels(split), np.int32)
  source = Source(builder, split)
  read = tf.autograph.experimental.do_not_convert(
    lambda record: source.parse(record)[1]
  )
  found = []
  try:
    for start in range(0, source.num_examples, _EXAMPLES_PER_READ):
      stop = min(start + _EXAMPLES_PER_READ, source.num_examples)
      records = tf.constant(source.read(np.arange(start, stop)), tf.string)
      dataset = tf.data.Dataset.from_tensor_slices(records).map(read)
      found.extend(dataset.as_numpy_iterator())
  finally:
    source.close()
  return np.array(found, np.int32)


def class_counts(builder: tfds.core.DatasetBuilder, split: str) -> np.ndarray:
  """Returns how many examples of each class a split has, int64 [K]."""
  return np.bincount(labels(builder, split), minlength=num_classes(builder))


def image_sizes(
  builder: tfds.core.DatasetBuilder, split: str, most: int = 100
) -> np.ndarray:
  """Returns (height, width) of some images of a split, before preprocessing.

  Args:
    builder: A dataset from `load_builder`.
    split: One of `builders.SPLITS`.
    most: How many; they are evenly spread over the split.

  Returns:
    int64 [N, 2], in pixels; without the images that cannot be opened.
  """
  source = Source(builder, split)
  count = min(most, source.num_examples)
  sizes = []
  try:
    for index in np.arange(count) * source.num_examples // count:
      [record] = source.read(np.array([index]))
      # Evaluation says what is wrong with an image.
      with contextlib.suppress(OSError, ValueError, tf.errors.OpError):
        sizes.append(_size(source.parse(tf.constant(record))[0].numpy()))
  finally:
    source.close()
  return np.array(sizes, np.int64).reshape(-1, 2)


def _size(image: np.ndarray | bytes) -> tuple[int, int]:
  if isinstance(image, np.ndarray):
    return image.shape[:2]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    with Image.open(io.BytesIO(image)) as opened:
      return opened.height, opened.width


def fingerprint(builder: tfds.core.DatasetBuilder, split: str) -> str:
  """Returns what changes whenever the images or labels of a split do.

  Of a folder, the contents of the files in their order. Of a dataset of TFDS,
  its name and version, which examples of it they are, and the size and time of
  its files.

  Args:
    builder: A dataset from `load_builder`.
    split: One of `builders.SPLITS`.

  Raises:
    DatasetError: There is no such split.
  """
  if isinstance(builder, Folder):
    described = [
      *zip(builder.digests(split), builder.labels(split), strict=True)
    ]
    return hashlib.sha256(repr(described).encode()).hexdigest()
  found = find_split(builder, split)
  info = builder.info.splits[found.tfds_split]
  described = [builder.info.full_name, *found, list(info.shard_lengths)]
  for path in info.filepaths:
    stat = tf.io.gfile.stat(os.fspath(path))
    described.append((os.fspath(path), stat.length, stat.mtime_nsec))
  return hashlib.sha256(repr(described).encode()).hexdigest()
