"""Where the records of TFRecord files are.

A TFRecord file can only be read from front to back, because it says nothing of
where its records begin. That is found out once per dataset, by reading the
length that precedes every record, and kept in a small file next to the data, or
under ~/.cache/nfnets where that cannot be written.

Layout of a record (tensorflow/core/lib/io/record_writer.cc): uint64 length,
uint32 checksum of the length, `length` bytes, uint32 checksum of the bytes; all
little-endian.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import os
import pathlib
import struct
from typing import NamedTuple
import zipfile

from absl import logging
import numpy as np

from nfnets.data import cache
from nfnets.data.errors import DatasetError
from nfnets.data.local_files import LocalFiles, Range

HEADER_BYTES = 12
FOOTER_BYTES = 4
_SCAN_THREADS = 16


class RecordIndex(NamedTuple):
  """What an index says.

  Attributes:
    lengths: Of the contents of every record in bytes, int64 [N].
    shard_bytes: The size of every file, int64 [S].
    path: Where the index is kept, or None.
  """

  lengths: np.ndarray
  shard_bytes: np.ndarray
  path: pathlib.Path | None


def record_length(header: bytes) -> int:
  """Returns the length of the record that begins so."""
  return struct.unpack_from('<Q', header)[0]


def load_or_build(
  files: LocalFiles,
  paths: Sequence[str],
  shard_lengths: Sequence[int],
  name: str,
) -> RecordIndex:
  """Returns the index of some files; makes it unless there is one that fits.

  Args:
    files: Reads them.
    paths: Their names.
    shard_lengths: The number of records in each.
    name: Names the file of the index.

  Raises:
    DatasetError: A file is missing or damaged.
  """
  shard_bytes = files.sizes(paths)
  candidates = _index_paths(paths[0], name)
  for path in candidates:
    lengths = _load_index(path, shard_lengths, shard_bytes)
    if lengths is not None:
      return RecordIndex(lengths, np.asarray(shard_bytes, np.int64), path)
  logging.info(
    'Indexing the %d records in %d files of %s, once.',
    sum(shard_lengths),
    len(paths),
    os.path.dirname(paths[0]),
  )

  def scan(path: str, size: int, expected: int) -> np.ndarray:
    return _scan_file(files, path, size, expected)

  with futures.ThreadPoolExecutor(_SCAN_THREADS) as pool:
    scans = pool.map(scan, paths, shard_bytes, shard_lengths)
    lengths = np.concatenate([*scans, np.zeros(0, np.int64)])
  kept = None
  for path in candidates:
    try:
      _save_index(path, lengths, shard_lengths, shard_bytes)
      kept = path
      break
    except OSError as error:
      logging.info('Cannot keep the index as %s (%s).', path, error)
  if kept is None:
    logging.warning('The index of %s is made again in every run.', paths[0])
  return RecordIndex(lengths, np.asarray(shard_bytes, np.int64), kept)


def _index_paths(first_shard: str, name: str) -> list[pathlib.Path]:
  """Where the index may be, best first."""
  folder = os.path.dirname(first_shard)
  digest = hashlib.sha256(folder.encode()).hexdigest()[:12]
  beside = pathlib.Path(folder, f'{name}.record_index.npz')
  return [beside, cache.folder() / f'{name}-{digest}.record_index.npz']


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


def _scan_file(
  files: LocalFiles, path: str, size: int, expected: int
) -> np.ndarray:
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
