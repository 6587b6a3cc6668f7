"""Names of files and folders: on this machine, or in a bucket as gs://.

The one place that knows which names there are. What reads or writes files takes
`path(name)`, whose methods are those of pathlib wherever the file is; where a
library wants a local file, `local_copy` reads and `writing` writes through one.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

Name = str | os.PathLike[str]

# A single letter is a disk of Windows.
_SCHEME = re.compile('([A-Za-z][A-Za-z0-9+.-]+):/')
_BUCKET = re.compile('gs://[^/]+')
# What the client of gs:// is made of.
_CLIENT = ('etils', 'tensorflow')


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
      f'{text} names no bucket; what is in one is named gs://BUCKET/NAME.'
    )
  missing = [x for x in _CLIENT if importlib.util.find_spec(x) is None]
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


@contextlib.contextmanager
def told(name: Name) -> Iterator[None]:
  """Raises what TensorFlow says of a bucket as the OSError that it is.

  Args:
    name: what is read or written, for the message.

  Raises:
    FileNotFoundError: if it, or its bucket, is not there.
    PermissionError: if it is forbidden.
    OSError: if the store does not answer.
  """
  try:
    yield
  except Exception as error:
    tf = sys.modules.get('tensorflow')  # No error is of its kinds without it.
    if tf is None or not isinstance(error, tf.errors.OpError):
      raise
    match error:
      case tf.errors.NotFoundError():
        kind = FileNotFoundError
      case tf.errors.PermissionDeniedError() | tf.errors.UnauthenticatedError():
        kind = PermissionError
      case _:
        kind = OSError
    text = ' '.join(error.message.split())[:300]
    raise kind(f'{os.fspath(name)}: {text}') from error


@contextlib.contextmanager
def local_copy(name: Name) -> Iterator[pathlib.Path]:
  """Yields a file on this machine with the content of a file.

  Args:
    name: of the file; one that is here is yielded itself.

  Raises:
    OSError: if it cannot be read.
    PathError: see `path`.
  """
  source = path(name)
  if not is_remote(name):
    yield source
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder, source.name)
    with told(name):
      source.copy(copy)
    yield copy


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
      with told(name):
        type(target)(temporary).copy(target, overwrite=True)
    return
  # In the same folder, because renaming works inside one disk only.
  temporary = target.with_name(f'.{target.name}.{os.getpid()}')
  try:
    yield temporary
    with open(temporary, 'rb+') as file:
      os.fsync(file.fileno())
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)


def write_bytes(name: Name, content: bytes) -> None:
  """Writes a file in full or not at all; see `writing`."""
  with writing(name) as temporary:
    temporary.write_bytes(content)
