"""Keeps compiled programs on disk, so that the next start is quicker."""

import os
import pathlib
import stat

from absl import logging
import filelock
import jax

# Little beside the environment, which takes 2.5 GB.
_MAX_BYTES = 4 * 2**30


def enable() -> None:
  """Turns on JAX's persistent cache, in a private folder of bounded size.

  It is in the user's cache folder. Where it cannot be used there is a warning
  and no cache: what is in it is run, so it must not be written to by anybody
  else. A folder that JAX_COMPILATION_CACHE_DIR names is taken as it is, and not
  bounded: other programs may share it, and JAX cannot bound what they wrote.
  """
  if jax.config.jax_compilation_cache_dir:
    return
  try:
    folder = _make_private_folder()
    _remove_unfinished(folder)
  except OSError as error:
    logging.warning('Compiled programs are not kept: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_compilation_cache_max_size', _MAX_BYTES)


def _make_private_folder() -> pathlib.Path:
  """Returns the folder; raises OSError if it is not the user's alone."""
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  folder = pathlib.Path(cache) / 'nfnets' / 'compiled'
  folder.parent.mkdir(parents=True, exist_ok=True)
  folder.mkdir(mode=0o700, exist_ok=True)
  status = folder.lstat()
  if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
    raise PermissionError(f'{folder} is not a folder of yours')
  folder.chmod(0o700)
  return folder


def _remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what a killed process left; JAX would write nothing any more.

  A program is written first, and then when it was used; JAX needs both of all.
  """
  with filelock.FileLock(folder / '.lockfile', timeout=10):
    for program in folder.glob('*-cache'):
      used = program.name.removesuffix('-cache') + '-atime'
      if not program.with_name(used).exists():
        program.unlink()
