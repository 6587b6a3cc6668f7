"""Examples of a TFDS split in any order, as a tf.data pipeline."""

import collections
from collections.abc import Callable
import functools
import re
import threading

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import records
from nfnets.data.builders import find_split, image_and_label
from nfnets.data.errors import DatasetError

PARALLEL_READS = 4
_EXAMPLES_PER_READ = 32
# Enough to find a damaged example among those that were read ahead.
_REMEMBERED_READS = 256


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
  """Reads and parses the examples of a split.

  Attributes:
    num_examples: The number of examples in the split.
    error: What went wrong while reading ahead, or None.
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
    self._title = f'{builder.info.full_name}, split {split!r}'
    if not self.num_examples:
      raise DatasetError(f'{self._title} is empty.')
    self._fields = image_and_label(builder)
    keys = (self._fields.image, self._fields.label)
    # Other features are not even parsed.
    self._features = tfds.features.FeaturesDict(
      {key: builder.info.features[key] for key in keys}
    )
    self._records = records.open_records(builder, tfds_split)
    self._recent = collections.deque(maxlen=_REMEMBERED_READS)
    self.error = None

  def examples(
    self,
    start: int,
    stop: int,
    locate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
  ) -> tf.data.Dataset:
    """Returns a dataset of (record: string [], (epoch, index): int64 [2]).

    Args:
      start: The number of the first example to come out.
      stop: The number of the last one, plus 1.
      locate: From such numbers (int64 [n]) to epochs and to indices in the
        split (both int64 [n]).
    """

    def read(first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
      last = min(first + _EXAMPLES_PER_READ, stop)
      epochs, indices = locate(np.arange(first, last))
      self._recent.append(indices)
      try:
        contents = self._records.read(self._start + indices)
      except Exception as error:
        # TensorFlow would wrap an exception in a page of its own. Instead an
        # empty block ends the pipeline, and the consumer raises the error.
        self.error = self.error or error
        return np.zeros(0, object), np.zeros((0, 2), np.int64)
      return np.array(contents, object), np.stack([epochs, indices], 1)

    def read_block(first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
      block, keys = tf.numpy_function(read, [first], [tf.string, tf.int64])
      return tf.ensure_shape(block, [None]), tf.ensure_shape(keys, [None, 2])

    dataset = tf.data.Dataset.range(start, stop, _EXAMPLES_PER_READ)
    dataset = dataset.map(read_block, num_parallel_calls=PARALLEL_READS)
    dataset = dataset.take_while(lambda block, _: tf.size(block) > 0)
    return dataset.unbatch()

  def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image (string [] or uint8 [H, W, C]) and the int32 label."""
    image, label, is_encoded = self._fields
    skip = {image: tfds.decode.SkipDecoding()} if is_encoded else None
    example = self._features.deserialize_example(record, decoders=skip)
    return example[image], tf.cast(example[label], tf.int32)

  def explain(self, error: tf.errors.OpError) -> Exception:
    """Turns a failure to decode into an error that names the example."""
    for index in self._start + np.concatenate([*self._recent, []]).astype(int):
      cause = self._decoding_error(index)
      if cause is not None:
        where = self._records.where(index)
        return DatasetError(
          f'{self._title}: {where} does not hold a readable image: '
          f'{_first_line(cause)}'
        )
    return DatasetError(f'{self._title}: {_first_line(error)}')

  def close(self) -> None:
    """Closes the files."""
    self._records.close()

  def _decoding_error(self, index: int) -> tf.errors.OpError | None:
    """Decodes one example and returns what went wrong, if anything did."""
    try:
      image, _ = self.parse(self._records.read([index])[0])
      if self._fields.is_encoded:
        tf.io.decode_image(image)
    except tf.errors.OpError as error:
      return error
    return None


def _first_line(error: tf.errors.OpError) -> str:
  """The message without the names of graph nodes."""
  text = re.sub(r'\{\{.*?\}\}|\[Op:.*', '', error.message).strip()
  return text.split('\n')[0].strip()
