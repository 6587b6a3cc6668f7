"""Ranges of bytes of files, on this machine or in a bucket.

Files here are read by pread: TensorStore's `file` driver takes twice its CPU
time (100 and 54 us for 94 kB). A request to a bucket takes 20 to 50 ms wherever
it goes, so what decides the speed there is how many are under way at once.
TensorStore's client sends them from threads of its own, and again where they
fail.
"""

from collections.abc import Sequence
from concurrent import futures
import functools
import io
import os
import re
import resource
import threading
import time
from typing import Any, NamedTuple

from absl import logging
import tensorflow as tf

from nfnets import messages
from nfnets.errors import UserError

_THREADS = 16
_STAT_THREADS = 32
_RANGES_PER_TASK = 4
# Requests to buckets at once, of all calls together.
_REQUESTS = 128
# With growing pauses, for about ten minutes.
_RETRIES = {'max_retries': 28, 'initial_delay': '100ms', 'max_delay': '30s'}
# When to log that a store does not answer, in seconds: first, and then again.
_PATIENCE_SECONDS, _LOG_SECONDS = 5, 60


class Range(NamedTuple):
  """Bytes [start, start + size) of a file; all that follow without a size."""

  path: str
  start: int = 0
  size: int | None = None


def sizes(names: Sequence[str]) -> list[int]:
  """Return the sizes of files; raise UserError if one is not there."""

  def size(name: str) -> int:
    try:
      return tf.io.gfile.stat(name).length
    except tf.errors.OpError as error:
      raise UserError(
        f'{name} cannot be read ({messages.one_line(error)}). Check who may '
        'read it, or prepare the dataset again.'
      ) from error

  with futures.ThreadPoolExecutor(_STAT_THREADS) as pool:
    return list(pool.map(size, names))


class _File(io.FileIO):
  __del__ = io.FileIO.close  # Silently, when the last thread has done with it.


class LocalFiles:
  """Reads ranges of local files, from any thread, and keeps files open.

  Attributes:
    scan_bytes: How much to read at once on the way through a file; 0 is no more
      than is needed.
    parallel_reads: Useful number of concurrent calls of `read`.
  """

  scan_bytes = 0  # A read costs microseconds.
  parallel_reads = 4

  def __init__(self):
    self._pool = futures.ThreadPoolExecutor(_THREADS, 'records')
    # Leaves most descriptors to the rest of the program.
    most = max(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) // 4
    self._open = functools.lru_cache(most)(_File)

  def read(self, ranges: Sequence[Range]) -> list[bytes]:
    """Return the bytes of ranges, fewer or none where a file ends before.

    Raises:
      UserError: A file cannot be read.
    """
    if len(ranges) == 1:
      return [self._read_one(ranges[0])]
    step = _RANGES_PER_TASK
    tasks = [ranges[i : i + step] for i in range(0, len(ranges), step)]
    parts = self._pool.map(lambda task: [*map(self._read_one, task)], tasks)
    return [content for part in parts for content in part]

  def _read_one(self, part: Range) -> bytes:
    try:
      if part.size is None:  # Once per epoch, so it is not kept open.
        with open(part.path, 'rb', buffering=0) as file:
          return file.read()
      file = self._open(part.path)
      return os.pread(file.fileno(), part.size, part.start)
    except OSError as error:
      raise UserError(
        f'{part.path} cannot be read ({error.strerror}), but was there before.'
      ) from error

  def stop(self) -> None:
    pass  # No read waits for long.

  def close(self) -> None:
    """Close the files. Reading after that is an error."""
    self._pool.shutdown(wait=True)
    self._open.cache_clear()


class BucketFiles:
  """Reads ranges of objects, many at once; see `LocalFiles`."""

  scan_bytes = 2**23
  parallel_reads = 16

  def __init__(self):
    # Takes half a second, which only buckets are worth.
    import tensorstore

    context = tensorstore.Context(
      {
        'gcs_request_concurrency': {'limit': _REQUESTS},
        'gcs_request_retries': _RETRIES,
      }
    )
    self._bucket = functools.cache(
      lambda name: tensorstore.KvStore.open(
        {'driver': 'gcs', 'bucket': name}, context=context
      ).result()
    )
    self._stopped = threading.Event()
    # Reading after that is an error.
    self.stop = self.close = self._stopped.set

  def read(self, ranges: Sequence[Range]) -> list[bytes]:
    """Return the bytes of ranges, fewer or none where a file ends before.

    Raises:
      UserError: A file is missing or forbidden, the store has failed for
        minutes, or `stop` was called.
    """
    pending = []
    for path, start, size in ranges:
      bucket, _, key = path.removeprefix('gs://').partition('/')
      end = None if size is None else start + size
      future = self._bucket(bucket).read(key, byte_range=slice(start, end))
      pending.append((path, future))
    return [self._wait(path, future) for path, future in pending]

  def _wait(self, path: str, future: Any) -> bytes:
    begun = time.monotonic()
    while not self._stopped.is_set():
      try:
        result = future.result(timeout=1)
      except TimeoutError:
        if time.monotonic() - begun > _PATIENCE_SECONDS:
          logging.log_every_n_seconds(
            logging.WARNING,
            'The store does not answer: still reading %s.',
            _LOG_SECONDS,
            path,
          )
      except ValueError as error:
        if str(error).startswith('OUT_OF_RANGE'):
          return b''
        text = messages.one_line(error)
        text = re.sub(r'^ABORTED: All \d+ retry attempts failed: ', '', text)
        if status := re.search(r"http_response_code='(\d+)'", str(error)):
          text = f'status {status[1]}: {text}'
        raise UserError(
          f'{path} cannot be read ({text}). Check the name, who may read the '
          'bucket, and who you are: gcloud auth application-default login.'
        ) from error
      else:
        if result.state == 'missing':
          raise UserError(
            f'{path} is not there. Prepare the dataset again, or copy it to '
            'the bucket again.'
          )
        return result.value
    future.cancel()
    raise UserError('Reading has been stopped.')
