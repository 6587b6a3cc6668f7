"""Files and folders: local, or in a bucket as gs://BUCKET/NAME.

The functions read, write, list and remove whole files. `path(name)` joins names
and serves libraries that accept etils paths. etils uses TensorFlow's client,
which reports a server that does not respond as a missing folder. So the other
functions use TensorStore's client.

Both clients retry with growing delays for about a minute. All functions raise
UserError for the same names as `path`.
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
# TensorStore's variable for the address of another server.
_SERVER = 'TENSORSTORE_GCS_HTTP_URL'
# The packages that read and write gs://.
_CLIENTS = ('etils', 'tensorflow', 'tensorstore')
# For both clients, in microseconds. TensorFlow reads them at import.
_RETRIES = {
  'GCS_RETRY_CONFIG_INIT_DELAY_TIME_US': '1000000',
  'GCS_RETRY_CONFIG_MAX_DELAY_TIME_US': '32000000',
  'GCS_RETRY_CONFIG_MAX_RETRIES': '6',
}
# For servers that do not accept connections or do not respond.
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
  """Expand ~ or a $VARIABLE at the start of a name."""
  text = os.fspath(name)
  first, slash, rest = text.partition('/')
  if first == '~' and not _has_home:
    raise UserError(f'{text}: {_NO_HOME}. Use an absolute path.', 2)
  if _VARIABLE.fullmatch(first):
    first = os.path.expandvars(first)
  return f'{os.path.expanduser(first)}{slash}{rest}'


def arguments(argv: Sequence[str] | None = None) -> list[str]:
  """Expand ~ and $VARIABLE in the arguments of a command.

  Shells do not expand ~ after --NAME= or in quotes. None: sys.argv.
  """
  return [
    _EXPANDED.sub(lambda found: (found[1] or '') + expand(found[2]), arg)
    for arg in (sys.argv[1:] if argv is None else argv)
  ]


def path(name: Name) -> Any:
  """Return the path of a file or a folder.

  Args:
    name: a local name, which is expanded, or gs://BUCKET/NAME.

  Returns:
    A `pathlib.Path`, or an `epath.Path` for a bucket. (Local paths do not need
    etils, which is part of the extra [train].)

  Raises:
    UserError: for other schemes, gs:// without a bucket, missing packages for
      gs://, and ~ without a home folder.
  """
  text = expand(name)
  scheme = _SCHEME.match(text)
  if scheme is None:
    return pathlib.Path(text)
  if scheme[1] != 'gs':
    raise UserError(
      f'{text}: {scheme[1]}:// is not known here. Use a local path or '
      'gs://BUCKET/NAME; other storage must be mounted.',
      2,
    )
  if not _BUCKET.match(text):
    raise UserError(
      f'{text} has no valid bucket. Use gs://BUCKET/NAME. A bucket has at '
      'least three characters: small letters, digits, -, _ and dots.',
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
  """Return the cache folder of one kind of files. It may not exist.

  It is the subfolder `kind` of XDG_CACHE_HOME/nfnets or ~/.cache/nfnets.
  NFNETS_CACHE sets the folder of 'weights'.
  """
  folder = os.environ.get('NFNETS_CACHE')
  if kind == 'weights' and folder:
    return path(folder)
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(os.path.expanduser(root), 'nfnets', kind)


@functools.cache
def process_folder() -> pathlib.Path:
  """Return a temporary folder that is removed at the end of the process."""
  folder = tempfile.mkdtemp(prefix='nfnets-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


_has_home = os.path.expanduser('~') != '~'
if not _has_home:
  # Some libraries would fail, and others would write to a folder named ~.
  os.environ['HOME'] = str(process_folder())
  logging.getLogger(__name__).warning(
    '%s. The cache will be removed at the end.', _NO_HOME
  )


def is_remote(name: Name) -> bool:
  """Return whether a file or a folder is in a bucket."""
  return expand(name).startswith('gs://')


def absolute(name: Name) -> Any:
  """Return the absolute path; names in a bucket are absolute."""
  found = path(name)
  return found if is_remote(name) else found.absolute()


def read_bytes(name: Name) -> bytes:
  """Read a file.

  Raises:
    FileNotFoundError: if it does not exist.
    OSError: if it cannot be read.
  """
  return read_version(name)[0] if is_remote(name) else path(name).read_bytes()


def read_version(name: Name, known: bytes = b'') -> tuple[bytes | None, bytes]:
  """Read a file in a bucket if it has changed.

  Args:
    name: the file.
    known: a version from an earlier call.

  Returns:
    The content, or None if the version is still `known`, and the version.

  Raises:
    OSError: as `read_bytes`.
  """
  found = _read(name, 'reading', if_not_equal=known)
  if found.state == 'missing':
    raise FileNotFoundError(errno.ENOENT, 'there is no such file', str(name))
  content = found.value if found.state == 'value' else None
  return content, found.stamp.generation


@contextlib.contextmanager
def writing(name: Name) -> Iterator[pathlib.Path]:
  """Yield a temporary local file; at the end of the context, move it to `name`.

  A rename, or one upload to a bucket, makes the write atomic. If the body
  raises, nothing changes.

  Args:
    name: the file, which may exist.

  Raises:
    OSError: if it cannot be written.
  """
  target = path(name)
  parent = None if is_remote(name) else target.parent
  if parent and not parent.is_dir():  # tempfile would name another file.
    reason = os.strerror(errno.ENOENT)
    raise FileNotFoundError(errno.ENOENT, reason, str(target))
  # In the same folder, because a rename cannot cross disks. Several processes
  # and hosts may write one file.
  with tempfile.TemporaryDirectory(
    dir=parent, prefix=f'.{target.name}.'
  ) as folder:
    temporary = pathlib.Path(folder, target.name)
    yield temporary
    put(temporary, name)


def put(file: Name, name: Name) -> None:
  """Rename a complete local file, or copy it to a bucket."""
  if is_remote(name):
    content = pathlib.Path(file).read_bytes()
    _wait(_open(name).write('', content), 'writing', name)
    return
  with open(file, 'rb+') as opened:
    os.fsync(opened.fileno())
  os.replace(file, path(name))


def write_bytes(name: Name, content: bytes) -> None:
  """Write a file atomically; see `writing`."""
  with writing(name) as temporary:
    temporary.write_bytes(content)


def save_arrays(name: Name, **arrays: np.ndarray) -> None:
  """Write an .npz atomically, and create its folder."""
  if not is_remote(name):
    path(name).parent.mkdir(parents=True, exist_ok=True)
  with writing(name) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **arrays)


def names(folder: Name) -> list[str]:
  """Return the relative names of all files below a folder.

  Raises:
    OSError: if a bucket is missing, forbidden or does not respond.
  """
  if is_remote(folder):
    found = _wait(_open(folder, is_folder=True).list(), 'listing', folder)
    if not found:
      _check_bucket(folder)
    # TensorFlow's client writes a folder as a file with a name ending in "/".
    files = map(bytes.decode, found)
    return sorted(x for x in files if x and not x.endswith('/'))
  root = path(folder)
  return sorted(
    str(file.relative_to(root)) for file in root.rglob('*') if file.is_file()
  )


def is_dir(name: Name) -> bool:
  """Return whether a folder exists. Raises as `names`."""
  return bool(names(name)) if is_remote(name) else path(name).is_dir()


def is_file(name: Name) -> bool:
  """Return whether a file exists. Raises as `names`."""
  if not is_remote(name):
    return path(name).is_file()
  found = _read(name, 'looking for', byte_range=slice(0, 0))
  return found.state == 'value'


def make_folder(folder: Name) -> None:
  """Create a folder if needed, and check that it is writable.

  Raises:
    OSError: if it is not writable, or the bucket does not exist.
  """
  made = path(folder)
  if is_remote(folder):
    write_bytes(made / '.may-be-written', b'')
    remove(made / '.may-be-written')
  else:
    made.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=made).close()


def remove(name: Name) -> None:
  """Remove a file or folder if it exists.

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
  """Open a file, which then has the key '', or a folder."""
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
  """Raise OSError if a bucket is forbidden or missing.

  TensorStore reports both as empty.
  """
  _wait(_open(path(name) / '.may-be-read').read(''), 'reading', name)
  # Without a login, an existing bucket gives 401.
  server = os.environ.get(_SERVER, 'https://storage.googleapis.com')
  bucket = _bucket(name).removeprefix('gs://')
  try:
    request.urlopen(f'{server}/storage/v1/b/{bucket}', timeout=20).close()
  except OSError as error:
    if getattr(error, 'code', None) == 404:
      raise _no_bucket(name) from error


def _wait(future: Any, doing: str, name: Name) -> Any:
  """Return the result of a TensorStore request; raise OSError if it fails."""
  try:
    with messages.log_waiting(f'{doing} {name}'):
      return future.result()
  except Exception as error:
    reason = messages.one_line(error)
    if reason.startswith('NOT_FOUND'):
      raise _no_bucket(name) from error
    if reason.startswith(('PERMISSION_DENIED', 'UNAUTHENTICATED')):
      reason = (
        f'{doing} is forbidden. Log in with access (gcloud auth '
        'application-default login), or set a key in '
        'GOOGLE_APPLICATION_CREDENTIALS'
      )
      raise PermissionError(errno.EACCES, reason, str(name)) from error
    raise OSError(errno.EIO, f'{doing} failed: {reason}', str(name)) from error


def _bucket(name: Name) -> str:
  return _BUCKET.match(str(path(name)))[0]


def _no_bucket(name: Name) -> FileNotFoundError:
  reason = f'there is no bucket {_bucket(name)}'
  return FileNotFoundError(errno.ENOENT, reason, str(name))
