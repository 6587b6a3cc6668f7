"""The examples of a TFDS split in any order, as a tf.data pipeline."""

from collections.abc import Callable
from concurrent import futures
import functools
import os
import re
import threading
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import records
from nfnets.data.builders import find_split, image_and_label
from nfnets.data.errors import DatasetError

PARALLEL_READS = 4
_EXAMPLES_PER_READ = 32
# Unreadable examples that may be left out, or 1 % if that is more.
_MAX_DAMAGED = 10

Locate = Callable[[np.ndarray], np.ndarray]
Load = Callable[[tf.Tensor, tf.Tensor], Any]


class EpochOrder:
  """Which example is where in an endless sequence of shuffled epochs."""

  def __init__(self, num_examples: int, seed: int):
    self._num_examples = num_examples
    self._seed = seed
    self._lock = threading.Lock()
    # Reading ahead touches one epoch and the next.
    self._cached = functools.lru_cache(maxsize=2)(self._permutation)

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs, indices), both int64 [n], for positions int64 [n]."""
    epochs, places = np.divmod(positions, self._num_examples)
    indices = np.empty_like(positions)
    with self._lock:
      for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = self._cached(int(epoch))[places[here]]
    return epochs, indices

  def _permutation(self, epoch: int) -> np.ndarray:
    # Sorting raw bits: NumPy promises never to change these, but not what
    # Generator.permutation makes of them.
    philox = np.random.Philox(key=np.array([self._seed, epoch], np.uint64))
    return np.argsort(philox.random_raw(self._num_examples), kind='stable')


class Source:
  """The examples of a split, by their number in it.

  Attributes:
    title: The names of the dataset and the split, for messages.
    num_examples: The number of examples in the split.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    """Opens the files.

    Args:
      builder: A prepared TFDS dataset.
      split: One of `builders.SPLITS`.

    Raises:
      DatasetError: The split is unknown, empty or damaged.
    """
    tfds_split, self._start, stop = find_split(builder, split)
    self.num_examples = stop - self._start
    self.title = f'{builder.info.full_name}, split {split!r}'
    if not self.num_examples:
      raise DatasetError(f'{self.title} is empty.')
    self._fields = image_and_label(builder)
    keys = (self._fields.image, self._fields.label)
    # Other features are not even parsed.
    self._features = tfds.features.FeaturesDict(
      {key: builder.info.features[key] for key in keys}
    )
    self._records = records.open_records(builder, tfds_split)

  def read(self, indices: np.ndarray) -> list[bytes]:
    """Returns the records of these examples.

    Raises:
      DatasetError: A file is gone, or not what it was when it was indexed.
    """
    return self._records.read(self._start + indices)

  def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image (string [] or uint8 [H, W, C]) and the int32 label."""
    image, label, is_encoded = self._fields
    skip = {image: tfds.decode.SkipDecoding()} if is_encoded else None
    example = self._features.deserialize_example(record, decoders=skip)
    return example[image], tf.cast(example[label], tf.int32)

  def where(self, index: int) -> str:
    """Says in words where an example is, for messages."""
    return self._records.where(self._start + index)

  def close(self) -> None:
    """Closes the files."""
    self._records.close()


class Sequence:
  """Examples of a split in some order, and others instead of unreadable ones.

  Where the image of an example cannot be decoded, the next one of the split
  stands in for it, or the first that can be decoded after that. Whether it can
  be is found out again for every place in the sequence, because that depends on
  the crop where an image is cut short: so what is where never depends on what
  was read before, and a run that is resumed goes on as it would have.

  Attributes:
    damaged: The indices of all examples that could not be decoded so far.
    error: What went wrong while reading ahead, or None.
  """

  def __init__(
    self,
    source: Source,
    length: int,
    locate: Locate,
    load: Load,
    skip_corrupt: bool,
  ):
    """Reads nothing yet.

    Args:
      source: The examples; closed by `close`.
      length: The number of places in the sequence.
      locate: From numbers in the sequence (int64 [n]) to keys (int64 [n, 3]),
        whose second column is the index in the split; the others are for the
        caller.
      load: From a record (string []) and its key (int64 [3]) to what the record
        holds. An example that this fails for is unreadable.
      skip_corrupt: Whether others stand in for unreadable examples; if not, the
        first of them is an error.
    """
    self._source = source
    self._length = length
    self._locate = locate
    self._load = tf.function(
      load,
      input_signature=[
        tf.TensorSpec([], tf.string),
        tf.TensorSpec([3], tf.int64),
      ],
      autograph=False,
    )
    self._skip_corrupt = skip_corrupt
    self._lock = threading.Lock()
    self.damaged: set[int] = set()
    self._avoided: set[int] = set()  # What the last dataset knew of.
    self.error: Exception | None = None

  def dataset(self, start: int, group: int = 1) -> tf.data.Dataset:
    """Returns the examples from number `start` on.

    Args:
      start: The number of the first.
      group: How many examples make an element, 1 or 2.

    Returns:
      A dataset of (records: string [group], keys: int64 [group, 3], own: bool
      [group]); `own` is whether a record is that of the index in its key and
      not one that stands in.
    """

    def read(first: np.ndarray) -> tuple[np.ndarray, ...]:
      last = min(first + _EXAMPLES_PER_READ, self._length)
      try:
        keys = self._locate(np.arange(first, last))
        indices = keys[:, 1].copy()
        for i in np.flatnonzero(np.isin(indices, list(self.damaged))):
          indices[i] = self._readable(keys[i])
        block = np.array(self._source.read(indices), object)
        return block, keys, indices == keys[:, 1]
      except Exception as error:
        # TensorFlow would wrap an exception in a page of its own. Instead an
        # empty block ends the pipeline, and the consumer raises the error.
        self.error = self.error or error
        return np.zeros(0, object), np.zeros(0, np.int64), np.zeros(0, bool)

    def read_block(first: tf.Tensor) -> tuple[tf.Tensor, ...]:
      types = [tf.string, tf.int64, tf.bool]
      block, keys, own = tf.numpy_function(read, [first], types)
      return (
        tf.reshape(block, [-1, group]),
        tf.reshape(keys, [-1, group, 3]),
        tf.reshape(own, [-1, group]),
      )

    self._avoided = set(self.damaged)
    dataset = tf.data.Dataset.range(start, self._length, _EXAMPLES_PER_READ)
    dataset = dataset.map(read_block, num_parallel_calls=PARALLEL_READS)
    dataset = dataset.take_while(lambda block, *_: tf.size(block) > 0)
    return dataset.unbatch()

  def search(self, start: int, stop: int, error: tf.errors.OpError) -> None:
    """Finds the unreadable examples where a dataset failed.

    After that, another dataset has others in their stead.

    Args:
      start: The number of the first example to try.
      stop: The number of the last, plus 1; may be beyond the end.
      error: How the dataset failed.

    Raises:
      DatasetError: They must not be left out, or too many would be, or the
        error is not about an example.
    """
    keys = self._locate(np.arange(start, min(stop, self._length)))
    found = set()
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      reasons = pool.map(lambda key: self._try(key[1], key), keys)
      for key, reason in zip(keys, reasons, strict=True):
        if reason is not None:
          self._leave_out(key[1], reason)
          found.add(int(key[1]))
    if found <= self._avoided:
      raise DatasetError(f'{self._source.title}: {_first_line(error)}')

  def close(self) -> None:
    """Closes the files."""
    self._source.close()

  def _readable(self, key: np.ndarray) -> int:
    """Returns the example that is at a place: its own, or the next readable."""
    index = int(key[1])
    while (reason := self._try(index, key)) is not None:
      self._leave_out(index, reason)  # Raises before all have been tried.
      index = (index + 1) % self._source.num_examples
    return index

  def _try(self, index: int, key: np.ndarray) -> str | None:
    """Loads an example; returns what went wrong, if anything did."""
    (record,) = self._source.read(np.array([index]))
    try:
      self._load(tf.constant(record), tf.constant(key))
    except tf.errors.OpError as error:
      return _first_line(error)
    return None

  def _leave_out(self, index: int, reason: str) -> None:
    """Takes note of an unreadable example; raises DatasetError if it must."""
    total = self._source.num_examples
    what = (
      f'{self._source.title}: {self._source.where(index)} does not hold a '
      f'readable image: {reason}'
    )
    if not self._skip_corrupt:
      raise DatasetError(
        f'{what}. skip_corrupt=True leaves such images out and counts them.'
      )
    with self._lock:
      if index in self.damaged:
        return
      self.damaged.add(int(index))
      count = len(self.damaged)
    logging.warning('%s. It is left out.', what)
    if count == total or count > max(_MAX_DAMAGED, total // 100):
      raise DatasetError(
        f'{what}. With it {count} of {total} images are unreadable, which is '
        'too many to leave out.'
      )


def _first_line(error: tf.errors.OpError) -> str:
  """The message without the names of graph nodes and where they were made."""
  text = error.message.split('\n\n')[-1]
  text = re.sub(r'\{\{.*?\}\}|\[Op:.*', '', text).strip()
  return text.split('\n')[0].strip().rstrip('.')
