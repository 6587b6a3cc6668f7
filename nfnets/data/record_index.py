"""Where the records of TFRecord files are.

A TFRecord file can only be read from front to back, because it says nothing of
where its records begin. That is found out once per dataset, by reading the
length that precedes every record, and kept in a small file next to the data, or
under ~/.cache/nfnets where that cannot be written. From a bucket all of every
file is read for that, because a request takes as long for 8 MiB as for 12
bytes.

Layout of a record (tensorflow/core/lib/io/record_writer.cc): uint64 length,
uint32 checksum of the length, `length` bytes, uint32 checksum of the bytes; all
little-endian.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import io
import os
import pathlib
import struct
from typing import NamedTuple
import zipfile

from absl import logging
import numpy as np

from nfnets import paths
from nfnets.data import cache
from nfnets.data.errors import DatasetError
from nfnets.data.file_ranges import Files, Range

HEADER_BYTES = 12
FOOTER_BYTES = 4
_SCAN_THREADS = 16


class RecordIndex(NamedTuple):
  """What an index says.

  Attributes:
    lengths: Of the contents of every record in bytes, int64 [N].
    shard_bytes: The size of every file, int64 [S].
    path: The file that it is kept in, or None.
  """

  lengths: np.ndarray
  shard_bytes: np.ndarray
  path: str | None


def record_length(header: bytes) -> int:
  """Returns the length of the record that begins so."""
  return struct.unpack_from('<Q', header)[0]


def load_or_build(
  files: Files,
  names: Sequence[str],
  shard_lengths: Sequence[int],
  name: str,
) -> RecordIndex:
  """Returns the index of some files; makes it unless there is one that fits.

  Args:
    files: Reads them.
    names: Their names.
    shard_lengths: The number of records in each.
    name: Names the file of the index.

  Raises:
    DatasetError: A file is missing or damaged.
  """
  # Asking a bucket for the size of each of a thousand files takes seconds;
  # files that have changed nevertheless are noticed when records are read.
  remote = paths.is_remote(names[0])
  some = [0, -1] if remote else list(range(len(names)))
  some_bytes = files.sizes([names[i] for i in some])
  candidates = _index_names(names[0], name)
  for candidate in candidates:
    index = _load_index(candidate, shard_lengths)
    if index and np.array_equal(index.shard_bytes[some], some_bytes):
      return index
  shard_bytes = np.array(files.sizes(names) if remote else some_bytes, np.int64)
  logging.info(
    'Indexing the %d records in %d files of %s (%.1f GB), once.',
    sum(shard_lengths),
    len(names),
    os.path.dirname(names[0]),
    shard_bytes.sum() / 1e9,
  )

  def scan(path: str, size: int, expected: int) -> np.ndarray:
    return _scan_file(files, path, size, expected)

  with futures.ThreadPoolExecutor(_SCAN_THREADS) as pool:
    scans = pool.map(scan, names, shard_bytes.tolist(), shard_lengths)
    lengths = np.concatenate([*scans, np.zeros(0, np.int64)])
  for candidate in candidates:
    index = RecordIndex(lengths, shard_bytes, candidate)
    try:
      _save_index(index, shard_lengths)
      return index
    except OSError as error:
      logging.info('Cannot keep the index as %s (%s).', candidate, error)
  logging.warning('The index of %s is made again in every run.', names[0])
  return RecordIndex(lengths, shard_bytes, None)


def _index_names(first_shard: str, name: str) -> list[str]:
  """Where the index may be, best first."""
  folder = os.path.dirname(first_shard)
  digest = hashlib.sha256(folder.encode()).hexdigest()[:12]
  in_cache = cache.folder() / f'{name}-{digest}.record_index.npz'
  return [os.path.join(folder, f'{name}.record_index.npz'), str(in_cache)]


def _load_index(path: str, shard_lengths: Sequence[int]) -> RecordIndex | None:
  """Returns an index, or None where there is none of so many records."""
  try:
    with np.load(io.BytesIO(paths.read_bytes(path))) as arrays:
      index = RecordIndex(arrays['lengths'], arrays['shard_bytes'], path)
      fits = (
        np.array_equal(arrays['shard_lengths'], shard_lengths)
        and index.shard_bytes.shape == (len(shard_lengths),)
        and index.lengths.shape == (sum(shard_lengths),)
      )
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None
  return index if fits else None


def _save_index(index: RecordIndex, shard_lengths: Sequence[int]) -> None:
  """Writes an index as its path says; raises OSError if that cannot be."""
  arrays = {
    'lengths': index.lengths,
    'shard_bytes': index.shard_bytes,
    'shard_lengths': np.asarray(shard_lengths, np.int64),
  }
  if not paths.is_remote(index.path):
    cache.save_arrays(pathlib.Path(index.path), **arrays)
    return
  content = io.BytesIO()
  np.savez(content, **arrays)
  paths.write_bytes(index.path, content.getvalue())


def _scan_file(files: Files, path: str, size: int, expected: int) -> np.ndarray:
  """Returns the length of every record in a file, int64 [expected]."""
  lengths = []
  offset = 0
  window, start = b'', 0  # What has been read, and from where on.
  while offset < size:
    if not start <= offset <= start + len(window) - HEADER_BYTES:
      wanted = min(max(files.scan_bytes, HEADER_BYTES), size - offset)
      window, start = files.read_one(Range(path, offset, wanted)), offset
    header = window[offset - start : offset - start + HEADER_BYTES]
    whole = len(header) == HEADER_BYTES
    end = offset + HEADER_BYTES + FOOTER_BYTES
    if whole:
      lengths.append(record_length(header))
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
