"""Files and folders: on this machine, or in a bucket as gs://BUCKET/NAME.

Whole files are read, written, listed and removed by the functions here.
`path(name)` is for joining names, and for libraries that take paths of etils.
TensorFlow's client, which these use, reports a store that does not answer as a
folder that does not exist. So the functions here use TensorStore's client.

Both clients try again, with growing pauses, for about a minute. All functions
raise UserError where `path` does.
"""

import atexit
from collections.abc import Iterator, Sequence
import contextlib
import errno
import functools
import importlib.util
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any
from urllib import request

import numpy as np

from nfnets import messages
from nfnets.errors import UserError

Name = str | os.PathLike[str]

# A single letter is a disk of Windows.
_SCHEME = re.compile('([A-Za-z][A-Za-z0-9+.-]+):/')
_EXPANDED = re.compile(r'\A(--[^=]+=)?([~$].*)', re.DOTALL)
_VARIABLE = re.compile(r'\$(\w+|\{\w+\})')
_BUCKET = re.compile('gs://[a-z0-9][a-z0-9._-]+[a-z0-9](?=/|$)')
_NO_HOME = 'HOME is not set, and this user has no home folder'
# Where TensorStore finds the store, if it is not Google's.
_SERVER = 'TENSORSTORE_GCS_HTTP_URL'
# The packages that read and write gs://.
_CLIENTS = ('etils', 'tensorflow', 'tensorstore')
# For both clients, in microseconds; TensorFlow reads them when it is imported.
_RETRIES = {
  'GCS_RETRY_CONFIG_INIT_DELAY_TIME_US': '1000000',
  'GCS_RETRY_CONFIG_MAX_DELAY_TIME_US': '32000000',
  'GCS_RETRY_CONFIG_MAX_RETRIES': '6',
}
# For a store that takes no connection, or never answers.
_TIMEOUTS = {
  'TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS': '20',
  'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '30',
  'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES': '1',
  'GCS_REQUEST_CONNECTION_TIMEOUT_SECS': '20',
  'GCS_REQUEST_IDLE_TIMEOUT_SECS': '30',
}

for _key, _value in {**_RETRIES, **_TIMEOUTS}.items():
  os.environ.setdefault(_key, _value)


def expand(name: Name) -> str:
  """Returns a name with its first part, if ~ or a $VARIABLE, expanded."""
  text = os.fspath(name)
  first, slash, rest = text.partition('/')
  if first == '~' and not _has_home:
    raise UserError(f'{text}: {_NO_HOME}; name the folder in full.', 2)
  if _VARIABLE.fullmatch(first):
    first = os.path.expandvars(first)
  return f'{os.path.expanduser(first)}{slash}{rest}'


def arguments(argv: Sequence[str] | None = None) -> list[str]:
  """Returns a command's arguments, with their values expanded as names are.

  Shells leave ~ as it is after --NAME= and in quotes. None: this process's.
  """
  return [
    _EXPANDED.sub(lambda found: (found[1] or '') + expand(found[2]), arg)
    for arg in (sys.argv[1:] if argv is None else argv)
  ]


def path(name: Name) -> Any:
  """Returns the path of a file or a folder.

  Args:
    name: a local name, which `expand` expands, or gs://BUCKET/NAME.

  Returns:
    A `pathlib.Path`, or an `epath.Path` of etils for a name in a bucket. (etils
    comes with the extra [train], so local paths do without it.)

  Raises:
    UserError: for any other scheme, gs:// without a bucket, where a package
      that gs:// needs is not installed, and for ~ without a home folder.
  """
  text = expand(name)
  scheme = _SCHEME.match(text)
  if scheme is None:
    return pathlib.Path(text)
  if scheme[1] != 'gs':
    raise UserError(
      f'{text}: {scheme[1]}:// is not known here. Local folders and '
      'gs://BUCKET/NAME are; what is anywhere else must be mounted first.',
      2,
    )
  if not _BUCKET.match(text):
    raise UserError(
      f'{text} names no bucket; what is in one is named gs://BUCKET/NAME, with '
      'a bucket of at least three small letters, digits, -, _ and dots.',
      2,
    )
  missing = [x for x in _CLIENTS if importlib.util.find_spec(x) is None]
  if missing:
    raise UserError(
      f'{text}: gs:// needs packages that are not installed: '
      f'{", ".join(missing)}; pip install ".[train]" in the folder of this '
      'project.',
      2,
    )
  from etils import epath

  return epath.Path(text)


def cache_folder(kind: str = '') -> pathlib.Path:
  """Returns the folder of one kind of cached files, which need not exist.

  NFNETS_CACHE for 'weights', if it is set. Else the subfolder `kind` of
  XDG_CACHE_HOME/nfnets or ~/.cache/nfnets.
  """
  folder = os.environ.get('NFNETS_CACHE')
  if kind == 'weights' and folder:
    return path(folder)
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(os.path.expanduser(root), 'nfnets', kind)


@functools.cache
def process_folder() -> pathlib.Path:
  """Returns a folder that is removed when the process ends."""
  folder = tempfile.mkdtemp(prefix='nfnets-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


_has_home = os.path.expanduser('~') != '~'
if not _has_home:
  # Some libraries would fail, and others write to a folder named ~.
  os.environ['HOME'] = str(process_folder())
  logging.getLogger(__name__).warning(
    '%s; what is cached is lost in the end.', _NO_HOME
  )


def is_remote(name: Name) -> bool:
  """Returns whether a file or a folder is in a bucket."""
  return expand(name).startswith('gs://')


def absolute(name: Name) -> Any:
  """Returns `path(name)` from the root. A name in a bucket stays as it is."""
  found = path(name)
  return found if is_remote(name) else found.absolute()


def read_bytes(name: Name) -> bytes:
  """Returns the content of a file.

  Raises:
    FileNotFoundError: if it does not exist.
    OSError: if it cannot be read.
  """
  return read_version(name)[0] if is_remote(name) else path(name).read_bytes()


def read_version(name: Name, known: bytes = b'') -> tuple[bytes | None, bytes]:
  """Reads a file in a bucket, if it has changed.

  Args:
    name: the file.
    known: a version that this function returned before.

  Returns:
    The content, or None if the file still has the version `known`; and the
    version.

  Raises:
    OSError: as `read_bytes` does.
  """
  found = _read(name, 'reading', if_not_equal=known)
  if found.state == 'missing':
    raise FileNotFoundError(errno.ENOENT, 'there is no such file', str(name))
  content = found.value if found.state == 'value' else None
  return content, found.stamp.generation


@contextlib.contextmanager
def writing(name: Name) -> Iterator[pathlib.Path]:
  """Yields a local file to write, which then gets the name in one step.

  So a file is written whole or not at all: by renaming it or, in a bucket, by
  one upload. If the body raises, nothing changes.

  Args:
    name: the file; an existing one is replaced.

  Raises:
    OSError: if it cannot be written.
  """
  target = path(name)
  parent = None if is_remote(name) else target.parent
  if parent and not parent.is_dir():  # The message names the given file.
    reason = os.strerror(errno.ENOENT)
    raise FileNotFoundError(errno.ENOENT, reason, str(target))
  # In the same folder, because renaming works inside one disk only. Several
  # processes, on several hosts, may write one file.
  with tempfile.TemporaryDirectory(
    dir=parent, prefix=f'.{target.name}.'
  ) as folder:
    temporary = pathlib.Path(folder, target.name)
    yield temporary
    put(temporary, name)


def put(file: Name, name: Name) -> None:
  """Renames a complete local file on its disk, or copies it into a bucket."""
  if is_remote(name):
    content = pathlib.Path(file).read_bytes()
    _wait(_open(name).write('', content), 'writing', name)
    return
  with open(file, 'rb+') as opened:
    os.fsync(opened.fileno())
  os.replace(file, path(name))


def write_bytes(name: Name, content: bytes) -> None:
  """Writes a file whole or not at all; see `writing`."""
  with writing(name) as temporary:
    temporary.write_bytes(content)


def save_arrays(name: Name, **arrays: np.ndarray) -> None:
  """Writes an .npz whole or not at all, and makes its folder."""
  if not is_remote(name):
    path(name).parent.mkdir(parents=True, exist_ok=True)
  with writing(name) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **arrays)


def names(folder: Name) -> list[str]:
  """Returns the names below a folder of the files in it, at any depth.

  Raises:
    OSError: if a bucket is missing or forbidden, or does not answer.
  """
  if is_remote(folder):
    found = _wait(_open(folder, is_folder=True).list(), 'listing', folder)
    if not found:
      _check_bucket(folder)
    # TensorFlow's client makes folders as files whose names end with a slash.
    files = map(bytes.decode, found)
    return sorted(x for x in files if x and not x.endswith('/'))
  root = path(folder)
  return sorted(
    str(file.relative_to(root)) for file in root.rglob('*') if file.is_file()
  )


def is_dir(name: Name) -> bool:
  """Returns whether a folder exists; raises as `names` does."""
  return bool(names(name)) if is_remote(name) else path(name).is_dir()


def is_file(name: Name) -> bool:
  """Returns whether a file exists; raises as `names` does."""
  if not is_remote(name):
    return path(name).is_file()
  found = _read(name, 'looking for', byte_range=slice(0, 0))
  return found.state == 'value'


def make_folder(folder: Name) -> None:
  """Makes a folder, unless it exists, and checks that it can be written.

  Raises:
    OSError: if it cannot, or if there is no such bucket.
  """
  made = path(folder)
  if is_remote(folder):
    write_bytes(made / '.may-be-written', b'')
    remove(made / '.may-be-written')
  else:
    made.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=made).close()


def remove(name: Name) -> None:
  """Removes a file, or a folder with everything in it, if it exists.

  Raises:
    OSError: if it cannot be removed.
  """
  found = path(name)
  if is_remote(name):
    _wait(_open(name).write('', None), 'removing', name)
    inside = _open(name, is_folder=True)
    _wait(inside.delete_range(inside.KeyRange()), 'removing', name)
  elif found.is_dir():
    shutil.rmtree(found)
  else:
    found.unlink(missing_ok=True)


@functools.cache
def _context() -> Any:
  import tensorstore

  delay, longest, number = (os.environ[name] for name in _RETRIES)
  delays = {'initial_delay': f'{delay}us', 'max_delay': f'{longest}us'}
  retries = {**delays, 'max_retries': int(number)}
  return tensorstore.Context({'gcs_request_retries': retries})


def _open(name: Name, is_folder: bool = False) -> Any:
  """Returns the store of a file, whose name there is '', or of a folder."""
  import tensorstore

  bucket, _, key = str(path(name)).removeprefix('gs://').partition('/')
  key = f'{key}/' if key and is_folder else key
  spec = {'driver': 'gcs', 'bucket': bucket, 'path': key}
  return tensorstore.KvStore.open(spec, context=_context()).result()


def _read(name: Name, doing: str, **options: Any) -> Any:
  found = _wait(_open(name).read('', **options), doing, name)
  if found.state == 'missing':
    _check_bucket(name)
  return found


def _check_bucket(name: Name) -> None:
  """Raises OSError if a bucket is forbidden or missing.

  For TensorStore, neither has any files.
  """
  _wait(_open(path(name) / '.may-be-read').read(''), 'reading', name)
  # Whoever is not logged in gets 401 for a bucket that exists.
  server = os.environ.get(_SERVER, 'https://storage.googleapis.com')
  bucket = _bucket(name).removeprefix('gs://')
  try:
    request.urlopen(f'{server}/storage/v1/b/{bucket}', timeout=20).close()
  except OSError as error:
    if getattr(error, 'code', None) == 404:
      raise _no_bucket(name) from error


def _wait(future: Any, doing: str, name: Name) -> Any:
  """Returns the result of a request of TensorStore's; raises OSError."""
  try:
    with messages.log_waiting(f'{doing} {name}'):
      return future.result()
  except Exception as error:
    reason = messages.one_line(error)
    if reason.startswith('NOT_FOUND'):
      raise _no_bucket(name) from error
    if reason.startswith(('PERMISSION_DENIED', 'UNAUTHENTICATED')):
      reason = (
        f'{doing} is forbidden. Log in as somebody who may (gcloud auth '
        'application-default login), or name a key in '
        'GOOGLE_APPLICATION_CREDENTIALS'
      )
      raise PermissionError(errno.EACCES, reason, str(name)) from error
    raise OSError(errno.EIO, f'{doing} failed: {reason}', str(name)) from error


def _bucket(name: Name) -> str:
  return _BUCKET.match(str(path(name)))[0]


def _no_bucket(name: Name) -> FileNotFoundError:
  reason = f'there is no bucket {_bucket(name)}'
  return FileNotFoundError(errno.ENOENT, reason, str(name))
