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
would be alone. With balanced classes the sequence is another, of passes through
each class in place of epochs; see `class_balance.BalancedOrder`.
Process p of P takes the p-th slice of every global batch, so neither the
number of processes nor the step that a run resumes from changes a single pixel.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import itertools
import os
from typing import Any

import numpy as np
import tensorflow as tf

from nfnets.data import augmentation, batches, class_balance, preprocess
from nfnets.data.batches import Batch, Batches, Place, Reader
from nfnets.data.builders import (
  Dataset,
  SplitReader,
  label_names,
  load_builder,
  num_classes,
  num_examples,
)

__all__ = [
  'Batches',
  'Options',
  'eval_batches',
  'fake_batches',
  'label_names',
  'load_builder',
  'num_classes',
  'num_examples',
  'train_batches',
]

# Numbers folded into a place's seed; `preprocess` uses others.
_MIXING, _AUGMENTING = 2, 3


@dataclasses.dataclass(frozen=True)
class Options:
  """The options of the input pipeline, for training and evaluation.

  Attributes:
    image_size: Side in pixels, or (height, width).
    batch_size: B, the examples per batch over all processes.
    preprocessing: 'crop_flip' or 'shift_K' for training; 'crop_resize',
      'resize_crop_P' or 'center_crop_P' for evaluation. See `preprocess`.
    seed: In [0, 2**31); decides on the order and on all random choices.
    augment_name: Training's augmentation after that, such as
      'cutmix_mixup_0.4_randaugment_415'; see `augmentation`. '' is nothing.
    augment_before_mix: Whether RandAugment or AutoAugment act on each of the
      two images that mixup or CutMix takes, instead of on the result.
    augment_kwargs: Keyword arguments of `autoaugment.rand_augment` or
      `autoaugment.auto_augment`.
    augmentation_multiplicity: k, how many times each example is in its batch,
      differently cropped, mixed and augmented (Hoffer et al., arXiv 1901.09335;
      Fort et al., arXiv 2105.13343). It is read and decoded once.
    skip_corrupt: Whether an image that cannot be decoded is replaced by the
      next one of the split (and masked, in evaluation), instead of being an
      error.
    balance_classes: Whether training draws each class equally often, instead of
      each example; see `class_balance.BalancedOrder`.
    poisson: Training's batches are draws instead of parts of shuffled epochs;
      what is left of `batch_size` is filled, and masked.
    transpose: Whether images come as HWCN instead of NHWC.
    process_index: This process's number, in [0, process_count).
    process_count: The number of processes that share each batch.

  Raises:
    ValueError: A number is out of range.
  """

  image_size: int | tuple[int, int]
  batch_size: int
  preprocessing: str = 'crop_flip'
  seed: int = 0
  augment_name: str = ''
  augment_before_mix: bool = False
  augment_kwargs: Mapping[str, Any] | None = None
  augmentation_multiplicity: int = 1
  skip_corrupt: bool = False
  balance_classes: bool = False
  poisson: batches.Poisson | None = None
  transpose: bool = False
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    copies, count = self.augmentation_multiplicity, self.process_count
    for is_right, message in (
      (
        len(self.size) == 2 and min(self.size) >= 1,
        'The image size has to be a number of pixels or (height, width), not '
        f'{self.image_size}.',
      ),
      (
        copies == int(copies) and copies >= 1,
        'augmentation_multiplicity has to be a whole number from 1 on, not '
        f'{copies}.',
      ),
      (
        0 <= self.process_index < count,
        f'There is no process {self.process_index} of {count}.',
      ),
      (
        self.batch_size >= 1 and self.batch_size % max(count, 1) == 0,
        f'The batch size {self.batch_size} has to be a multiple of the number '
        f'of processes, {count}.',
      ),
      (
        0 <= self.seed < 2**31,
        f'The seed has to be in [0, 2**31), not {self.seed}.',
      ),
    ):
      if not is_right:
        raise ValueError(message)

  @property
  def size(self) -> tuple[int, int]:
    """The height and width of images."""
    size = self.image_size
    return (size,) * 2 if isinstance(size, int) else tuple(size)

  @property
  def local_batch_size(self) -> int:
    """This process's share of a batch, in examples."""
    return self.batch_size // self.process_count

  def positions(self, numbers: np.ndarray) -> np.ndarray:
    """From a process's own count of its examples to that of all processes."""
    steps, rows = np.divmod(numbers, self.local_batch_size)
    first = self.process_index * self.local_batch_size
    return steps * self.batch_size + first + rows


def train_batches(
  builder: Dataset, split: str, options: Options, first_step: int = 0
) -> Batches:
  """Shuffled, augmented batches without end.

  Args:
    builder: A dataset from `load_builder`.
    split: 'train' or 'train_and_valid', usually.
    options: The options of the pipeline.
    first_step: The step (from 0) that the first batch is for.

  Returns:
    An iterator of {'images': [b, H, W, 3] (or [H, W, 3, b]) in 0-255, 'labels':
    int32 [b]}, with b = k * B / process_count. Images are uint8 if RandAugment
    or AutoAugment made them, which is a quarter of the bytes to send to a
    device, and float32 otherwise. With mixup or CutMix there are also
    'mix_labels', int32 [b], and 'ratio', float32 [b]: the target is ratio *
    onehot(labels) + (1 - ratio) * onehot(mix_labels). With `options.poisson`,
    which goes with neither, there is 'mask', float32 [b], as in `eval_batches`.

  Raises:
    UserError: The split is unknown, empty or damaged.
    ValueError: `first_step` is negative, or the name of a preprocessing or an
      augmentation unknown.
  """
  process = preprocess.train_preprocessing(options.preprocessing, options.size)
  plan = augmentation.parse(options.augment_name)
  augment = augmentation.augmenter(plan, options.augment_kwargs)
  if first_step < 0:
    raise ValueError(f'The first step has to be 0 or more, not {first_step}.')
  source = SplitReader(builder, split, options.skip_corrupt, reduces=True)
  index_of = batches.EpochOrder(source.num_examples, options.seed)
  if options.balance_classes:
    labels = class_balance.read_labels(builder, split)
    index_of = class_balance.BalancedOrder(labels, options.seed)
  elif options.poisson:
    index_of = batches.PoissonOrder(
      source.num_examples, options.batch_size, options.poisson
    )
  copies = options.augmentation_multiplicity
  group = 2 if plan.mixes else 1
  augment_each = options.augment_before_mix or not plan.mixes

  def locate(numbers: np.ndarray) -> Place:
    images, members = np.divmod(numbers, group)
    positions = options.positions(images)
    epochs, indices = index_of(group * positions + members)
    positions = np.where(indices < 0, -1, positions)
    indices = np.maximum(indices, 0)
    # Epochs are far below 2**32.
    return Place(epochs + (int(options.seed) << 32), indices, positions)

  def read(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    image, label = source.parse(record)
    return (preprocess.decode(image) if copies > 1 else image), label

  def load(record: tf.Tensor, place: Place) -> tf.Tensor:
    return process(read(record)[0], place.seed())

  def make(
    images: list[tf.Tensor],
    labels: list[tf.Tensor],
    places: list[Place],
    copy: tf.Tensor | None = None,
  ) -> Batch:
    images = [
      process(image, place.seed(copy))
      for image, place in zip(images, places, strict=True)
    ]
    seeds = [place.seed(copy, _AUGMENTING) for place in places]
    if augment_each:
      images = [*map(augment, images, seeds)]
    first = places[0]  # The first of a pair decides.
    if options.poisson:
      mask = tf.cast(first.position >= 0, tf.float32)
      return {'images': images[0], 'labels': labels[0], 'mask': mask}
    if not plan.mixes:
      return {'images': images[0], 'labels': labels[0]}
    use_mixup = (first.position + (0 if copy is None else copy)) % 2 == 0
    seed = first.seed(copy, _MIXING)
    image, ratio = augmentation.mix(*images, plan, seed, use_mixup)
    if not augment_each:
      image = augment(image, seeds[0])
    mixed = {'mix_labels': labels[1], 'ratio': ratio}
    return {'images': image, 'labels': labels[0], **mixed}

  def example(records: tf.Tensor, places: Place, _: tf.Tensor) -> Batch:
    each = [places.at(i) for i in range(group)]
    images, labels = zip(*(read(records[i]) for i in range(group)), strict=True)
    if copies == 1:
      return make(images, labels, each)
    traced_once = tf.function(make, autograph=False)
    numbers = tf.unstack(tf.range(copies, dtype=tf.int64))
    made = [traced_once(images, labels, each, number) for number in numbers]
    return {key: tf.stack([one[key] for one in made]) for key in made[0]}

  endless = np.iinfo(np.int64).max
  reader = Reader(source, endless, locate, load, options.skip_corrupt)
  per_batch = options.local_batch_size * group

  def build(step: int) -> tf.data.Dataset:
    dataset = reader.dataset(step * per_batch, group)
    return _batched(dataset, example, options, reader.parallel_reads, copies)

  return Batches(reader, per_batch, build, int(first_step))


def eval_batches(
  builder: Dataset,
  split: str,
  options: Options,
  indices: np.ndarray | None = None,
) -> Batches:
  """Every example once, in order, in ceil(N / B) batches.

  All processes get as many batches; what the last ones lack is masked zeros.

  Args:
    builder: A dataset from `load_builder`.
    split: 'test' or 'valid', usually.
    options: The options of the pipeline.
    indices: The examples to read, int64 [N]; None: all of the split.

  Returns:
    An iterator of {'images': float32 [b, H, W, 3] (or [H, W, 3, b]) in 0-255,
    'labels': int32 [b], 'mask': float32 [b], 1 for an example and 0 for
    filling}, with b = B / process_count.

  Raises:
    UserError: The split is unknown, empty or damaged.
    ValueError: The name of a preprocessing is unknown.
  """
  preprocess.check_eval_mode(options.preprocessing)
  source = SplitReader(builder, split, options.skip_corrupt)
  size, local = options.size, options.local_batch_size
  indices = np.arange(source.num_examples) if indices is None else indices
  whole, rest = divmod(len(indices), options.batch_size)
  num_batches = whole + (rest > 0)
  # A process's examples come before its filling.
  last = np.clip(rest - options.process_index * local, 0, local)
  num_local = int(whole * local + last)

  def locate(numbers: np.ndarray) -> Place:
    positions = options.positions(numbers)
    return Place(np.zeros_like(positions), indices[positions], positions)

  def load(record: tf.Tensor, place: Place) -> tuple[tf.Tensor, tf.Tensor]:
    del place  # Nothing is random.
    image, label = source.parse(
      record,
      lambda x: preprocess.preprocess_eval(x, size, options.preprocessing),
    )
    return tf.ensure_shape(image, [*size, 3]), label

  def example(records: tf.Tensor, places: Place, own: tf.Tensor) -> Batch:
    image, label = load(records[0], places)
    mask = tf.cast(own[0], tf.float32)
    return {'images': image, 'labels': label, 'mask': mask}

  filling = {
    'images': tf.zeros([*size, 3]),
    'labels': tf.zeros([], tf.int32),
    'mask': 0.0,
  }
  reader = Reader(source, num_local, locate, load, options.skip_corrupt)

  def build(number: int) -> tf.data.Dataset:
    start = number * local
    filled = tf.data.Dataset.from_tensors(filling)
    filled = filled.repeat(num_batches * local - max(start, num_local))
    dataset = reader.dataset(start)
    return _batched(
      dataset, example, options, reader.parallel_reads, filled=filled
    )

  return Batches(reader, local, build)


def fake_batches(
  options: Options, num_classes: int, num_batches: int | None = None
) -> Iterator[Batch]:
  """One random batch again and again, to measure or test without data.

  Args:
    options: The options of the pipeline; some decide on what a batch holds.
    num_classes: Labels are drawn from [0, num_classes).
    num_batches: None for training batches without end, or the number of
      evaluation batches.

  Returns:
    An iterator of batches as `train_batches` makes them, or as `eval_batches`
    does (with nothing masked) if num_batches is given.
  """
  is_training = num_batches is None
  rng = np.random.default_rng([0, options.process_index])
  copies = options.augmentation_multiplicity
  shape = (options.local_batch_size * copies, *options.size, 3)
  plan = augmentation.parse(options.augment_name)
  if is_training and augmentation.gives_uint8(plan, options.augment_before_mix):
    images = rng.integers(256, size=shape, dtype=np.uint8)
  else:
    images = 255 * rng.random(shape, np.float32)
  if options.transpose:
    images = np.ascontiguousarray(images.transpose(1, 2, 3, 0))
  labels = rng.integers(
    num_classes, size=options.local_batch_size, dtype=np.int32
  )
  labels = np.repeat(labels, copies)
  batch = {'images': images, 'labels': labels}
  if not is_training or options.poisson:
    batch['mask'] = np.ones(len(labels), np.float32)
  elif plan.mixes:
    batch['mix_labels'] = np.roll(labels, copies)
    batch['ratio'] = rng.random(len(labels), np.float32)
  steps = itertools.count() if is_training else range(num_batches)
  return (dict(batch) for _ in steps)


def _batched(
  dataset: tf.data.Dataset,
  example: Callable[..., Batch],
  options: Options,
  parallel_reads: int,
  copies: int = 1,
  filled: tf.data.Dataset | None = None,
) -> tf.data.Dataset:
  """Make examples of what is read, and batches of these."""
  # There is no control flow of Python's that TensorFlow would have to convert.
  example = tf.autograph.experimental.do_not_convert(example)
  dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
  if filled is not None:
    dataset = dataset.concatenate(filled)
  batch = dataset.batch if copies == 1 else dataset.rebatch
  dataset = batch(options.local_batch_size * copies, drop_remainder=True)
  if options.transpose:
    dataset = dataset.map(
      lambda batch: (
        batch | {'images': tf.transpose(batch['images'], [1, 2, 3, 0])}
      )
    )
  settings = tf.data.Options()
  settings.deterministic = True
  # One thread per image is enough; those that wait for what is read do not
  # count.
  settings.threading.max_intra_op_parallelism = 1
  cores = os.cpu_count() or 1
  settings.threading.private_threadpool_size = cores + parallel_reads
  return dataset.with_options(settings).prefetch(2)
