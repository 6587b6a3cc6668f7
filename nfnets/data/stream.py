"""The examples of a split in some order, as a tf.data pipeline."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nfnets.data.errors import DatasetError
from nfnets.data.order import Place
from nfnets.data.recovery import Load, Recovery, first_line
from nfnets.data.source import Source

# Of examples that are read at once, until they are of this many bytes.
_EXAMPLES_PER_READ = 32
_BYTES_PER_READ = 2**25
# Of what is read ahead where more than a few such blocks are.
_BYTES_AHEAD = 2**28
_MIN_PARALLEL_READS = 4

Locate = Callable[[np.ndarray], Place]


class ExampleStream:
  """Reads examples in some order, and others instead of unreadable ones.

  Attributes:
    parallel_reads: How many blocks of examples are read at once.
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
      length: The number of places in the stream.
      locate: From numbers in the stream (int64 [n]) to places.
      load: See `Recovery`.
      skip_corrupt: See `Recovery`.
    """
    self._source = source
    self._length = length
    self._locate = locate
    self._recovery = Recovery(source, load, skip_corrupt)
    block = _EXAMPLES_PER_READ
    while block > 2 and block * source.mean_bytes > _BYTES_PER_READ:
      block //= 2  # Two examples that are mixed stay together.
    self._block = block
    most = int(_BYTES_AHEAD / max(block * source.mean_bytes, 1))
    self.parallel_reads = min(
      source.parallel_reads, max(most, _MIN_PARALLEL_READS)
    )
    self._avoided: set[int] = set()  # What the last dataset knew of.
    self.error: Exception | None = None

  @property
  def num_damaged(self) -> int:
    """How many examples have been found to be unreadable so far."""
    return len(self._recovery.damaged)

  def dataset(self, start: int, group: int = 1) -> tf.data.Dataset:
    """Returns the examples from number `start` on.

    Args:
      start: The number of the first.
      group: How many examples make an element, 1 or 2.

    Returns:
      A dataset of (records: string [group], places: of int64 [group], own: bool
      [group]); `own` is whether a record is that of the index in its place and
      not one that stands in.
    """

    kinds = [tf.string, *[tf.int64] * len(Place._fields), tf.bool]

    def read(first: np.ndarray) -> tuple[np.ndarray, ...]:
      last = min(first + self._block, self._length)
      try:
        places = self._locate(np.arange(first, last))
        indices = self._recovery.indices(places)
        block = np.array(self._source.read(indices), object)
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

    self._avoided = set(self._recovery.damaged)
    dataset = tf.data.Dataset.range(start, self._length, self._block)
    dataset = dataset.map(read_block, num_parallel_calls=self.parallel_reads)
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
    places = self._locate(np.arange(start, min(stop, self._length)))
    if self._recovery.examine(places) <= self._avoided:
      raise DatasetError(f'{self._source.title}: {first_line(error)}')

  def stop(self) -> None:
    """Makes reads that wait for a store end, and the datasets with them."""
    self._source.stop()

  def close(self) -> None:
    """Closes the files."""
    self._source.close()
