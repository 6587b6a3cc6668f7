"""Random access to the examples of a dataset.

A TFRecord file can only be read from front to back, because it says nothing of
where its records begin. `RecordFiles` finds that out once per dataset, by
reading the length that precedes every record, and keeps the answer in a small
file next to the data, or under ~/.cache/nfnets where that cannot be written.
After that any example is one read away, which is what makes a shuffle over the
whole dataset and an exact resume cheap.

Layout of a record (tensorflow/core/lib/io/record_writer.cc): uint64 length,
uint32 checksum of the length, `length` bytes, uint32 checksum of the bytes; all
little-endian.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import hashlib
import os
import pathlib
import resource
import struct
import threading
import zipfile

from absl import logging
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import cache, image_files
from nfnets.data.errors import DatasetError
from nfnets.data.folders import Folder

_HEADER_BYTES = 12
_FOOTER_BYTES = 4
_READ_THREADS = 16
_RECORDS_PER_READ = 4

# Reads `size` bytes at `offset`: (offset, size) -> bytes.
_ReadAt = Callable[[int, int], bytes]


def open_records(
  builder: tfds.core.DatasetBuilder, tfds_split: str
) -> 'RecordFiles | ArrayRecordFiles | image_files.ImageFiles':
  """Opens a split of a prepared dataset for random access.

  Args:
    builder: A prepared TFDS dataset, or a folder.
    tfds_split: The name of one of its splits, such as 'train'.

  Returns:
    An object with `len()`, `read(indices) -> list[bytes]` (serialized examples,
    in TFDS's own order), `where(index)`, `close()` and `mean_bytes`, the size
    of an example.

  Raises:
    DatasetError: A file is missing or damaged, or of a format other than
      tfrecord and array_record.
  """
  if isinstance(builder, Folder):
    return builder.open_files(tfds_split)
  info = builder.info.splits[tfds_split]
  paths = [os.fspath(path) for path in info.filepaths]
  file_format = builder.info.file_format
  if file_format == tfds.core.FileFormat.TFRECORD:
    name = f'{builder.name}-{tfds_split}'
    return RecordFiles(paths, info.shard_lengths, name)
  if file_format == tfds.core.FileFormat.ARRAY_RECORD:
    return ArrayRecordFiles(paths, info.shard_lengths)
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
      paths: The files, local or anything that tf.io.gfile reads.
      shard_lengths: The number of records in each.
      name: Names the file of the index.

    Raises:
      DatasetError: A file is missing or damaged.
    """
    self._paths = list(paths)
    self._pool = futures.ThreadPoolExecutor(_READ_THREADS, 'records')
    self._descriptors = {}
    self._lock = threading.Lock()
    # Leave most descriptors to the rest of the program; the files beyond this
    # many are opened for every read.
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    self._max_descriptors = max(0, limit) // 4

    shard_bytes = list(self._pool.map(_file_size, self._paths))
    lengths, self._index_path = _load_or_build_index(
      self._paths, shard_lengths, shard_bytes, name, self._pool
    )
    self._lengths = lengths
    self.mean_bytes = float(np.mean(lengths)) if len(lengths) else 0.0
    # Records follow each other without gaps, within and across the files.
    ends = np.cumsum(lengths + _HEADER_BYTES + _FOOTER_BYTES)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    shard_starts = np.concatenate([[0], np.cumsum(shard_bytes)[:-1]])
    self._shards = np.repeat(np.arange(len(self._paths)), shard_lengths)
    self._offsets = starts - shard_starts.astype(np.int64)[self._shards]

  def __len__(self) -> int:
    return len(self._lengths)

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """Reads the records of these numbers, several at a time.

    Args:
      indices: Integers in [0, len(self)).

    Returns:
      The contents of the records, in the order of `indices`.

    Raises:
      DatasetError: A file is gone, or not what it was when it was indexed.
    """
    chunks = [
      indices[i : i + _RECORDS_PER_READ]
      for i in range(0, len(indices), _RECORDS_PER_READ)
    ]

    def read_chunk(chunk: Sequence[int]) -> list[bytes]:
      return [self._read_one(int(i)) for i in chunk]

    parts = self._pool.map(read_chunk, chunks)
    return [record for part in parts for record in part]

  def where(self, index: int) -> str:
    """Says in words where a record is, for messages."""
    path = self._paths[self._shards[index]]
    return f'the record at byte {self._offsets[index]} of {path}'

  def close(self) -> None:
    """Closes the files. Reading after that is an error."""
    self._pool.shutdown(wait=True)
    with self._lock:
      while self._descriptors:
        os.close(self._descriptors.popitem()[1])

  def __del__(self):
    for descriptor in getattr(self, '_descriptors', {}).values():
      os.close(descriptor)

  def _read_one(self, index: int) -> bytes:
    length = int(self._lengths[index])
    offset = int(self._offsets[index])
    path = self._paths[self._shards[index]]
    data = self._read_at(path, offset, _HEADER_BYTES + length)
    if len(data) != _HEADER_BYTES + length or _record_length(data) != length:
      raise DatasetError(
        f'{path} is damaged, or has changed since it was indexed: there is no '
        f'record of {length} bytes at byte {offset}. Prepare the dataset '
        f'again, or delete the index {self._index_path} to have it made again.'
      )
    return data[_HEADER_BYTES:]

  def _read_at(self, path: str, offset: int, size: int) -> bytes:
    if _is_remote(path):
      with tf.io.gfile.GFile(path, 'rb') as file:
        file.seek(offset)
        return file.read(size)
    with self._lock:
      descriptor = self._descriptors.get(path)
      if descriptor is None and len(self._descriptors) < self._max_descriptors:
        descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY)
    if descriptor is not None:
      return os.pread(descriptor, size, offset)
    descriptor = os.open(path, os.O_RDONLY)
    try:
      return os.pread(descriptor, size, offset)
    finally:
      os.close(descriptor)


class ArrayRecordFiles:
  """The records of array_record files, which bring their own index."""

  def __init__(self, paths: Sequence[str], shard_lengths: Sequence[int]):
    """Opens the files; raises DatasetError if they are not as long as said."""
    from array_record.python import array_record_data_source

    total = sum(_file_size(path) for path in paths)
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

  def close(self) -> None:
    """Closes the files."""
    self._source.__exit__(None, None, None)


def _is_remote(path: str) -> bool:
  return '://' in path


def _file_size(path: str) -> int:
  try:
    if _is_remote(path):
      return tf.io.gfile.stat(path).length
    return os.stat(path).st_size
  except (OSError, tf.errors.OpError) as error:
    raise DatasetError(
      f'{path} cannot be read ({error}). Prepare the dataset again.'
    ) from error


def _record_length(header: bytes) -> int:
  return struct.unpack_from('<Q', header)[0]


def _load_or_build_index(
  paths: Sequence[str],
  shard_lengths: Sequence[int],
  shard_bytes: Sequence[int],
  name: str,
  pool: futures.Executor,
) -> tuple[np.ndarray, pathlib.Path | None]:
  """Returns the length of every record (int64 [N]) and the index's file."""
  candidates = _index_paths(paths[0], name)
  for path in candidates:
    lengths = _load_index(path, shard_lengths, shard_bytes)
    if lengths is not None:
      return lengths, path
  logging.info(
    'Indexing the %d records in %d files of %s, once.',
    sum(shard_lengths),
    len(paths),
    os.path.dirname(paths[0]),
  )
  scans = pool.map(_scan_file, paths, shard_bytes, shard_lengths)
  lengths = np.concatenate([*scans, np.zeros(0, np.int64)])
  for path in candidates:
    try:
      _save_index(path, lengths, shard_lengths, shard_bytes)
      return lengths, path
    except OSError as error:
      logging.info('Cannot keep the index as %s (%s).', path, error)
  logging.warning('The index of %s is made again in every run.', paths[0])
  return lengths, None


def _index_paths(first_shard: str, name: str) -> list[pathlib.Path]:
  """Where the index may be, best first."""
  folder = os.path.dirname(first_shard)
  digest = hashlib.sha256(folder.encode()).hexdigest()[:12]
  beside = pathlib.Path(folder, f'{name}.record_index.npz')
  fallback = cache.folder() / f'{name}-{digest}.record_index.npz'
  return [fallback] if _is_remote(folder) else [beside, fallback]


def _load_index(
  path: pathlib.Path, shard_lengths: Sequence[int], shard_bytes: Sequence[int]
) -> np.ndarray | None:
  """Returns the index, or None where there is none that fits these files."""
  try:
    with np.load(path) as index:
      lengths = index['lengths']
      fits = (
        np.array_equal(index['shard_bytes'], shard_bytes)
        and np.array_equal(index['shard_lengths'], shard_lengths)
        and lengths.shape == (sum(shard_lengths),)
      )
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None
  return lengths if fits else None


def _save_index(
  path: pathlib.Path,
  lengths: np.ndarray,
  shard_lengths: Sequence[int],
  shard_bytes: Sequence[int],
) -> None:
  cache.save_arrays(
    path,
    lengths=lengths,
    shard_lengths=np.asarray(shard_lengths, np.int64),
    shard_bytes=np.asarray(shard_bytes, np.int64),
  )


def _scan_file(path: str, size: int, expected: int) -> np.ndarray:
  """Returns the length of every record in a file, int64 [expected]."""
  if _is_remote(path):
    with tf.io.gfile.GFile(path, 'rb') as file:

      def read_at(offset: int, size: int) -> bytes:
        file.seek(offset)
        return file.read(size)

      return _scan(read_at, path, size, expected)
  with open(path, 'rb', buffering=0) as file:

    def read_at(offset: int, size: int) -> bytes:
      return os.pread(file.fileno(), size, offset)

    return _scan(read_at, path, size, expected)


def _scan(read_at: _ReadAt, path: str, size: int, expected: int) -> np.ndarray:
  lengths = []
  offset = 0
  while offset < size:
    header = read_at(offset, _HEADER_BYTES)
    whole = len(header) == _HEADER_BYTES
    end = offset + _HEADER_BYTES + _FOOTER_BYTES
    if whole:
      lengths.append(_record_length(header))
      end += lengths[-1]
    if not whole or end > size:
      raise DatasetError(
        f'{path} is damaged or cut short: the record at byte {offset} goes '
        f'beyond the end of the file at byte {size}. Copy or prepare the '
        'dataset again.'
      )
    offset = end
  if len(lengths) != expected:
    raise DatasetError(
      f'{path} holds {len(lengths)} records, but dataset_info.json says '
      f'{expected}. Copy or prepare the dataset again.'
    )
  return np.asarray(lengths, np.int64)
