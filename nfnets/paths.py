"""Names of files and folders: on this machine, or in a bucket as gs://.

The one place that knows which names there are. What reads and writes whole
files does so by the functions here. `path(name)` is to be joined and named, and
for libraries that know etils' paths: of a bucket that does not answer, its own
methods say that nothing is there.
"""

from collections.abc import Iterator
import contextlib
import errno
import importlib.util
import os
import pathlib
import re
import tempfile
from typing import Any

from nfnets import buckets

Name = str | os.PathLike[str]

# A single letter is a disk of Windows.
_SCHEME = re.compile('([A-Za-z][A-Za-z0-9+.-]+):/')
_BUCKET = re.compile('gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/|$)')
# What reads and writes gs://.
_CLIENTS = ('etils', 'tensorflow', 'tensorstore')


class PathError(ValueError):
  """A name is of no place that can be read or written; it says what works."""


def path(name: Name) -> Any:
  """Returns a path whose methods read and write where a name says.

  Args:
    name: of a file or a folder here, with ~ for the user's own folder, or
      gs://BUCKET/NAME.

  Returns:
    A `pathlib.Path`, or an `epath.Path` of etils for what is in a bucket.

  Raises:
    PathError: for any other scheme, gs:// without a bucket, and where a package
      that gs:// needs is not installed.
  """
  text = os.fspath(name)
  scheme = _SCHEME.match(text)
  if scheme is None:
    return pathlib.Path(os.path.expanduser(text))
  if scheme[1] != 'gs':
    raise PathError(
      f'{text}: {scheme[1]}:// is not known here. Local folders and '
      'gs://BUCKET/NAME are; what is anywhere else must be mounted first.'
    )
  if not _BUCKET.match(text):
    raise PathError(
      f'{text} names no bucket; what is in one is named gs://BUCKET/NAME, with '
      'a bucket of at least three small letters, digits, -, _ and dots.'
    )
  missing = [x for x in _CLIENTS if importlib.util.find_spec(x) is None]
  if missing:
    raise PathError(
      f'{text}: gs:// needs packages that are not installed: '
      f'{", ".join(missing)}; pip install ".[train]" in the folder of this '
      'project.'
    )
  from etils import epath

  return epath.Path(text)


def is_remote(name: Name) -> bool:
  """Returns whether a name is that of something in a bucket."""
  return os.fspath(name).startswith('gs://')


def absolute(name: Name) -> Any:
  """Returns `path(name)`, from the root; what is in a bucket is so already."""
  found = path(name)
  return found if is_remote(name) else found.absolute()


def read_bytes(name: Name) -> bytes:
  """Returns the content of a file.

  Raises:
    FileNotFoundError: if it is not there.
    OSError: if it cannot be read.
    PathError: see `path`.
  """
  source = path(name)
  return buckets.read(str(source)) if is_remote(name) else source.read_bytes()


@contextlib.contextmanager
def writing(name: Name) -> Iterator[pathlib.Path]:
  """Yields the name of a local file to write, which then is put in its place.

  So that a file appears whole or not at all: by renaming it here, and in a
  bucket by one upload. Nothing changes if what is done with it raises.

  Args:
    name: of the file; what is there is replaced.

  Raises:
    OSError: if it cannot be written.
    PathError: see `path`.
  """
  target = path(name)
  if is_remote(name):
    with tempfile.TemporaryDirectory() as folder:
      temporary = pathlib.Path(folder, target.name)
      yield temporary
      put(temporary, name)
    return
  if not target.parent.is_dir():  # Said of the name that was given.
    raise FileNotFoundError(
      errno.ENOENT, os.strerror(errno.ENOENT), str(target)
    )
  # In the same folder, because renaming works inside one disk only.
  temporary = target.with_name(f'.{target.name}.{os.getpid()}')
  try:
    yield temporary
    with open(temporary, 'rb+') as file:
      os.fsync(file.fileno())
    put(temporary, name)
  finally:
    temporary.unlink(missing_ok=True)


def put(file: Name, name: Name) -> None:
  """Gives a local file another name on its disk, or copies it into a bucket."""
  if is_remote(name):
    buckets.write(str(path(name)), pathlib.Path(file).read_bytes())
  else:
    os.replace(file, path(name))


def write_bytes(name: Name, content: bytes) -> None:
  """Writes a file whole or not at all; see `writing`."""
  with writing(name) as temporary:
    temporary.write_bytes(content)


def names(folder: Name) -> list[str]:
  """Returns the names below a folder of the files in it, at any depth.

  Raises:
    OSError: if a bucket is missing or forbidden, or does not answer.
    PathError: see `path`.
  """
  root = path(folder)
  if is_remote(folder):
    return [x for x in buckets.names(str(root)) if x and not x.endswith('/')]
  return sorted(
    str(file.relative_to(root)) for file in root.rglob('*') if file.is_file()
  )


def is_dir(name: Name) -> bool:
  """Tells whether there is a folder; raises as `names` does."""
  if is_remote(name):
    return bool(names(name))
  return path(name).is_dir()


def is_file(name: Name) -> bool:
  """Tells whether there is a file; raises as `names` does."""
  found = path(name)
  return buckets.is_file(str(found)) if is_remote(name) else found.is_file()


def make_folder(folder: Name) -> None:
  """Makes a folder, if need be, and makes sure that one may write there.

  Raises:
    OSError: if not, or if there is no such bucket.
    PathError: see `path`.
  """
  made = path(folder)
  if is_remote(folder):
    probe = '.may-be-written'
    buckets.write(str(made / probe), b'')
    buckets.remove(str(made), [probe])
  else:
    made.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=made).close()
