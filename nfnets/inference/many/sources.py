"""Which images a command is given: files, folders, patterns and lists.

All of them are enumerated while the network runs, in an order that depends on
nothing but the names: what is held at once is the names in one folder.
"""

from collections.abc import Callable, Iterator, Sequence
import fnmatch
import functools
import glob
import io
import os
import sys
from typing import IO, NamedTuple

import numpy as np

from nfnets import paths as paths_lib
from nfnets.inference import images

# The name of an image, or of a list, that comes from standard input.
STDIN = '-'
_CHUNK = 2**16  # Bytes of a list.

# What an image is read as, and its label if that is known.
Labelled = tuple[bytes | np.ndarray, int | None]


class Item(NamedTuple):
  """An image that is still to be read.

  Attributes:
    name: what results call it.
    read: returns it, as `Model.preprocess` takes it, and its label; raises
      ImageError. It is told whether to check what is encoded for damages; see
      `images.read_image`.
  """

  name: str
  read: Callable[[bool], Labelled]


class Source(NamedTuple):
  """Images, and what is known of them beforehand.

  Attributes:
    items: returns all of them, from the first on whenever it is called.
    count: returns how many there are, which takes a while; None if that is
      known at the end alone.
    class_names: of the labels; None if there are no labels.
  """

  items: Callable[[], Iterator[Item]]
  count: Callable[[], int] | None
  class_names: tuple[str, ...] | None = None


def of_paths(names: Sequence[str], lists: str | None = None) -> Source:
  """Returns the images that arguments of a command stand for.

  Args:
    names: as `find` takes them, or `STDIN` for an image that is read from
      there.
    lists: a file of paths, as `read_list` reads it, that come after these.
  """

  def all_names() -> Iterator[str]:
    for name in names:
      yield from [STDIN] if name == STDIN else find(name)
    if lists is not None:
      for name in read_list(lists):
        yield from _find(name, with_patterns=False)

  is_countable = lists is None or (
    not paths_lib.is_remote(lists) and os.path.isfile(paths_lib.path(lists))
  )
  if any(paths_lib.is_remote(name) for name in names):
    is_countable = False  # A bucket is not listed twice for that.
  return Source(
    lambda: map(_item, all_names()),
    (lambda: sum(1 for _ in all_names())) if is_countable else None,
  )


def find(*names: str) -> Iterator[str]:
  """Yields the images that paths stand for, while it looks for them.

  In a folder these are the files, sorted, at any depth, whose suffix is that of
  an image. Hidden files and folders and links to folders are left out. Of a
  pattern they are the same among what matches it, or is in a folder that does;
  and all files if the pattern ends in a suffix.

  Args:
    *names: files, which need not exist, folders, and patterns with *, ?, [...]
      and **; or files and folders as gs://.

  Yields:
    Paths that begin with those that were given. Folders that cannot be listed,
    and those without images, are among them, and so are patterns that nothing
    matches: `read_image` says what is wrong.

  Raises:
    OSError: if a bucket cannot be listed.
    PathError: for other schemes.
  """
  for name in names:
    yield from _find(name, with_patterns=True)


def read_list(name: str) -> Iterator[str]:
  """Yields the paths in a list, as they arrive.

  Args:
    name: a file with a path on every line, or after every path a NUL, as
      `find -print0` writes them; or `STDIN`.

  Raises:
    OSError: if it cannot be read.
  """
  if name == STDIN:
    # Not sys.stdin.buffer, which Python could not close while this waits.
    file = open(sys.stdin.fileno(), 'rb', buffering=0, closefd=False)
  elif paths_lib.is_remote(name):
    file = io.BytesIO(paths_lib.read_bytes(name))
  else:
    file = open(paths_lib.path(name), 'rb', buffering=0)
  with file:
    for entry in _entries(file):
      if entry:
        yield os.fsdecode(entry)


def check_list(name: str) -> None:
  """Raises OSError or PathError if a list cannot be read, before it is."""
  if name != STDIN and not paths_lib.is_remote(name):
    open(paths_lib.path(name), 'rb').close()


def _item(name: str) -> Item:
  if name == STDIN:
    return Item(name, _read_stdin)
  return Item(name, functools.partial(_read, name))


def _read(path: str, check: bool) -> Labelled:
  return images.read_image(path, check), None


def _read_stdin(check: bool) -> Labelled:
  return images.decode(io.BytesIO(sys.stdin.buffer.read()), check), None


def _entries(file: IO[bytes]) -> Iterator[bytes]:
  """Splits what is read at NULs if there is one in the beginning, or lines."""
  rest, end = b'', None
  while chunk := file.read(_CHUNK):
    if end is None:
      chunk = chunk.removeprefix(b'\xef\xbb\xbf')
      end = b'\0' if b'\0' in chunk else b'\n'
    *entries, rest = (rest + chunk).split(end)
    yield from (_stripped(entry, end) for entry in entries)
  yield _stripped(rest, end)


def _stripped(entry: bytes, end: bytes | None) -> bytes:
  return entry if end == b'\0' else entry.removesuffix(b'\r')


def _find(name: str, with_patterns: bool) -> Iterator[str]:
  if paths_lib.is_remote(name):
    found = iter(
      f'{name.rstrip("/")}/{below}'
      for below in paths_lib.names(name)
      if _is_shown(below)
    )
  else:
    paths_lib.path(name)  # Refuses other schemes.
    if os.path.isdir(name):
      found = _walk(os.path.join(name, ''), _Pattern([]))
    elif with_patterns and glob.has_magic(name) and not os.path.lexists(name):
      found = _matching(name)
    else:
      found = iter(())
  first = next(found, name)
  yield first
  yield from found


def _is_shown(name: str) -> bool:
  """Tells whether a file in a bucket is an image that is not hidden."""
  return images.is_image_name(name) and not any(
    part.startswith('.') for part in name.split('/')
  )


def _matching(pattern: str) -> Iterator[str]:
  parts = pattern.split(os.sep)
  plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
  folder = ''.join(part + os.sep for part in parts[:plain])
  if os.path.isdir(folder or os.curdir):
    yield from _walk(folder, _Pattern([x for x in parts[plain:] if x]))


class _Pattern:
  """A pattern, to be followed name by name from the folder where it begins.

  A state is the set of its parts that may come next; the number of parts
  stands for its end, and all names below what has matched match as well.
  """

  def __init__(self, parts: Sequence[str]):
    self._parts = parts
    # Between what is named, links are followed; never at any depth.
    self._follows_links = bool(parts) and '**' not in parts
    suffix = os.path.splitext(parts[-1])[1] if parts else ''
    self.any_kind = bool(suffix) and not glob.has_magic(suffix)
    self.start = self._skip([0])

  def after(self, state: frozenset[int], name: str) -> frozenset[int]:
    """Returns the state after one more name, empty if nothing can match."""
    hidden, found = name.startswith('.'), []
    for i in state:
      part = self._parts[i] if i < len(self._parts) else '**'
      if part == '**':
        found += [] if hidden else [i]
      elif fnmatch.fnmatch(name, part) and hidden <= part.startswith('.'):
        found.append(i + 1)
    return self._skip(found)

  def is_end(self, state: frozenset[int]) -> bool:
    return len(self._parts) in state

  def follows(self, state: frozenset[int]) -> bool:
    """Returns whether to look into a link to a folder."""
    return self._follows_links and not self.is_end(state)

  def _skip(self, state: Sequence[int]) -> frozenset[int]:
    """Adds what may come next as ** can stand for no name at all."""
    found = set(state)
    for i in state:
      while i < len(self._parts) and self._parts[i] == '**':
        i += 1
        found.add(i)
    return frozenset(found)


def _walk(
  folder: str, pattern: _Pattern, state: frozenset[int] | None = None
) -> Iterator[str]:
  """Yields the images in a folder, whose name ends in / or is empty."""
  state = pattern.start if state is None else state
  try:
    with os.scandir(folder or os.curdir) as entries:
      names = [*filter(None, (_name(x, pattern, state) for x in entries))]
  except OSError:
    yield folder.rstrip(os.sep)
    return
  # With the / of folders, this is the order of all the paths.
  names.sort(reverse=True)
  while names:
    name = names.pop()
    if name.endswith(os.sep):
      after = pattern.after(state, name[:-1])
      yield from _walk(folder + name, pattern, after)
    else:
      yield folder + name


def _name(
  entry: os.DirEntry, pattern: _Pattern, state: frozenset[int]
) -> str | None:
  """Returns the name in a folder, with / if it is one; None to leave it out."""
  after = pattern.after(state, entry.name)
  if not after:
    return None
  try:
    is_folder = entry.is_dir()
  except OSError:
    is_folder = False
  if is_folder:
    wanted = not entry.is_symlink() or pattern.follows(after)
    return entry.name + os.sep if wanted else None
  wanted = pattern.any_kind or images.is_image_name(entry.name)
  return entry.name if wanted and pattern.is_end(after) else None
