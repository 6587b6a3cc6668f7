"""ONNX graphs of networks, kept in the user's cache.

An entry is a folder: `graph.onnx` with `graph.onnx.data`, as `onnx_graph` makes
them for `python -m nfnets.export`, and `entry.json`, which says what network it
is and has checksums. It appears whole or not at all. The folder's name follows
from the content of the file of weights, from what was asked for, and from what
makes a graph: the source of this package and the versions of JAX and ONNX.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
import stat
import tempfile
from typing import Any, NamedTuple

_FORMAT = 1  # Of an entry.
_MAX_BYTES = 8 * 2**30  # Of all entries; F0 takes 0.29 GB, F6 1.8 GB.
_GRAPH = 'graph.onnx'
_FILES = (_GRAPH, f'{_GRAPH}.data')
_ENTRY = 'entry.json'
_log = logging.getLogger(__name__)


class Graph(NamedTuple):
  """A graph in the cache.

  Attributes:
    path: of the ONNX file.
    facts: what `nfnets.inference.networks.Facts` has, as JSON values.
  """

  path: pathlib.Path
  facts: Mapping[str, Any]


def key(weights: str, **settings: Any) -> str:
  """Returns the name of an entry.

  Args:
    weights: the SHA-256 of a file of weights.
    **settings: what else decides on the graph; JSON values.
  """
  text = json.dumps(
    [_FORMAT, weights, settings, _source(), _versions()], sort_keys=True
  )
  return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _source() -> str:
  """Returns a digest of the code that networks and graphs are made by."""
  root = pathlib.Path(__file__).parents[2]
  files = [
    *root.glob('*.py'),
    *root.glob('weights/*.py'),
    *root.glob('inference/onnx_*.py'),
  ]
  digest = hashlib.sha256()
  for file in sorted(files):
    digest.update(file.read_bytes())
  return digest.hexdigest()


@functools.cache
def _versions() -> dict[str, str | None]:
  versions = {}
  for name in ('dm-haiku', 'jax', 'onnx'):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return versions


def folder() -> pathlib.Path:
  """Returns the folder of all entries, which need not exist."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(cache).expanduser() / 'nfnets' / 'graphs'


def is_empty() -> bool:
  """Returns whether there are no entries."""
  try:
    return not any(folder().iterdir())
  except OSError:
    return True


def find(name: str) -> Graph | None:
  """Returns an entry; None if there is none, or it is not what was written."""
  path = folder() / name
  try:
    entry = json.loads((path / _ENTRY).read_bytes())
    if entry['key'] != name or not _is_private(path):
      return None
    for file in _FILES:
      with open(path / file, 'rb') as opened:
        actual = hashlib.file_digest(opened, 'sha256').hexdigest()
      if actual != entry['sha256'][file]:
        _log.warning('%s is damaged, and made again.', path / file)
        return None
    with contextlib.suppress(OSError):
      os.utime(path)  # When it was used.
    return Graph(path / _GRAPH, entry['facts'])
  except (OSError, ValueError, KeyError, TypeError):
    return None


def make(
  name: str, write: Callable[[str], None], facts: Mapping[str, Any]
) -> Graph:
  """Makes an entry.

  Where it cannot be kept, it is for this process alone.

  Args:
    name: of `key`.
    write: writes the two files of a graph, the first at the path that it is
      given.
    facts: JSON values, for `find`.

  Raises:
    OSError: if there is no place for temporary files either.
  """
  try:
    return _make_in(folder(), name, write, facts)
  except OSError as error:
    reason = error.strerror or error
    _log.warning('The graph is not kept: %s: %s.', folder(), reason)
  place = tempfile.TemporaryDirectory(prefix='nfnets-')
  _temporary.append(place)
  return _make_in(pathlib.Path(place.name), name, write, facts)


# Removed when the process ends.
_temporary: list[tempfile.TemporaryDirectory] = []


def _make_in(
  place: pathlib.Path,
  name: str,
  write: Callable[[str], None],
  facts: Mapping[str, Any],
) -> Graph:
  place.mkdir(parents=True, exist_ok=True, mode=0o700)
  with _unfinished(place) as made:
    write(str(made / _GRAPH))
    digests = {}
    for file in _FILES:
      with open(made / file, 'rb') as opened:
        digests[file] = hashlib.file_digest(opened, 'sha256').hexdigest()
    entry = {'key': name, 'facts': facts, 'sha256': digests}
    (made / _ENTRY).write_text(json.dumps(entry))
    target = place / name
    try:
      made.rename(target)
    except OSError:
      # Not what was written, or another process was quicker.
      shutil.rmtree(target, ignore_errors=True)
      made.rename(target)
  _remove_oldest(place, target)
  return Graph(target / _GRAPH, facts)


@contextlib.contextmanager
def _unfinished(place: pathlib.Path) -> Iterator[pathlib.Path]:
  made = pathlib.Path(tempfile.mkdtemp(dir=place, prefix='.'))
  try:
    yield made
  finally:
    shutil.rmtree(made, ignore_errors=True)


def _remove_oldest(place: pathlib.Path, kept: pathlib.Path) -> None:
  """Removes what was not used for longest, until the rest is small enough."""
  sizes = {}
  for path in place.iterdir():
    with contextlib.suppress(OSError):
      size = sum(file.stat().st_size for file in path.iterdir())
      sizes[path] = path.stat().st_mtime, size
  total = sum(size for _, size in sizes.values())
  for path in sorted(sizes, key=lambda path: sizes[path]):
    if total <= _MAX_BYTES:
      break
    if path != kept:
      shutil.rmtree(path, ignore_errors=True)
      total -= sizes[path][1]


def _is_private(path: pathlib.Path) -> bool:
  """Returns whether nobody else may have written what is in a folder."""
  status = path.lstat()
  writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
  is_own = not hasattr(os, 'geteuid') or status.st_uid == os.geteuid()
  return is_own and stat.S_ISDIR(status.st_mode) and not writable
