"""What is kept from one run to the next, in the user's cache."""

import os
import pathlib
import tempfile

import numpy as np


def folder() -> pathlib.Path:
  """Returns the folder of the cache, which need not exist."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(cache).expanduser() / 'nfnets'


def save_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes an .npz in one step, however many processes do so at once.

  Raises:
    OSError: It cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix='.tmp')
  try:
    with os.fdopen(descriptor, 'wb') as file:
      np.savez(file, **arrays)
    os.chmod(temporary, 0o644)  # Others read the dataset too.
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
