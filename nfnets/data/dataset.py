"""Batches for training and evaluation.

The order of the examples and every random choice follow from numbers alone, so
nothing has to be replayed or saved. The global batch of step t holds the
positions t * B to t * B + B - 1 of an endless sequence in which position q is
example perm_e[q % N] of epoch e = q // N, with perm_e a permutation that
follows from (seed, e). What happens to an example follows from (seed, e, its
index). Batches may straddle two epochs; nothing is dropped or repeated. With
mixup or CutMix an image is made from two: position q from those at 2 q and
2 q + 1 of that sequence, so a batch reads 2 B examples. With an augmentation
multiplicity of k, each of the B becomes k images, next to each other: what
happens to the copies follows from their numbers, too, and the first is what it
would be alone.
Process p of P takes the p-th slice of every global batch, so neither the
number of processes nor the step that a run resumes from changes a single pixel.
"""

from collections.abc import Callable, Mapping
import os
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import augmentation, mixing, preprocess, sizes
from nfnets.data.batches import Batches
from nfnets.data.builders import (
  label_names,
  load_builder,
  num_classes,
  num_examples,
)
from nfnets.data.errors import DatasetError
from nfnets.data.fake import fake_batches
from nfnets.data.order import EpochOrder, Place
from nfnets.data.source import Source
from nfnets.data.stream import ExampleStream

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

# What a place's own seed is folded with, beside what `preprocess` uses.
_MIXING, _AUGMENTING = 2, 3
# And the numbers of the second copy and of those after it.
_COPIES = 4


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
  augment_name: str = '',
  augment_before_mix: bool = False,
  augment_kwargs: Mapping[str, Any] | None = None,
  augmentation_multiplicity: int = 1,
  skip_corrupt: bool = False,
  transpose: bool = False,
) -> Batches:
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
    augment_name: What is done after that, such as
      'cutmix_mixup_0.4_randaugment_415'; see `augmentation`. '' is nothing.
    augment_before_mix: Whether RandAugment or AutoAugment act on each of the
      two images that mixup or CutMix takes, instead of on the result.
    augment_kwargs: Keyword arguments of `autoaugment.rand_augment` or
      `autoaugment.auto_augment`.
    augmentation_multiplicity: k, how many times each example is in its batch,
      differently cropped, mixed and augmented (Hoffer et al., arXiv 1901.09335;
      Fort et al., arXiv 2105.13343). It is read and decoded once.
    skip_corrupt: Whether an image that cannot be decoded is replaced by the
      next one of the split, instead of being an error.
    transpose: Whether images come as HWCN instead of NHWC.

  Returns:
    An iterator of {'images': [b, H, W, 3] (or [H, W, 3, b]) in 0-255, 'labels':
    int32 [b]}, with b = k * B / process_count. Images are uint8 if RandAugment
    or AutoAugment made them, which is a quarter of the bytes to send to a
    device, and float32 otherwise. With mixup or CutMix there are also
    'mix_labels', int32 [b], and 'ratio', float32 [b]: the target is ratio *
    onehot(labels) + (1 - ratio) * onehot(mix_labels).

  Raises:
    DatasetError: The split is unknown, empty or damaged.
    ValueError: An argument is out of range, or the name of a preprocessing or
      an augmentation unknown.
  """
  size = sizes.image_sides(image_size)
  copies = sizes.positive(
    'augmentation_multiplicity', augmentation_multiplicity
  )
  process = preprocess.train_preprocessing(preprocessing, size)
  plan = augmentation.parse(augment_name)
  augment = augmentation.augmenter(plan, augment_kwargs)
  local = sizes.local_batch_size(
    global_batch_size, process_index, process_count
  )
  if not 0 <= seed < 2**31:
    raise ValueError(f'The seed has to be in [0, 2**31), not {seed}.')
  if first_step < 0:
    raise ValueError(f'The first step has to be 0 or more, not {first_step}.')
  source = Source(builder, split)
  order = EpochOrder(source.num_examples, seed)
  group = 2 if plan.mixes else 1
  augment_each = augment_before_mix or not plan.mixes

  def locate(numbers: np.ndarray) -> Place:
    images, members = np.divmod(numbers, group)
    positions = _positions(images, global_batch_size, process_index, local)
    epochs, indices = order(group * positions + members)
    # Epochs are far below 2**32.
    return Place(epochs + (int(seed) << 32), indices, positions)

  def read(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    image, label = source.parse(record)
    return (preprocess.decode(image) if copies > 1 else image), label

  def load(record: tf.Tensor, place: Place) -> tf.Tensor:
    return process(read(record)[0], _seed(place))

  def make(
    images: list[tf.Tensor],
    labels: list[tf.Tensor],
    places: list[Place],
    copy: tf.Tensor | None = None,
  ) -> dict[str, tf.Tensor]:
    images = [
      process(image, _seed(place, copy))
      for image, place in zip(images, places, strict=True)
    ]
    seeds = [_seed(place, copy, _AUGMENTING) for place in places]
    if augment_each:
      images = [*map(augment, images, seeds)]
    if not plan.mixes:
      return {'images': images[0], 'labels': labels[0]}
    first = places[0]  # Which decides.
    use_mixup = (first.position + (0 if copy is None else copy)) % 2 == 0
    seed = _seed(first, copy, _MIXING)
    image, ratio = mixing.mix(*images, plan, seed, use_mixup)
    if not augment_each:
      image = augment(image, seeds[0])
    return {
      'images': image,
      'labels': labels[0],
      'mix_labels': labels[1],
      'ratio': ratio,
    }

  def example(
    records: tf.Tensor, places: Place, _: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    each = [places.at(i) for i in range(group)]
    images, labels = zip(*(read(records[i]) for i in range(group)), strict=True)
    if copies == 1:
      return make(images, labels, each)
    traced_once = tf.function(make, autograph=False)
    numbers = tf.unstack(tf.range(copies, dtype=tf.int64))
    made = [traced_once(images, labels, each, number) for number in numbers]
    return {key: tf.stack([one[key] for one in made]) for key in made[0]}

  endless = np.iinfo(np.int64).max
  stream = ExampleStream(source, endless, locate, load, skip_corrupt)

  def build(step: int) -> tf.data.Dataset:
    dataset = _map(example, stream.dataset(step * local * group, group))
    if copies > 1:
      dataset = dataset.rebatch(local * copies, drop_remainder=True)
    else:
      dataset = dataset.batch(local, drop_remainder=True)
    return _finish(dataset, transpose, stream.parallel_reads)

  return Batches(stream, local * group, build, int(first_step))


def eval_batches(
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  image_size: int | tuple[int, int],
  preprocessing: str,
  global_batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  skip_corrupt: bool = False,
  transpose: bool = False,
) -> Batches:
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
    skip_corrupt: Whether an image that cannot be decoded is masked, with
      another one in its place, instead of being an error.
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
  size = sizes.image_sides(image_size)
  preprocess.check_eval_mode(preprocessing)
  local = sizes.local_batch_size(
    global_batch_size, process_index, process_count
  )
  source = Source(builder, split)
  whole, rest = divmod(source.num_examples, global_batch_size)
  num_batches = whole + (rest > 0)
  # A process's examples come before its filling.
  num_local = whole * local + min(max(rest - process_index * local, 0), local)

  def locate(numbers: np.ndarray) -> Place:
    positions = _positions(numbers, global_batch_size, process_index, local)
    return Place(np.zeros_like(positions), positions, positions)

  def load(record: tf.Tensor, _: Place) -> tuple[tf.Tensor, tf.Tensor]:
    image, label = source.parse(record)
    image = preprocess.preprocess_eval(image, size, preprocessing)
    return tf.ensure_shape(image, [*size, 3]), label

  def example(
    records: tf.Tensor, places: Place, own: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    image, label = load(records[0], places.at(0))
    mask = tf.cast(own[0], tf.float32)
    return {'images': image, 'labels': label, 'mask': mask}

  filling = {
    'images': tf.zeros([*size, 3]),
    'labels': tf.zeros([], tf.int32),
    'mask': 0.0,
  }
  stream = ExampleStream(source, num_local, locate, load, skip_corrupt)

  def build(number: int) -> tf.data.Dataset:
    start = number * local
    dataset = _map(example, stream.dataset(start))
    num_filling = num_batches * local - max(start, num_local)
    rest = tf.data.Dataset.from_tensors(filling).repeat(num_filling)
    dataset = dataset.concatenate(rest)
    dataset = dataset.batch(local, drop_remainder=True)
    return _finish(dataset, transpose, stream.parallel_reads)

  return Batches(stream, local, build)


def _seed(
  place: Place, copy: tf.Tensor | None = None, use: int | None = None
) -> tf.Tensor:
  """The seed, int64 [2], for one use of randomness at a place."""
  seed = tf.stack([place.epoch_seed, place.index])
  if copy is not None:
    folded = tf.random.fold_in(seed, _COPIES + copy)
    seed = tf.where(copy > 0, folded, seed)
  if use is None:
    return seed
  return tf.random.fold_in(seed, tf.constant(use, tf.int64))


def _positions(
  numbers: np.ndarray,
  global_batch_size: int,
  process_index: int,
  local_batch_size: int,
) -> np.ndarray:
  """From a process's own count of its examples to that of all processes."""
  steps, rows = np.divmod(numbers, local_batch_size)
  return steps * global_batch_size + process_index * local_batch_size + rows


def _map(function: Callable, dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Calls a function for several examples at once."""
  # There is no control flow of Python's that TensorFlow would have to convert.
  function = tf.autograph.experimental.do_not_convert(function)
  return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE)


def _finish(
  dataset: tf.data.Dataset, transpose: bool, parallel_reads: int
) -> tf.data.Dataset:
  """Transposes batches and sets the options of the whole pipeline."""
  if transpose:
    dataset = dataset.map(
      lambda batch: (
        batch | {'images': tf.transpose(batch['images'], [1, 2, 3, 0])}
      )
    )
  options = tf.data.Options()
  options.deterministic = True
  # One thread per image is enough; those that wait for what is read do not
  # count.
  options.threading.max_intra_op_parallelism = 1
  cores = os.cpu_count() or 1
  options.threading.private_threadpool_size = cores + parallel_reads
  return dataset.with_options(options).prefetch(2)
