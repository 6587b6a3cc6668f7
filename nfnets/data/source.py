"""The examples of a split, by their number."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import image_files, records
from nfnets.data.builders import find_split, image_and_label, title
from nfnets.data.errors import DatasetError, ExampleError


class Source:
  """The examples of a split, by their number in it.

  Attributes:
    title: The names of the dataset and the split, for messages.
    num_examples: The number of examples in the split.
    mean_bytes: The size of an example, on average.
    parallel_reads: How many calls of `read` are worth making at once.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    """Opens the files.

    Args:
      builder: A dataset from `load_builder`.
      split: One of `builders.SPLITS`.

    Raises:
      DatasetError: The split is unknown, empty or damaged.
    """
    tfds_split, self._start, stop = find_split(builder, split)
    self.num_examples = stop - self._start
    self.title = f'{title(builder)}, split {split!r}'
    if not self.num_examples:
      raise DatasetError(f'{self.title} is empty.')
    self._fields = image_and_label(builder)
    keys = (self._fields.image, self._fields.label)
    # Other features are not even parsed.
    self._features = tfds.features.FeaturesDict(
      {key: builder.info.features[key] for key in keys}
    )
    self._records = records.open_records(builder, tfds_split)
    self.mean_bytes = self._records.mean_bytes
    self.parallel_reads = self._records.parallel_reads

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
    image = example[image]
    if isinstance(self._records, image_files.ImageFiles):
      image = image_files.decode(image)
    return image, tf.cast(example[label], tf.int32)

  def example(self, index: int) -> tuple[bytes | np.ndarray, int]:
    """Returns one image, encoded or uint8 [H, W, C], and its label.

    Raises:
      DatasetError: As `read` does.
      ExampleError: The example is damaged.
    """
    [record] = self.read(np.array([index]))
    try:
      image, label = self.parse(tf.constant(record))
    except tf.errors.OpError as error:
      raise ExampleError('the example cannot be read') from error
    return image.numpy(), int(label)

  def where(self, index: int) -> str:
    """Says in words where an example is, for messages."""
    return self._records.where(self._start + index)

  def stop(self) -> None:
    """Makes reads that wait for a store end with an error, now and later."""
    self._records.stop()

  def close(self) -> None:
    """Closes the files."""
    self._records.close()
