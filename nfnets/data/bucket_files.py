"""Ranges of bytes of objects in a bucket.

A request takes 20 to 50 ms wherever it goes, so what decides the speed is how
many are under way at once. TensorStore's client sends them from threads of its
own; memory is bounded by what callers ask for at once.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import math
import re
import threading
import time

from absl import logging
import tensorflow as tf
import tensorstore

from nfnets import paths
from nfnets.data.errors import DatasetError
from nfnets.data.file_ranges import Files, Range

# Requests at once, of all calls together.
_REQUESTS = 128
_STAT_THREADS = 32
# When a request that has not been answered is sent again, in seconds.
_ANSWER_SECONDS = 60
# How long the store may fail before that is an error, in seconds.
_PATIENCE_SECONDS = 600
_DELAYS = 0.5, 30.0  # Between attempts, in seconds: the first and the longest.
_SAY_SECONDS = 60  # Between two lines in the log while it fails.

# Errors that do not pass. All others do: 408, 429, 5xx, lost connections.
_FORBIDDEN = ('PERMISSION_DENIED', 'UNAUTHENTICATED')
_FINAL = (*_FORBIDDEN, 'NOT_FOUND', 'INVALID_ARGUMENT', 'FAILED_PRECONDITION')

_Start = Callable[[], tensorstore.Future]


class BucketFiles(Files):
  """Reads ranges of objects, many at once, and outlasts a failing store."""

  scan_bytes = 2**23
  parallel_reads = 16

  def __init__(self):
    # What passes within a second is not worth a line in the log.
    retries = {'max_retries': 3, 'initial_delay': '100ms', 'max_delay': '1s'}
    self._context = tensorstore.Context(
      {
        'gcs_request_concurrency': {'limit': _REQUESTS},
        'gcs_request_retries': retries,
      }
    )
    self._buckets: dict[str, tensorstore.KvStore] = {}
    self._lock = threading.Lock()
    self._stopped = threading.Event()
    self._failing_since: float | None = None
    self._said = -math.inf

  def sizes(self, names: Sequence[str]) -> list[int]:
    """Returns the sizes of files; raises DatasetError if one is not there."""

    def size(name: str) -> int:
      try:
        return paths.path(name).stat().length
      except (OSError, tf.errors.OpError) as error:
        raise DatasetError(
          f'{name} cannot be read ({_reason(error)}). Check that it is there, '
          'and who may read the bucket.'
        ) from error

    with futures.ThreadPoolExecutor(_STAT_THREADS) as pool:
      return list(pool.map(size, names))

  def read(self, ranges: Sequence[Range]) -> list[bytes]:
    """Returns the bytes of ranges, none where a file ends before.

    Raises:
      DatasetError: A file is missing or forbidden, or the store has failed for
        minutes.
    """

    def starter(part: Range) -> _Start:
      span = slice(part.start, part.start + part.size)
      bucket, key = self._split(part.path)
      return lambda: bucket.read(key, byte_range=span)

    starts = [starter(part) for part in ranges]
    results = self._results(starts, [part.path for part in ranges])
    for part, result in zip(ranges, results, strict=True):
      if result is not None and result.state == 'missing':
        raise DatasetError(
          f'{part.path} is not there. Prepare the dataset again, or copy it '
          'to the bucket again.'
        )
    return [b'' if result is None else result.value for result in results]

  def read_one(self, part: Range) -> bytes:
    """Reads a range; see `read`."""
    return self.read([part])[0]

  def stop(self) -> None:
    """Makes calls that wait for the store end with an error, now and later."""
    self._stopped.set()

  def close(self) -> None:
    """Ends all calls. Reading after that is an error."""
    self.stop()

  def _split(self, name: str) -> tuple[tensorstore.KvStore, str]:
    """Returns the bucket of a file and its name there."""
    bucket, _, key = name.removeprefix('gs://').partition('/')
    with self._lock:
      if bucket not in self._buckets:
        self._buckets[bucket] = tensorstore.KvStore.open(
          {'driver': 'gcs', 'bucket': bucket}, context=self._context
        ).result()
      return self._buckets[bucket], key

  def _results(self, starts: list[_Start], names: list[str]) -> list:
    """Returns what requests result in; None is a range beyond the end.

    Those that fail are sent again, together and ever later.
    """
    results = [None] * len(starts)
    missing = list(range(len(starts)))
    delay, progress = _DELAYS[0], time.monotonic()
    while missing:
      waiting = [(i, starts[i]()) for i in missing]
      failed, reason = [], ''
      for i, future in waiting:
        try:
          results[i] = self._wait(future)
        except DatasetError:
          raise
        except (ValueError, TimeoutError) as error:
          if str(error).startswith('OUT_OF_RANGE'):
            continue
          reason = _reason(error)
          if str(error).startswith(_FINAL):
            raise DatasetError(_refused(names[i], reason)) from error
          failed.append(i)
      now = time.monotonic()
      if len(failed) < len(missing):
        delay, progress = _DELAYS[0], now
        self._note_success(now)
      missing = failed
      if not missing:
        break
      self._note_failure(now, names[missing[0]], reason)
      if now - progress > _PATIENCE_SECONDS:
        raise DatasetError(
          f'{names[missing[0]]} cannot be read: the store has failed for '
          f'{now - progress:.0f} s ({reason}).'
        )
      self._stopped.wait(delay)
      delay = min(2 * delay, _DELAYS[1])
    return results

  def _wait(self, future: tensorstore.Future) -> object:
    """Returns the result of a request; raises TimeoutError after a minute."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
      if self._stopped.is_set():
        future.cancel()
        raise DatasetError('Reading has been stopped.')
      try:
        return future.result(timeout=1)
      except TimeoutError:
        if time.monotonic() > deadline:
          future.cancel()
          raise TimeoutError(f'no answer for {_ANSWER_SECONDS} s') from None

  def _note_failure(self, now: float, name: str, reason: str) -> None:
    with self._lock:
      self._failing_since = self._failing_since or now
      if now - self._said < _SAY_SECONDS:
        return
      self._said = now
    logging.warning(
      'The store fails (%s), at %s. It is asked again, for up to %.0f minutes.',
      reason,
      name,
      _PATIENCE_SECONDS / 60,
    )

  def _note_success(self, now: float) -> None:
    if self._failing_since is None:
      return
    with self._lock:
      since, self._failing_since = self._failing_since, None
    if since is not None:
      logging.info('The store answers again, after %.0f s.', now - since)


def _reason(error: Exception) -> str:
  """Returns what a request failed with, on one short line."""
  text = ' '.join(str(error).split())
  text = re.sub(r'^ABORTED: All \d+ retry attempts failed: ', '', text)
  status = re.search(r"http_response_code='(\d+)'", text)
  text = text.split(' [')[0][:200]
  return f'status {status[1]}: {text}' if status else text


def _refused(name: str, reason: str) -> str:
  return (
    f'{name} cannot be read ({reason}). Check the name, who may read the '
    'bucket, and who you are: gcloud auth application-default login.'
  )
