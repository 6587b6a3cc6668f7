"""A cache that maps a key to a file: the ONNX graph of a network.

The key follows from the content of the file of weights, from what was asked
for, and from what makes a graph: the source of this package and the versions of
JAX and ONNX. Next to GRAPH.onnx there is GRAPH.onnx.data.
"""

from collections.abc import Callable
import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import stat
import tempfile
from typing import Any

from nfnets import paths

_MAX_BYTES = 8 * 2**30  # All graphs; F0 takes 0.29 GB, F6 1.8 GB.
_log = logging.getLogger(__name__)


def key(weights: str, **settings: Any) -> str:
  """Return the key of a graph.

  Args:
    weights: the SHA-256 of a file of weights.
    **settings: other settings of the graph; JSON values.
  """
  text = json.dumps([weights, settings, *_makers()], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _makers() -> tuple[str, dict[str, str]]:
  """Return a digest of the code that makes graphs, and versions of others'."""
  root = pathlib.Path(__file__).parents[1]
  digest = hashlib.sha256()
  for pattern in ('*.py', 'weights/*.py', 'inference/onnx_*.py'):
    for file in sorted(root.glob(pattern)):
      digest.update(file.read_bytes())
  names = filter(importlib.util.find_spec, ('jax', 'haiku', 'onnx'))
  distributions = {'haiku': 'dm-haiku'}
  return digest.hexdigest(), {
    name: importlib.metadata.version(distributions.get(name, name))
    for name in names
  }


def folder() -> pathlib.Path:
  """Return the folder of all graphs, which need not exist."""
  return paths.cache_folder('graphs')


def file(
  name: str, write: Callable[[str], None], again: bool = False
) -> pathlib.Path:
  """Return the file of a key, which is made if it is not there.

  Where it cannot be kept, it is for this process alone.

  Args:
    name: the key.
    write: writes a graph to the path that it is given, and its data next to it.
    again: whether to make it even if it is there.

  Raises:
    OSError: if there is no place for temporary files either.
  """
  path = folder() / f'{name}.onnx'
  try:
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_is_private(folder())
    if _data(path).exists() and path.exists() and not again:
      with contextlib.suppress(OSError):
        os.utime(path)  # When it was used.
      return path
    with tempfile.TemporaryDirectory(
      dir=folder(), prefix='.', ignore_cleanup_errors=True
    ) as temporary:
      made = pathlib.Path(temporary, path.name)
      write(str(made))
      # The data first: a graph without them would be none.
      os.replace(_data(made), _data(path))
      os.replace(made, path)
    _remove_oldest(path)
    return path
  except OSError as error:
    reason = error.strerror or error
    _log.warning('The graph is not kept: %s: %s.', folder(), reason)
  path = paths.process_folder() / path.name
  write(str(path))
  return path


def _data(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{path.name}.data')


def _remove_oldest(kept: pathlib.Path) -> None:
  """Remove what was not used for longest, until the rest is small enough."""
  total = 0
  with contextlib.suppress(FileNotFoundError):  # Another process removes them.
    for path in sorted(
      folder().glob('*.onnx'), key=lambda x: x.stat().st_mtime, reverse=True
    ):
      total += path.stat().st_size + _data(path).stat().st_size
      if total > _MAX_BYTES and path != kept:
        path.unlink()
        _data(path).unlink()


def _check_is_private(path: pathlib.Path) -> None:
  """Raise OSError where others could write what this process would run."""
  status = path.stat()
  writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
  if writable or (hasattr(os, 'geteuid') and status.st_uid != os.geteuid()):
    raise PermissionError(errno.EPERM, 'others may write there', str(path))
