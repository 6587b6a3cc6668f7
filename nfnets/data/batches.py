"""The iterator of batches."""

import atexit
from collections.abc import Callable, Iterator
import weakref

import numpy as np
import tensorflow as tf

from nfnets.data.stream import ExampleStream

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
  """An iterator of batches whose threads and files `close` gives back.

  It is also closed by leaving a `with` block, by garbage collection and at the
  end of the program. Arrays may be read-only views of TensorFlow's memory.
  """

  _open: 'weakref.WeakSet[Batches]' = weakref.WeakSet()

  def __init__(
    self,
    stream: ExampleStream,
    examples_per_batch: int,
    build: Callable[[int], tf.data.Dataset],
    first: int = 0,
  ):
    """Starts to read ahead.

    Args:
      stream: Where the examples come from.
      examples_per_batch: How many of them a batch takes.
      build: Returns the dataset of batches from the one with that number on.
      first: The number of the first batch.
    """
    self._iterator = None  # For `close`, if the next lines fail.
    self._stream = stream
    self._examples_per_batch = examples_per_batch
    self._build = build
    self._next = first
    self._iterator = build(first).as_numpy_iterator()
    Batches._open.add(self)

  @property
  def num_skipped(self) -> int:
    """How many examples of the dataset have been found to be unreadable.

    Each counts once, however often it was left out. Examples that were read
    ahead count as well, and those of other processes do not.
    """
    return self._stream.num_damaged

  def __next__(self) -> Batch:
    """Returns the next batch.

    Raises:
      StopIteration: There are no more, or the iterator is closed.
      DatasetError: An example cannot be read or decoded.
    """
    while self._iterator is not None:
      try:
        batch = next(self._iterator, None)
      except tf.errors.OpError as error:
        failure = error.with_traceback(None)  # Which would keep the iterator.
      else:
        if self._stream.error is not None:
          raise self._stream.error
        if batch is None:
          break
        self._next += 1
        return batch
      self._go_on_without(failure)
    raise StopIteration

  def _go_on_without(self, failure: tf.errors.OpError) -> None:
    """Leaves out the examples that the next batch fails for."""
    self._iterator = None  # tf.data cancels and joins its threads.
    start = self._next * self._examples_per_batch
    try:
      self._stream.search(start, start + self._examples_per_batch, failure)
    except Exception:
      self._stream.close()
      raise
    self._iterator = self._build(self._next).as_numpy_iterator()

  def stop(self) -> None:
    """Makes a `next` that waits for a store raise DatasetError, and later ones.

    May be called from another thread.
    """
    self._stream.stop()

  def close(self) -> None:
    """Stops reading ahead and closes the files."""
    if self._iterator is not None:
      self._stream.stop()
      self._iterator = None  # Its threads end.
      self._stream.close()

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
