"""Ranges of bytes of files on this machine."""

from collections.abc import Sequence
from concurrent import futures
import os
import resource
import threading

from nfnets.data.errors import DatasetError
from nfnets.data.file_ranges import Files, Range

_READ_THREADS = 16
_RANGES_PER_READ = 4


class LocalFiles(Files):
  """Reads ranges, and keeps files open."""

  scan_bytes = 0  # No more than is needed: a read costs microseconds.
  parallel_reads = 4

  def __init__(self):
    self._pool = futures.ThreadPoolExecutor(_READ_THREADS, 'records')
    self._descriptors = {}
    self._lock = threading.Lock()
    # Leave most descriptors to the rest of the program; the files beyond this
    # many are opened for every read.
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    self._max_descriptors = max(0, limit) // 4

  def sizes(self, names: Sequence[str]) -> list[int]:
    """Returns the sizes of files; raises DatasetError if one is not there."""
    return list(self._pool.map(_size, names))

  def read(self, ranges: Sequence[Range]) -> list[bytes]:
    """Returns the bytes of ranges, fewer where a file ends before.

    Raises:
      OSError: A file cannot be read.
    """
    chunks = [
      ranges[i : i + _RANGES_PER_READ]
      for i in range(0, len(ranges), _RANGES_PER_READ)
    ]

    def read_chunk(chunk: Sequence[Range]) -> list[bytes]:
      return [self.read_one(part) for part in chunk]

    parts = self._pool.map(read_chunk, chunks)
    return [content for part in parts for content in part]

  def read_one(self, part: Range) -> bytes:
    """Reads a range in this thread; see `read`."""
    path, start, size = part
    with self._lock:
      descriptor = self._descriptors.get(path)
      if descriptor is None and len(self._descriptors) < self._max_descriptors:
        descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY)
    if descriptor is not None:
      return os.pread(descriptor, size, start)
    descriptor = os.open(path, os.O_RDONLY)
    try:
      return os.pread(descriptor, size, start)
    finally:
      os.close(descriptor)

  def stop(self) -> None:
    """Does nothing: no call waits for long."""

  def close(self) -> None:
    """Closes the files. Reading after that is an error."""
    self._pool.shutdown(wait=True)
    with self._lock:
      while self._descriptors:
        os.close(self._descriptors.popitem()[1])

  def __del__(self):
    for descriptor in getattr(self, '_descriptors', {}).values():
      os.close(descriptor)


def _size(path: str) -> int:
  try:
    return os.stat(path).st_size
  except OSError as error:
    raise DatasetError(
      f'{path} cannot be read ({error}). Prepare the dataset again.'
    ) from error
