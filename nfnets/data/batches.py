"""The order of examples, others instead of unreadable ones, and batches."""

from collections.abc import Callable, Iterator
import functools
import threading
from typing import Any, NamedTuple
import weakref

from absl import logging
import numpy as np
import tensorflow as tf

from nfnets import messages
from nfnets.data.builders import SplitReader
from nfnets.errors import UserError

# Examples that are read at once, unless they have more than so many bytes; and
# how much is read ahead where more than a few such blocks are.
_EXAMPLES_PER_READ = 32
_BYTES_PER_READ = 2**25
_BYTES_AHEAD = 2**28
_MIN_PARALLEL_READS = 4

# Seeds of the second copy of an example and of those after it are folded with
# the numbers from this one on; less is for other uses.
_COPIES = 4

# Unreadable examples that may be left out, or 1 % if that is more.
_MAX_DAMAGED = 10

Batch = dict[str, np.ndarray]


class Place(NamedTuple):
  """A place among the examples that a process loads, or several of them.

  Attributes:
    epoch_seed: The seed of all that is random in this epoch; 0 if nothing is.
    index: Index of the example in its split.
    position: Position of the resulting image among the images of all processes
      since the first step; -1 for padding.

  Each is int64 [] or int64 [n], an array or a tensor.
  """

  epoch_seed: np.ndarray | tf.Tensor
  index: np.ndarray | tf.Tensor
  position: np.ndarray | tf.Tensor

  def at(self, i: int) -> 'Place':
    return Place(*(field[i] for field in self))

  def seed(
    self, copy: tf.Tensor | None = None, use: int | None = None
  ) -> tf.Tensor:
    """Return the seed, int64 [2], for one use of randomness at this place."""
    seed = tf.stack([self.epoch_seed, self.index])
    if copy is not None:
      folded = tf.random.fold_in(seed, _COPIES + copy)
      seed = tf.where(copy > 0, folded, seed)
    if use is None:
      return seed
    return tf.random.fold_in(seed, tf.constant(use, tf.int64))


def shuffle(size: int, seed: int, number: int) -> np.ndarray:
  """Return the permutation, int64 [size], of this number."""
  # Sorting raw bits: NumPy promises never to change these, but not what
  # Generator.permutation makes of them.
  philox = np.random.Philox(key=np.array([seed, number], np.uint64))
  return np.argsort(philox.random_raw(size), kind='stable')


class EpochOrder:
  """The examples in an endless sequence of shuffled epochs."""

  def __init__(self, num_examples: int, seed: int):
    self._num_examples, self._seed = num_examples, seed
    # Reading ahead touches one epoch and the next.
    self._shuffle = functools.lru_cache(maxsize=2)(shuffle)

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (epochs, indices), both int64 [n], for positions int64 [n]."""
    epochs, places = np.divmod(positions, self._num_examples)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      order = self._shuffle(self._num_examples, self._seed, int(epoch))
      indices[here] = order[places[here]]
    return epochs, indices


class Poisson(NamedTuple):
  """Batches that hold each example with a probability, by a draw of its own.

  Attributes:
    probability: In (0, 1].
    most: The largest batch; of more examples, it keeps a random part.
    key: Decides on the draws, with the number of the step; in [0, 2**64).
  """

  probability: float
  most: int
  key: int


class PoissonOrder:
  """The examples of each batch, each drawn independently."""

  def __init__(self, num_examples: int, batch_size: int, poisson: Poisson):
    self._num_examples, self._batch_size = num_examples, batch_size
    self._poisson = poisson
    self._cached = functools.lru_cache(maxsize=2)(self._draw)

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, indices) as `EpochOrder`; -1 is no example."""
    steps, rows = np.divmod(positions, self._batch_size)
    indices = np.full_like(positions, -1)
    for step in np.unique(steps):
      drawn = self._cached(int(step))
      here = (steps == step) & (rows < len(drawn))
      indices[here] = drawn[rows[here]]
    return steps, indices

  def _draw(self, step: int) -> np.ndarray:
    key = np.array([self._poisson.key, step], np.uint64)
    numbers = np.random.Philox(key=key).random_raw(self._num_examples)
    drawn = np.flatnonzero(numbers * 2.0**-64 < self._poisson.probability)
    # The smallest of the numbers belong to a random part of the draw.
    order = np.argsort(numbers[drawn], kind='stable')
    return np.sort(drawn[order[: self._poisson.most]])


class Reader:
  """Reads examples in some order, and others instead of unreadable ones.

  Where the image of an example cannot be decoded, the next one of the split
  stands in for it, or the first that can be decoded after that. Whether it can
  be is found out again for every place, because that depends on the crop where
  an image is cut short: so what is where never depends on what was read before,
  and a run that is resumed goes on as it would have.

  Attributes:
    source: The examples.
    damaged: What is wrong with each example that could not be decoded so far,
      by its number. Those of `SplitReader.unreadable` are there from the
      beginning.
    suspects: The numbers of places whose examples are tried before they are
      handed on, as those in `damaged` always are.
    parallel_reads: Number of blocks of examples that are read concurrently.
    error: The exception of reading ahead, or None.
  """

  def __init__(
    self,
    source: SplitReader,
    length: int,
    locate: Callable[[np.ndarray], Place],
    load: Callable[[tf.Tensor, Place], Any],
    skip_corrupt: bool,
  ):
    """Read nothing yet.

    Args:
      source: The examples; without `skip_corrupt`, none is `unreadable`.
      length: The number of places.
      locate: From the numbers of places (int64 [n]) to places.
      load: From a record (string []) and its place (of int64 []) to what the
        record holds. An example that this fails for is unreadable.
      skip_corrupt: Whether others stand in for unreadable examples; if not, the
        first of them is an error.

    Raises:
      UserError: Too many are unreadable.
    """
    self.source, self._length, self._locate = source, length, locate
    place = Place(*[tf.TensorSpec([], tf.int64)] * len(Place._fields))
    signature = [tf.TensorSpec([], tf.string), place]
    self._load = tf.function(load, input_signature=signature, autograph=False)
    self._skip_corrupt = skip_corrupt
    mean_bytes = max(source.mean_bytes, 1)
    fitting = min(_BYTES_PER_READ / mean_bytes, _EXAMPLES_PER_READ)
    # Two examples that are mixed stay together.
    self._block = max(int(fitting) // 2 * 2, 2)
    most = int(_BYTES_AHEAD / (self._block * mean_bytes))
    self.parallel_reads = min(
      source.parallel_reads, max(most, _MIN_PARALLEL_READS)
    )
    self.error: Exception | None = None
    self.suspects = range(0)
    self.damaged = dict(source.unreadable)
    self._lock = threading.Lock()
    self._check_number()

  def dataset(self, start: int, group: int = 1) -> tf.data.Dataset:
    """Return the examples from place number `start` on.

    Args:
      start: The number of the first.
      group: Number of examples per element, 1 or 2.

    Returns:
      A dataset of (records: string [group], places: of int64 [group], own: bool
      [group]); `own` is whether a record is that of the index in its place and
      not one that stands in.
    """
    kinds = [tf.string, *[tf.int64] * len(Place._fields), tf.bool]

    def read(first: np.ndarray) -> tuple[np.ndarray, ...]:
      numbers = np.arange(first, min(first + self._block, self._length))
      try:
        places = self._locate(numbers)
        indices = places.index.copy()
        is_tried = np.isin(indices, list(self.damaged))
        is_tried |= np.isin(numbers, self.suspects)
        for i in np.flatnonzero(is_tried):
          indices[i] = self._find_readable(places.at(i))
        block = np.array(self.source.read(indices), object)
        return block, *places, indices == places.index
      except Exception as error:
        # TensorFlow would wrap an exception in a page of its own. Instead an
        # empty block ends the pipeline, and the consumer raises the error.
        self.error = self.error or error
        return tuple(np.zeros(0, kind.as_numpy_dtype) for kind in kinds)

    def read_block(first: tf.Tensor) -> tuple[tf.Tensor, Place, tf.Tensor]:
      parts = tf.numpy_function(read, [first], kinds)
      block, *fields, own = (tf.reshape(part, [-1, group]) for part in parts)
      return block, Place(*fields), own

    dataset = tf.data.Dataset.range(start, self._length, self._block)
    dataset = dataset.map(read_block, num_parallel_calls=self.parallel_reads)
    dataset = dataset.take_while(lambda block, *_: tf.size(block) > 0)
    return dataset.unbatch()

  def _find_readable(self, place: Place) -> int:
    """Return the example that is at a place: its own, or the next readable.

    Raises:
      UserError: It must not be left out, or too many would be.
    """
    index = int(place.index)
    while True:
      reason = self.source.unreadable.get(index)
      if reason is None:
        [record] = self.source.read(np.array([index]))
        try:
          self._load(tf.constant(record), Place(*map(tf.constant, place)))
          return index
        except tf.errors.OpError as error:
          reason = messages.one_line(error)
      what = (
        f'{self.source.title}: {self.source.where(index)} does not hold a '
        f'readable image: {reason}'
      )
      if not self._skip_corrupt:
        raise UserError(
          f'{what}. --skip_corrupt leaves such images out and counts them.'
        )
      with self._lock:
        is_new = index not in self.damaged
        self.damaged.setdefault(index, reason)
      if is_new:
        logging.warning('%s. It is left out.', what)
        self._check_number()
      index = (index + 1) % self.source.num_examples

  def _check_number(self) -> None:
    count, total = len(self.damaged), self.source.num_examples
    if count == total or count > max(_MAX_DAMAGED, total // 100):
      *_, last = self.damaged
      raise UserError(
        f'{self.source.title}: {count} of {total} images are unreadable, '
        f'which is too many to leave out. One is {self.source.where(last)}: '
        f'{self.damaged[last]}.'
      )


class Batches(Iterator[Batch]):
  """An iterator of batches whose threads and files `close` gives back.

  It is also closed by leaving a `with` block, by garbage collection and at the
  end of the program. Arrays may be read-only views of TensorFlow's memory.

  Attributes:
    close: A function that stops reading ahead and closes the files.
  """

  def __init__(
    self,
    reader: Reader,
    examples_per_batch: int,
    build: Callable[[int], tf.data.Dataset],
    first: int = 0,
  ):
    """Start to read ahead.

    Args:
      reader: The source of the examples.
      examples_per_batch: Number of examples per batch.
      build: Returns the dataset of batches from the one with that number on.
      first: The number of the first batch.
    """
    self._reader = reader
    self._examples_per_batch = examples_per_batch
    self._build = build
    self._next, self._failed = first, None  # Numbers of batches.
    self._iterators = [build(first).as_numpy_iterator()]  # Or none.
    # At the end of the program, too: tf.data's threads call Python, which they
    # must not do once it shuts down.
    self.close = weakref.finalize(self, _close, reader.source, self._iterators)

  @property
  def num_skipped(self) -> int:
    """How many examples of the dataset have been found to be unreadable.

    Each counts once, however often it was left out. Examples that were read
    ahead count as well, and those of other processes do not.
    """
    return len(self._reader.damaged)

  @property
  def skipped(self) -> dict[str, str]:
    """These examples: where each is, and what is wrong with it."""
    damaged = sorted(self._reader.damaged.items())
    return {self._reader.source.where(index): why for index, why in damaged}

  def __next__(self) -> Batch:
    """Return the next batch.

    Raises:
      StopIteration: There are no more, or the iterator is closed.
      UserError: An example cannot be read or decoded.
    """
    while self._iterators:
      try:
        batch = next(self._iterators[0], None)
      except tf.errors.OpError as error:
        failure = error.with_traceback(None)  # Which would keep the iterator.
      else:
        if self._reader.error is not None:
          raise self._reader.error
        if batch is None:
          break
        self._next += 1
        return batch
      # Once more, with every example of this batch tried before.
      self._iterators.clear()  # tf.data cancels and joins its threads.
      if self._failed == self._next:
        self.close()
        title, why = self._reader.source.title, messages.one_line(failure)
        raise UserError(f'{title}: {why}')
      self._failed = self._next
      start = self._next * self._examples_per_batch
      self._reader.suspects = range(start, start + self._examples_per_batch)
      self._iterators.append(self._build(self._next).as_numpy_iterator())
    raise StopIteration

  def stop(self) -> None:
    """Make a `next` that waits for a store raise UserError, and later ones.

    May be called from another thread.
    """
    self._reader.source.stop()

  def __enter__(self) -> 'Batches':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _close(source: SplitReader, iterators: list[Iterator[Batch]]) -> None:
  source.stop()
  iterators.clear()  # Their threads end.
  source.close()
