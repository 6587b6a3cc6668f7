"""Random access to the examples of a dataset.

Any example is one read away, which is what makes a shuffle over the whole
dataset and an exact resume cheap. `record_index` says where in a TFRecord file
it is.
"""

from collections.abc import Sequence
import os

import numpy as np
import tensorflow_datasets as tfds

from nfnets import paths
from nfnets.data import image_files, record_index
from nfnets.data.errors import DatasetError
from nfnets.data.file_ranges import Files, Range
from nfnets.data.folders import Folder
from nfnets.data.local_files import LocalFiles


def open_records(
  builder: tfds.core.DatasetBuilder, tfds_split: str
) -> 'RecordFiles | ArrayRecordFiles | image_files.ImageFiles':
  """Opens a split of a prepared dataset for random access.

  Args:
    builder: A prepared TFDS dataset, or a folder.
    tfds_split: The name of one of its splits, such as 'train'.

  Returns:
    An object with `len()`, `read(indices) -> list[bytes]` (serialized examples,
    in TFDS's own order), `where(index)`, `stop()`, `close()`, `mean_bytes` (the
    size of an example) and `parallel_reads` (how many calls of `read` are worth
    making at once).

  Raises:
    DatasetError: A file is missing or damaged, or of a format other than
      tfrecord and array_record.
  """
  if isinstance(builder, Folder):
    return builder.open_files(tfds_split)
  info = builder.info.splits[tfds_split]
  names = [os.fspath(path) for path in info.filepaths]
  file_format = builder.info.file_format
  if file_format == tfds.core.FileFormat.TFRECORD:
    name = f'{builder.name}-{tfds_split}'
    return RecordFiles(names, info.shard_lengths, name)
  if file_format == tfds.core.FileFormat.ARRAY_RECORD:
    if paths.is_remote(names[0]):
      raise DatasetError(
        f'{builder.info.full_name} is stored as array_record in a bucket, '
        'where only tfrecord can be read. Mount the bucket (gcsfuse), or '
        "prepare it again: builder.download_and_prepare(file_format='tfrecord')"
      )
    return ArrayRecordFiles(names, info.shard_lengths)
  raise DatasetError(
    f'{builder.info.full_name} is stored as {file_format.value}, which cannot '
    'be read in random order. Prepare it again as tfrecord or array_record: '
    "builder.download_and_prepare(file_format='array_record')."
  )


class RecordFiles:
  """The records of a list of TFRecord files, numbered through.

  Safe to use from several threads.
  """

  def __init__(
    self, paths: Sequence[str], shard_lengths: Sequence[int], name: str
  ):
    """Loads or makes the index.

    Args:
      paths: The files, all on this machine or all in buckets.
      shard_lengths: The number of records in each.
      name: Names the file of the index.

    Raises:
      DatasetError: A file is missing or damaged.
    """
    self._paths = list(paths)
    self._files = _open_files(self._paths[0])
    self.parallel_reads = self._files.parallel_reads
    self._index = record_index.load_or_build(
      self._files, self._paths, shard_lengths, name
    )
    lengths = self._index.lengths
    self.mean_bytes = float(np.mean(lengths)) if len(lengths) else 0.0
    # Records follow each other without gaps, within and across the files.
    around = record_index.HEADER_BYTES + record_index.FOOTER_BYTES
    starts = np.cumsum(lengths + around) - lengths - around
    shard_bytes = self._index.shard_bytes
    shard_starts = np.cumsum(shard_bytes) - shard_bytes
    self._shards = np.repeat(np.arange(len(self._paths)), shard_lengths)
    self._offsets = starts - shard_starts[self._shards]

  def __len__(self) -> int:
    return len(self._index.lengths)

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """Reads the records of these numbers, several at a time.

    Args:
      indices: Integers in [0, len(self)).

    Returns:
      The contents of the records, in the order of `indices`.

    Raises:
      DatasetError: A file is gone, or not what it was when it was indexed.
    """
    ranges = [self._range(int(i)) for i in indices]
    contents = self._files.read(ranges)
    return [
      self._record(part, content)
      for part, content in zip(ranges, contents, strict=True)
    ]

  def where(self, index: int) -> str:
    """Says in words where a record is, for messages."""
    path = self._paths[self._shards[index]]
    return f'the record at byte {self._offsets[index]} of {path}'

  def stop(self) -> None:
    """Makes reads that wait for a store end with an error, now and later."""
    self._files.stop()

  def close(self) -> None:
    """Closes the files. Reading after that is an error."""
    self._files.close()

  def _range(self, index: int) -> Range:
    path = self._paths[self._shards[index]]
    size = record_index.HEADER_BYTES + int(self._index.lengths[index])
    return Range(path, int(self._offsets[index]), size)

  def _record(self, part: Range, content: bytes) -> bytes:
    """Returns what follows the header in the bytes of a range."""
    length = part.size - record_index.HEADER_BYTES
    whole = len(content) == part.size
    if not whole or record_index.record_length(content) != length:
      raise DatasetError(
        f'{part.path} is damaged, or has changed since it was indexed: there '
        f'is no record of {length} bytes at byte {part.start}. Prepare the '
        f'dataset again, or delete the index {self._index.path} to have it '
        'made again.'
      )
    return content[record_index.HEADER_BYTES :]


class ArrayRecordFiles:
  """The records of array_record files, which bring their own index."""

  parallel_reads = 4

  def __init__(self, paths: Sequence[str], shard_lengths: Sequence[int]):
    """Opens the files; raises DatasetError if they are not as long as said."""
    from array_record.python import array_record_data_source

    files = _open_files(paths[0])
    total = sum(files.sizes(paths))
    files.close()
    self.mean_bytes = total / max(sum(shard_lengths), 1)
    self._paths = list(paths)
    self._source = array_record_data_source.ArrayRecordDataSource(paths)
    if len(self._source) != sum(shard_lengths):
      raise DatasetError(
        f'The {len(paths)} files of {paths[0]} hold {len(self._source)} '
        f'records instead of {sum(shard_lengths)}. Prepare the dataset again.'
      )

  def __len__(self) -> int:
    return len(self._source)

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """Reads the records of these numbers; see `RecordFiles.read`."""
    return self._source.__getitems__([int(index) for index in indices])

  def where(self, index: int) -> str:
    """Says in words where a record is, for messages."""
    return f'record {index} of {self._paths[0]} and the files that follow it'

  def stop(self) -> None:
    """Does nothing: no read waits for long."""

  def close(self) -> None:
    """Closes the files."""
    self._source.__exit__(None, None, None)


def _open_files(name: str) -> Files:
  """Returns what reads files that are where this one is."""
  if paths.is_remote(name):
    # Takes half a second, which only buckets are worth.
    from nfnets.data.bucket_files import BucketFiles

    return BucketFiles()
  return LocalFiles()
