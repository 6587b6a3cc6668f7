"""Random access to the records of a prepared dataset.

Any example is one read away, which is what makes a shuffle over the whole
dataset and an exact resume cheap. A TFRecord file does not say where its
records begin, so that is found out once per dataset, by reading the length that
precedes every record, and kept in a small file next to the data, or under
~/.cache/nfnets where that cannot be written. From a bucket all of every file is
read for that, because a request takes as long for 8 MiB as for 12 bytes.

Layout of a record (tensorflow/core/lib/io/record_writer.cc): uint64 length,
uint32 checksum of the length, `length` bytes, uint32 checksum of the bytes; all
little-endian.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import io
import os
import struct

from absl import logging
import numpy as np
import tensorflow_datasets as tfds

from nfnets import paths
from nfnets.data import byte_ranges
from nfnets.data.byte_ranges import BucketFiles, LocalFiles, Range
from nfnets.errors import UserError

_HEADER, _FOOTER = 12, 4  # In bytes.
_SCAN_THREADS = 16


def open_records(
  builder: tfds.core.DatasetBuilder, tfds_split: str
) -> 'RecordFiles | ArrayRecordFiles':
  """Open a split of a prepared TFDS dataset for random access.

  Raises:
    UserError: A file is missing or damaged, or of a format other than tfrecord
      and array_record.
  """
  info = builder.info.splits[tfds_split]
  names = [os.fspath(path) for path in info.filepaths]
  file_format = builder.info.file_format
  if file_format == tfds.core.FileFormat.TFRECORD:
    name = f'{builder.name}-{tfds_split}'
    return RecordFiles(names, info.shard_lengths, name)
  is_array = file_format == tfds.core.FileFormat.ARRAY_RECORD
  if is_array and not paths.is_remote(names[0]):
    return ArrayRecordFiles(names, info.shard_lengths)
  where = ' in a bucket' if is_array else ''
  raise UserError(
    f'{builder.info.full_name} is stored as {file_format.value}{where}, which '
    'cannot be read in random order. Prepare it again: '
    "builder.download_and_prepare(file_format='tfrecord')."
  )


class RecordFiles:
  """The records of a list of TFRecord files, numbered through.

  Safe to use from several threads.

  Attributes:
    mean_bytes: The size of a record, on average.
    parallel_reads: Useful number of concurrent calls of `read`.
    stop: Makes reads that wait for a store end with an error, now and later.
    close: Closes the files.
  """

  def __init__(
    self, names: Sequence[str], shard_lengths: Sequence[int], name: str
  ):
    """Load or make the index.

    Args:
      names: The files, all on this machine or all in buckets.
      shard_lengths: The number of records in each.
      name: Names the file of the index.

    Raises:
      UserError: A file is missing or damaged.
    """
    self._names = list(names)
    is_remote = paths.is_remote(names[0])
    self._files = BucketFiles() if is_remote else LocalFiles()
    self.parallel_reads = self._files.parallel_reads
    self.stop, self.close = self._files.stop, self._files.close
    self._lengths, shard_bytes = self._load_index(shard_lengths, name)
    self.mean_bytes = float(np.mean(self._lengths)) if len(self) else 0.0
    # Records follow each other without gaps, within and across the files.
    whole = self._lengths + _HEADER + _FOOTER
    shard_starts = np.cumsum(shard_bytes) - shard_bytes
    self._shards = np.repeat(np.arange(len(names)), shard_lengths)
    self._offsets = np.cumsum(whole) - whole - shard_starts[self._shards]

  def __len__(self) -> int:
    return len(self._lengths)

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """Return the contents of the records of these numbers, in their order.

    Raises:
      UserError: A file is gone, or not what it was when it was indexed.
    """
    ranges = [
      Range(
        self._names[self._shards[i]],
        int(self._offsets[i]),
        _HEADER + int(self._lengths[i]),
      )
      for i in indices
    ]
    contents = self._files.read(ranges)
    for (path, start, size), content in zip(ranges, contents, strict=True):
      length = size - _HEADER
      if len(content) != size or _length(content) != length:
        raise UserError(
          f'{path} is damaged, or has changed since it was indexed: there is '
          f'no record of {length} bytes at byte {start}. Prepare the dataset '
          f'again, or delete the index {self._index_path} to have it made '
          'again.'
        )
    return [content[_HEADER:] for content in contents]

  def where(self, index: int) -> str:
    path = self._names[self._shards[index]]
    return f'the record at byte {self._offsets[index]} of {path}'

  def _load_index(
    self, shard_lengths: Sequence[int], name: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of the records and the sizes of the files, int64."""
    names = self._names
    folder = os.path.dirname(names[0])
    digest = hashlib.sha256(folder.encode()).hexdigest()[:12]
    candidates = (
      os.path.join(folder, f'{name}.record_index.npz'),
      str(paths.cache_folder() / f'{name}-{digest}.record_index.npz'),
    )
    # Asking a bucket for the size of each of a thousand files takes seconds;
    # files that have changed nevertheless are noticed when records are read.
    some = [0, -1] if paths.is_remote(names[0]) else [*range(len(names))]
    some_bytes = byte_ranges.sizes([names[i] for i in some])
    for self._index_path in candidates:
      try:
        with np.load(io.BytesIO(paths.read_bytes(self._index_path))) as arrays:
          lengths, shard_bytes = arrays['lengths'], arrays['shard_bytes']
          if (
            np.array_equal(arrays['shard_lengths'], shard_lengths)
            and np.array_equal(shard_bytes[some], some_bytes)
            and lengths.shape == (sum(shard_lengths),)
          ):
            return lengths, shard_bytes
      except Exception:
        pass  # There is none, or it is damaged, in one of many ways.
    shard_bytes = np.array(byte_ranges.sizes(names), np.int64)
    logging.info(
      'Indexing the %d records in %d files of %s (%.1f GB), once.',
      *(sum(shard_lengths), len(names), folder, shard_bytes.sum() / 1e9),
    )
    with futures.ThreadPoolExecutor(_SCAN_THREADS) as pool:
      scans = pool.map(self._scan, names, shard_bytes.tolist(), shard_lengths)
      lengths = np.concatenate([*scans, np.zeros(0, np.int64)])
    for self._index_path in candidates:
      try:
        paths.save_arrays(
          self._index_path,
          lengths=lengths,
          shard_bytes=shard_bytes,
          shard_lengths=np.asarray(shard_lengths, np.int64),
        )
        break
      except OSError as error:
        logging.warning('Cannot keep the index: %s.', error)
    return lengths, shard_bytes

  def _scan(self, path: str, size: int, expected: int) -> np.ndarray:
    """Return the length of every record in a file, int64 [expected]."""
    lengths, offset = [], 0
    window, start = b'', 0  # What has been read, and from where on.
    while offset < size:
      if not start <= offset <= start + len(window) - _HEADER:
        wanted = min(max(self._files.scan_bytes, _HEADER), size - offset)
        [window] = self._files.read([Range(path, offset, wanted)])
        start = offset
      header = window[offset - start : offset - start + _HEADER]
      length = _length(header) if len(header) == _HEADER else size
      begun, offset = offset, offset + _HEADER + length + _FOOTER
      if offset > size:
        raise UserError(
          f'{path} is damaged or cut short: the record at byte {begun} goes '
          f'beyond the end of the file at byte {size}. Copy or prepare the '
          'dataset again.'
        )
      lengths.append(length)
    if len(lengths) != expected:
      raise UserError(
        f'{path} holds {len(lengths)} records, but dataset_info.json says '
        f'{expected}. Copy or prepare the dataset again.'
      )
    return np.asarray(lengths, np.int64)


class ArrayRecordFiles:
  """The records of array_record files, which bring their own index."""

  parallel_reads = 4

  def __init__(self, names: Sequence[str], shard_lengths: Sequence[int]):
    """Open the files; raise UserError if they are not as long as said."""
    from array_record.python import array_record_data_source

    self._name, total = names[0], sum(shard_lengths)
    self.mean_bytes = sum(byte_ranges.sizes(names)) / max(total, 1)
    self._source = array_record_data_source.ArrayRecordDataSource(names)
    if len(self._source) != total:
      raise UserError(
        f'The {len(names)} files of {names[0]} hold {len(self._source)} '
        f'records instead of {total}. Prepare the dataset again.'
      )

  def __len__(self) -> int:
    return len(self._source)

  def read(self, indices: Sequence[int]) -> list[bytes]:
    return self._source.__getitems__([int(index) for index in indices])

  def where(self, index: int) -> str:
    return f'record {index} of {self._name} and the files that follow it'

  def stop(self) -> None:
    pass  # No read waits for long.

  def close(self) -> None:
    self._source.__exit__(None, None, None)


def _length(header: bytes) -> int:
  return struct.unpack_from('<Q', header)[0]
