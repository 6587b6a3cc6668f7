"""Files in buckets, whole: read, written, listed and removed by TensorStore.

TensorFlow's client, which etils' paths use, takes a store that does not answer
for a folder that is not there; this one says which of them it is. `paths` calls
it for every name that begins with gs://.

Both clients try again, with growing pauses, for about a minute: see `_RETRIES`.
While there is no answer, the log says so.
"""

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
  bucket, key = _split(name)
  found = _wait(_open(bucket).read(key), name, 'reading')
  if found.state != 'value':
    _check(bucket)
    raise FileNotFoundError(f'{name}: there is no such file.')
  return found.value


def write(name: str, content: bytes) -> None:
  """Writes a file by one upload, in place of what is there; raises OSError."""
  bucket, key = _split(name)
  _wait(_open(bucket).write(key, content), name, 'writing')


def names(folder: str) -> list[str]:
  """Returns the names below a folder of all files in it, at any depth.

  Raises:
    FileNotFoundError: if there is no such bucket.
    PermissionError: if it must not be listed.
    OSError: if the store does not answer.
  """
  bucket, prefix = _split(folder)
  if prefix:
    prefix = f'{prefix.rstrip("/")}/'
  store = _open(bucket, prefix)
  found = _wait(store.list(), folder, 'listing')
  if not found:
    # Of a bucket that is forbidden or missing, TensorStore lists no files, too.
    _wait(store.read('any file'), folder, 'reading')
    _check(bucket)
  return sorted(key.decode() for key in found)


def remove(*files: str) -> None:
  """Removes files, in this order; those that are not there are passed over."""
  for name in files:
    bucket, key = _split(name)
    _wait(_open(bucket).write(key, None), name, 'removing')


def _split(name: str) -> tuple[str, str]:
  found = _PREFIX.match(name)
  return found[1], name[found.end() :]


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
    raise FileNotFoundError(f'There is no bucket gs://{bucket}.')


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
  text = ' '.join(str(error).split(' [tensorstore_spec')[0].split())[:300]
  if text.startswith('NOT_FOUND'):
    bucket = _PREFIX.match(name)[1]
    return FileNotFoundError(f'There is no bucket gs://{bucket}.')
  if text.startswith(('PERMISSION_DENIED', 'UNAUTHENTICATED')):
    return PermissionError(
      f'{name}: {doing} it is forbidden. Log in by `gcloud auth '
      'application-default login` as somebody who may, or name a key in '
      'GOOGLE_APPLICATION_CREDENTIALS.'
    )
  return OSError(f'{name}: {doing} it failed, the store says: {text}')
