"""Batches for training and evaluation.

The order of the examples and every random choice follow from numbers alone, so
nothing has to be replayed or saved. The global batch of step t holds the
positions t * B to t * B + B - 1 of an endless sequence in which position q is
example perm_e[q % N] of epoch e = q // N, with perm_e a permutation that
follows from (seed, e). What happens to an example follows from (seed, e, its
index). Batches may straddle two epochs; nothing is dropped or repeated.
Process p of P takes the p-th slice of every global batch, so neither the
number of processes nor the step that a run resumes from changes a single pixel.
"""

import atexit
from collections.abc import Iterator
import itertools
import os
import weakref

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import preprocess
from nfnets.data.builders import (
  label_names,
  load_builder,
  num_classes,
  num_examples,
)
from nfnets.data.errors import DatasetError
from nfnets.data.source import PARALLEL_READS, EpochOrder, Source

__all__ = [
  'Batches',
  'DatasetError',
  'eval_batches',
  'fake_batches',
  'label_names',
  'load_builder',
  'num_classes',
  'num_examples',
  'train_batches',
]

Batch = dict[str, np.ndarray]


def train_batches(
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  image_size: int | tuple[int, int],
  global_batch_size: int,
  seed: int,
  first_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  preprocessing: str = 'crop_flip',
  transpose: bool = False,
) -> 'Batches':
  """Shuffled, augmented batches without end.

  Args:
    builder: A dataset from `load_builder`.
    split: 'train' or 'train_and_valid', usually.
    image_size: Side in pixels, or (height, width).
    global_batch_size: B, the examples per step over all processes.
    seed: In [0, 2**31); decides on the order and on all random choices.
    first_step: The step (from 0) that the first batch is for.
    process_index: This process's number, in [0, process_count).
    process_count: The number of processes that share each batch.
    preprocessing: 'crop_flip' or 'shift_K'; see `preprocess`.
    transpose: Whether images come as HWCN instead of NHWC.

  Returns:
    An iterator of {'images': float32 [b, H, W, 3] (or [H, W, 3, b]) in 0-255,
    'labels': int32 [b]}, with b = B / process_count.

  Raises:
    DatasetError: The split is unknown, empty or damaged.
    ValueError: An argument is out of range, or the name of a preprocessing
      unknown.
  """
  size = _image_size(image_size)
  process = preprocess.train_preprocessing(preprocessing, size)
  local = _local_batch_size(global_batch_size, process_index, process_count)
  if not 0 <= seed < 2**31:
    raise ValueError(f'The seed has to be in [0, 2**31), not {seed}.')
  if first_step < 0:
    raise ValueError(f'The first step has to be 0 or more, not {first_step}.')
  source = Source(builder, split)
  order = EpochOrder(source.num_examples, seed)

  def locate(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return order(_positions(numbers, global_batch_size, process_index, local))

  def example(record: tf.Tensor, key: tf.Tensor) -> dict[str, tf.Tensor]:
    image, label = source.parse(record)
    # key is (epoch, index), each far below 2**32.
    key += tf.constant([int(seed) << 32, 0], tf.int64)
    return {'images': process(image, key), 'labels': label}

  start = int(first_step) * local
  dataset = source.examples(start, np.iinfo(np.int64).max, locate)
  dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
  return Batches(_finish(dataset, local, transpose), source)


def eval_batches(
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  image_size: int | tuple[int, int],
  preprocessing: str,
  global_batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  transpose: bool = False,
) -> 'Batches':
  """Every example once, in order, in ceil(N / B) batches.

  All processes get the same number of batches; what the last ones lack is
  filled with zeros, and masked.

  Args:
    builder: A dataset from `load_builder`.
    split: 'test' or 'valid', usually.
    image_size: Side in pixels, or (height, width).
    preprocessing: 'crop_resize' or 'resize_crop_P'; see `preprocess`.
    global_batch_size: B, the examples per batch over all processes.
    process_index: This process's number, in [0, process_count).
    process_count: The number of processes that share each batch.
    transpose: Whether images come as HWCN instead of NHWC.

  Returns:
    An iterator of {'images': float32 [b, H, W, 3] (or [H, W, 3, b]) in 0-255,
    'labels': int32 [b], 'mask': float32 [b], 1 for an example and 0 for
    filling}, with b = B / process_count.

  Raises:
    DatasetError: The split is unknown, empty or damaged.
    ValueError: An argument is out of range, or the name of a preprocessing
      unknown.
  """
  size = _image_size(image_size)
  preprocess.check_eval_mode(preprocessing)
  local = _local_batch_size(global_batch_size, process_index, process_count)
  source = Source(builder, split)
  whole, rest = divmod(source.num_examples, global_batch_size)
  num_batches = whole + (rest > 0)
  # A process's examples come before its filling.
  num_local = whole * local + min(max(rest - process_index * local, 0), local)

  def locate(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = _positions(numbers, global_batch_size, process_index, local)
    return np.zeros_like(places), places  # One epoch, in order.

  def example(record: tf.Tensor, _) -> dict[str, tf.Tensor]:
    image, label = source.parse(record)
    image = preprocess.preprocess_eval(image, size, preprocessing)
    image = tf.ensure_shape(image, [*size, 3])
    return {'images': image, 'labels': label, 'mask': 1.0}

  dataset = source.examples(0, num_local, locate)
  dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
  filling = {
    'images': tf.zeros([*size, 3]),
    'labels': tf.zeros([], tf.int32),
    'mask': 0.0,
  }
  filling = tf.data.Dataset.from_tensors(filling)
  filling = filling.repeat(num_batches * local - num_local)
  dataset = dataset.concatenate(filling)
  return Batches(_finish(dataset, local, transpose), source)


def fake_batches(
  *,
  image_size: int | tuple[int, int],
  num_classes: int,  # pylint: disable=redefined-outer-name
  global_batch_size: int,
  num_batches: int | None = None,
  seed: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  transpose: bool = False,
) -> Iterator[Batch]:
  """One random batch again and again, to measure or test without data.

  Args:
    image_size: Side in pixels, or (height, width).
    num_classes: Labels are drawn from [0, num_classes).
    global_batch_size: The examples per batch over all processes.
    num_batches: None for training batches without end, or the number of
      evaluation batches.
    seed: Decides on the contents, together with process_index.
    process_index: This process's number, in [0, process_count).
    process_count: The number of processes that share each batch.
    transpose: Whether images come as HWCN instead of NHWC.

  Returns:
    An iterator of batches as `train_batches` makes them, or as `eval_batches`
    does (with nothing masked) if num_batches is given.

  Raises:
    ValueError: An argument is out of range.
  """
  local = _local_batch_size(global_batch_size, process_index, process_count)
  rng = np.random.default_rng([seed, process_index])
  shape = (local, *_image_size(image_size), 3)
  images = 255 * rng.random(shape, np.float32)
  if transpose:
    images = np.ascontiguousarray(images.transpose(1, 2, 3, 0))
  labels = rng.integers(num_classes, size=local, dtype=np.int32)
  batch = {'images': images, 'labels': labels}
  if num_batches is not None:
    batch['mask'] = np.ones(local, np.float32)
  return _repeat(batch, num_batches)


class Batches(Iterator[Batch]):
  """An iterator of batches whose threads and files `close` gives back.

  It is also closed by leaving a `with` block, by garbage collection and at the
  end of the program. Arrays may be read-only views of TensorFlow's memory.
  """

  _open: 'weakref.WeakSet[Batches]' = weakref.WeakSet()

  def __init__(self, dataset: tf.data.Dataset, source: 'Source'):
    self._iterator = None  # For `close`, if the next line fails.
    self._source = source
    self._iterator = dataset.as_numpy_iterator()
    Batches._open.add(self)

  def __next__(self) -> Batch:
    """Returns the next batch.

    Raises:
      StopIteration: There are no more, or the iterator is closed.
      DatasetError: An example cannot be read or decoded.
    """
    if self._iterator is None:
      raise StopIteration
    try:
      batch = next(self._iterator, None)
    except tf.errors.OpError as error:
      # Instead of TensorFlow's message, which buries the cause under a page of
      # graph nodes.
      raise self._source.explain(error) from None
    if self._source.error is not None:
      raise self._source.error
    if batch is None:
      raise StopIteration
    return batch

  def close(self) -> None:
    """Stops reading ahead and closes the files."""
    if self._iterator is not None:
      self._iterator = None  # tf.data cancels and joins its threads.
      self._source.close()

  def __del__(self):
    self.close()

  def __enter__(self) -> 'Batches':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  @classmethod
  def close_all(cls) -> None:
    """Closes every iterator of this process."""
    for batches in list(cls._open):
      batches.close()


# tf.data's threads call Python, which they must not do once it shuts down.
atexit.register(Batches.close_all)


def _image_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
  size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
  if len(size) != 2 or min(size) < 1:
    raise ValueError(
      'The image size has to be a number of pixels or (height, width), not '
      f'{image_size}.'
    )
  return size


def _local_batch_size(
  global_batch_size: int, process_index: int, process_count: int
) -> int:
  if not 0 <= process_index < process_count:
    raise ValueError(f'There is no process {process_index} of {process_count}.')
  if global_batch_size < 1 or global_batch_size % process_count:
    raise ValueError(
      f'The global batch size {global_batch_size} has to be a multiple of '
      f'the number of processes, {process_count}.'
    )
  return global_batch_size // process_count


def _positions(
  numbers: np.ndarray,
  global_batch_size: int,
  process_index: int,
  local_batch_size: int,
) -> np.ndarray:
  """From a process's own count of its examples to that of all processes."""
  steps, rows = np.divmod(numbers, local_batch_size)
  return steps * global_batch_size + process_index * local_batch_size + rows


def _finish(
  dataset: tf.data.Dataset, batch_size: int, transpose: bool
) -> tf.data.Dataset:
  """Batches the examples and sets the options of the whole pipeline."""
  dataset = dataset.batch(batch_size, drop_remainder=True)
  if transpose:
    dataset = dataset.map(
      lambda batch: (
        batch | {'images': tf.transpose(batch['images'], [1, 2, 3, 0])}
      )
    )
  options = tf.data.Options()
  options.deterministic = True
  # One thread per image is enough; those that wait for a disk do not count.
  options.threading.max_intra_op_parallelism = 1
  cores = os.cpu_count() or 1
  options.threading.private_threadpool_size = cores + PARALLEL_READS
  return dataset.with_options(options).prefetch(2)


def _repeat(batch: Batch, num_batches: int | None) -> Iterator[Batch]:
  steps = itertools.count() if num_batches is None else range(num_batches)
  for _ in steps:
    yield dict(batch)
