"""What the pictures of a folder contain, as numbers that are kept.

Reading 100,000 files takes seconds to minutes, so what was read is kept in the
user's cache, and only files whose size or time has changed are read again.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import os
import pathlib
import zipfile

from absl import logging
import numpy as np
import tqdm

from nfnets.data import cache
from nfnets.data.errors import DatasetError
from nfnets.data.folder_listing import Picture, some

_READ_THREADS = 16
_FILES_PER_TASK = 64

# Of what is larger than four times this, only both ends are read, if it is
# compressed: then a change anywhere changes the size, or what follows it. A
# PNG even ends with checksums. Of bitmaps everything is read, as drawings and
# scans of one size may well have the same margins.
_END_BYTES = 16 * 1024
_COMPRESSED = (b'\xff\xd8\xff', b'\x89PNG', b'GIF8', b'RIFF')


def digests(root: str, pictures: Sequence[Picture]) -> np.ndarray:
  """Returns a number for the content of each picture, uint64 [n].

  Files of the same content have the same, and others practically never.

  Args:
    root: The folder that the pictures are in.
    pictures: Which.

  Raises:
    DatasetError: Files cannot be read.
  """
  path = _cache_path(root)
  known = _load(path)
  stamps = [(p.path, p.size, p.mtime_ns) for p in pictures]
  found = {stamp: known[stamp] for stamp in stamps if stamp in known}
  new = [stamp for stamp in stamps if stamp not in found]
  found |= zip(new, _read(root, new), strict=True)
  values = np.array([found[stamp] for stamp in stamps], np.uint64)
  if new or len(known) != len(found):
    _save(path, stamps, values)
  return values


def _read(root: str, stamps: list[tuple[str, int, int]]) -> list[int]:
  """Returns the digests of files, with a bar on a terminal if it takes long."""
  tasks = [
    stamps[i : i + _FILES_PER_TASK]
    for i in range(0, len(stamps), _FILES_PER_TASK)
  ]
  results, errors = [], []

  def work(task: list[tuple[str, int, int]]) -> list[int]:
    values = []
    for path, size, _ in task:
      try:
        values.append(_digest(os.path.join(root, path), size))
      except OSError as error:
        errors.append((path, error.strerror))
    return values

  bar = tqdm.tqdm(
    desc='Indexing pictures',
    total=len(stamps),
    unit='file',
    dynamic_ncols=True,
    delay=0.5,
    disable=None,  # Unless standard error is a terminal.
  )
  with bar, futures.ThreadPoolExecutor(_READ_THREADS) as pool:
    for task, values in zip(tasks, pool.map(work, tasks), strict=True):
      results += values
      bar.update(len(task))
  if errors:
    names = [path for path, _ in sorted(errors)]
    raise DatasetError(f'{root}: cannot read {some(names)} ({errors[0][1]}).')
  return results


def _digest(path: str, size: int) -> int:
  with open(path, 'rb', buffering=0) as file:
    content = file.read(_END_BYTES)
    if size > 4 * _END_BYTES and content.startswith(_COMPRESSED):
      file.seek(-_END_BYTES, os.SEEK_END)
    content += file.readall()
  digest = hashlib.blake2b(content, digest_size=8, salt=b'nfnets')
  digest.update(size.to_bytes(8, 'little'))
  return int.from_bytes(digest.digest(), 'little')


def _cache_path(root: str) -> pathlib.Path:
  name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:12]
  return cache.folder() / f'folder-{name}.npz'


def _load(path: pathlib.Path) -> dict[tuple[str, int, int], int]:
  """Returns {(path, size, mtime_ns): digest}; nothing if it is damaged."""
  try:
    with np.load(path) as arrays:
      joined = arrays['paths'].tobytes()
      columns = [arrays[k].tolist() for k in ('sizes', 'mtimes', 'digests')]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return {}
  paths = [os.fsdecode(part) for part in joined.split(b'\0')]
  if {len(column) for column in columns} != {len(paths)}:
    return {}
  sizes, mtimes, values = columns
  stamps = zip(paths, sizes, mtimes, strict=True)
  return dict(zip(stamps, values, strict=True))


def _save(
  path: pathlib.Path, stamps: list[tuple[str, int, int]], values: np.ndarray
) -> None:
  paths, sizes, mtimes = zip(*stamps, strict=True)
  joined = os.fsencode('\0'.join(paths))
  try:
    cache.save_arrays(
      path,
      paths=np.frombuffer(joined, np.uint8),
      sizes=np.array(sizes, np.int64),
      mtimes=np.array(mtimes, np.int64),
      digests=values,
    )
  except OSError as error:
    logging.warning(
      'The index of the pictures cannot be kept as %s (%s), and is made again '
      'in every run.',
      path,
      error.strerror,
    )
