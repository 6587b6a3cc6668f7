"""Batches without data."""

from collections.abc import Iterator
import itertools

import numpy as np

from nfnets.data import augmentation, sizes
from nfnets.data.batches import Batch


def fake_batches(
  *,
  image_size: int | tuple[int, int],
  num_classes: int,
  global_batch_size: int,
  num_batches: int | None = None,
  seed: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  augment_name: str = '',
  augment_before_mix: bool = False,
  augmentation_multiplicity: int = 1,
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
    augment_name: As for `train_batches`; decides on what a batch holds.
    augment_before_mix: As for `train_batches`.
    augmentation_multiplicity: As for `train_batches`.
    transpose: Whether images come as HWCN instead of NHWC.

  Returns:
    An iterator of batches as `train_batches` makes them, or as `eval_batches`
    does (with nothing masked) if num_batches is given.

  Raises:
    ValueError: An argument is out of range.
  """
  local = sizes.local_batch_size(
    global_batch_size, process_index, process_count
  )
  rng = np.random.default_rng([seed, process_index])
  copies = sizes.positive(
    'augmentation_multiplicity', augmentation_multiplicity
  )
  shape = (local * copies, *sizes.image_sides(image_size), 3)
  plan = augmentation.parse(augment_name)
  is_training = num_batches is None
  if is_training and augmentation.gives_uint8(plan, augment_before_mix):
    images = rng.integers(256, size=shape, dtype=np.uint8)
  else:
    images = 255 * rng.random(shape, np.float32)
  if transpose:
    images = np.ascontiguousarray(images.transpose(1, 2, 3, 0))
  labels = rng.integers(num_classes, size=local, dtype=np.int32)
  labels = np.repeat(labels, copies)
  batch = {'images': images, 'labels': labels}
  if is_training and plan.mixes:
    batch['mix_labels'] = np.roll(labels, copies)
    batch['ratio'] = rng.random(len(labels), np.float32)
  if not is_training:
    batch['mask'] = np.ones(local, np.float32)
  return _repeat(batch, num_batches)


def _repeat(batch: Batch, num_batches: int | None) -> Iterator[Batch]:
  steps = itertools.count() if num_batches is None else range(num_batches)
  for _ in steps:
    yield dict(batch)
