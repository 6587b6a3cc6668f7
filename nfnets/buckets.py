"""Files in buckets, whole: read, written, listed and removed by TensorStore.

TensorFlow's client, which etils' paths use, takes a store that does not answer
for a folder that is not there; this one says which of them it is. `paths` calls
it for every name that begins with gs://.

Both clients try again, with growing pauses, for about a minute: see `_RETRIES`.
While there is no answer, the log says so.
"""

from collections.abc import Iterable
import contextlib
import errno
import functools
import logging
import os
import re
import time
from typing import Any

_PREFIX = re.compile('gs://([^/]+)/*')
# For TensorFlow's client, which reads these when it is imported, and for ours;
# in microseconds. TensorFlow alone would try for more than three minutes.
_RETRIES = {
  'GCS_RETRY_CONFIG_INIT_DELAY_TIME_US': '1000000',
  'GCS_RETRY_CONFIG_MAX_DELAY_TIME_US': '32000000',
  'GCS_RETRY_CONFIG_MAX_RETRIES': '6',
}
# For a store that takes connections, or does not, and never says a word.
_TIMEOUTS = {
  'TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS': '20',
  'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '30',
  'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES': '1',
  'GCS_REQUEST_CONNECTION_TIMEOUT_SECS': '20',
  'GCS_REQUEST_IDLE_TIMEOUT_SECS': '30',
}
_PATIENCE_SECONDS = 20.0

for _key, _value in {**_RETRIES, **_TIMEOUTS}.items():
  os.environ.setdefault(_key, _value)


def read(name: str) -> bytes:
  """Returns the content of a file.

  Raises:
    FileNotFoundError: if it is not there.
    PermissionError: if it must not be read.
    OSError: if the store does not answer.
  """
  return read_version(name)[0]


def read_version(name: str, known: bytes = b'') -> tuple[bytes | None, bytes]:
  """Returns the content of a file and its version, for the next time.

  Args:
    name: of the file.
    known: the version that one has; of this, the content returned is None.

  Raises:
    OSError: as `read` does.
  """
  bucket, key = _split(name)
  reading = _open(bucket).read(key, if_not_equal=known)
  found = _wait(reading, name, 'reading')
  if found.state == 'missing':
    _check(bucket)
    raise FileNotFoundError(errno.ENOENT, 'there is no such file', name)
  content = found.value if found.state == 'value' else None
  return content, found.stamp.generation


def write(name: str, content: bytes) -> None:
  """Writes a file by one upload, in place of what is there; raises OSError."""
  bucket, key = _split(name)
  _wait(_open(bucket).write(key, content), name, 'writing')


def names(folder: str) -> list[str]:
  """Returns the names below a folder of all files in it, at any depth.

  Among them may be '' and others that end with a slash, by which TensorFlow
  makes folders.

  Raises:
    FileNotFoundError: if there is no such bucket.
    PermissionError: if it must not be listed.
    OSError: if the store does not answer.
  """
  bucket, prefix = _split(folder)
  store = _open(bucket, _as_prefix(prefix))
  found = _wait(store.list(), folder, 'listing')
  if not found:
    _check_readable(folder)
  return sorted(key.decode() for key in found)


def is_file(name: str) -> bool:
  """Tells whether there is a file; raises as `names` does."""
  bucket, key = _split(name)
  found = _wait(_open(bucket, key).list(), name, 'looking for')
  if not found:
    _check_readable(name)
  return b'' in found


def remove(folder: str, files: Iterable[str]) -> None:
  """Removes files of a folder, as `names` names them; raises OSError."""
  bucket, prefix = _split(folder)
  store = _open(bucket, _as_prefix(prefix))
  futures = [(f'{folder}/{name}', store.write(name, None)) for name in files]
  for name, future in futures:
    _wait(future, name, 'removing')


def _split(name: str) -> tuple[str, str]:
  found = _PREFIX.match(name)
  return found[1], name[found.end() :]


def _as_prefix(key: str) -> str:
  return f'{key.rstrip("/")}/' if key else ''


def _check_readable(name: str) -> None:
  """Raises OSError if a bucket is forbidden, or is not there.

  For want of which TensorStore would list no files, and no error.
  """
  with contextlib.suppress(FileNotFoundError):
    read(f'{name.rstrip("/")}/.may-be-read')
  _check(_split(name)[0])


@functools.cache
def _check(bucket: str) -> None:
  """Raises FileNotFoundError if a bucket is known to be missing."""
  from etils import epath

  import nfnets.data  # noqa: F401 (TensorFlow, without its announcements)

  try:
    is_there = epath.Path(f'gs://{bucket}').exists()
  except Exception:
    return  # Who may read files need not be allowed to ask this.
  if not is_there:
    raise _no_bucket(f'gs://{bucket}')


@functools.cache
def _context() -> Any:
  import tensorstore

  delay, longest, number = (int(os.environ[name]) for name in _RETRIES)
  retries = {
    'max_retries': number,
    'initial_delay': f'{delay}us',
    'max_delay': f'{longest}us',
  }
  return tensorstore.Context({'gcs_request_retries': retries})


def _open(bucket: str, prefix: str = '') -> Any:
  import tensorstore

  spec = {'driver': 'gcs', 'bucket': bucket, 'path': prefix}
  return tensorstore.KvStore.open(spec, context=_context()).result()


def _wait(future: Any, name: str, doing: str) -> Any:
  """Returns what a request gave; logs for how long there is no answer."""
  start = time.monotonic()
  while not future.done():
    try:
      future.result(timeout=_PATIENCE_SECONDS)
    except TimeoutError:
      if future.done():
        break
      logging.getLogger(__name__).warning(
        'Still %s %s, for %.0f s.', doing, name, time.monotonic() - start
      )
    except Exception:
      break
  try:
    return future.result()
  except Exception as error:
    raise _explain(name, doing, error) from error


def _explain(name: str, doing: str, error: Exception) -> OSError:
  """Returns the OSError that an error of TensorStore's is."""
  text = ' '.join(str(error).split(' [tensorstore_spec')[0].split())
  if text.startswith('NOT_FOUND'):
    return _no_bucket(name)
  if text.startswith(('PERMISSION_DENIED', 'UNAUTHENTICATED')):
    text = (
      f'{doing} is forbidden. Log in as somebody who may (gcloud auth '
      'application-default login), or name a key in '
      'GOOGLE_APPLICATION_CREDENTIALS'
    )
    return PermissionError(errno.EACCES, text, name)
  return OSError(errno.EIO, f'{doing} failed: {text[:300]}', name)


def _no_bucket(name: str) -> FileNotFoundError:
  text = f'there is no bucket gs://{_split(name)[0]}'
  return FileNotFoundError(errno.ENOENT, text, name)
