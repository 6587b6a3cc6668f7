"""Checkpoints as files: writing, listing, reading, checking, removing them.

A series is a folder with a folder for each step, which appears whole or not at
all: on a disk because that gets its name at the end, and in a bucket, where
nothing can be renamed, because a step without the file that Orbax writes last,
`_COMMITTED`, is none.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import io
import os
import re
import shutil
import threading
import time
from typing import Any, NamedTuple
import zlib

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from nfnets import buckets, paths

_SHOWN_DIFFERENCES = 5
_SAID_SECONDS = 30.0
_COMMITTED = 'commit_success.txt'
_TEMPORARY = '.orbax-checkpoint-tmp'
# How TensorStore and TensorFlow speak of a store that does not answer, or
# answers with an error other than that there is no such file.
_STORE_FAILED = re.compile(
  'curl|retry attempts failed|(response.code=?)[ \'"]*(?!404)[45]',
  re.IGNORECASE,
)


class CheckpointError(RuntimeError):
  """A checkpoint cannot be used, written or waited for any longer."""


def latest_step(folder: paths.Name) -> int | None:
  """Returns the last step that a series has; None without any.

  Raises:
    CheckpointError: if its bucket cannot be listed.
  """
  try:
    return max(_steps(folder), default=None)
  except OSError as error:
    raise CheckpointError(
      f'Could not look for checkpoints in {folder}: {first_line(error)}'
    ) from error


def _steps(folder: paths.Name) -> list[int]:
  """Returns the steps that a series has, in order."""
  if not paths.is_remote(folder):
    if not os.path.isdir(folder):
      return []
    return sorted(ocp.utils.checkpoint_steps(folder))
  found = (name.split('/') for name in buckets.names(str(folder)))
  return sorted(
    int(step)
    for step, *rest in found
    if step.isdigit() and rest == [_COMMITTED]
  )


def write(folder: paths.Name, step: int, tree: Any, keep: int) -> None:
  """Writes the checkpoint of one step, unless there is one.

  Args:
    folder: the series.
    step: its number.
    tree: of NumPy arrays.
    keep: how many steps are kept; those before are removed.

  Raises:
    Exception: of many kinds, if it cannot be written.
  """
  folder = paths.absolute(folder)
  done = _steps(folder)
  if step in done:
    return  # The end of training coincides with a periodic save.
  with _saying(f'writing {folder / str(step)}'):
    _remove_unfinished(folder, done)
    only_this = this_process_only()  # Or it would wait for the others.
    with ocp.Checkpointer(
      ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(
          multiprocessing_options=only_this
        ),
        state=ocp.StandardCheckpointHandler(multiprocessing_options=only_this),
        checksums=ocp.JsonCheckpointHandler(multiprocessing_options=only_this),
      ),
      multiprocessing_options=only_this,
    ) as checkpointer:
      checkpointer.save(
        folder / str(step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          checksums=ocp.args.JsonSave(checksums(tree)),
        ),
      )
    for old in sorted([*done, step])[:-keep]:
      _remove(folder / str(old))


def _remove_unfinished(folder: Any, done: list[int]) -> None:
  """Removes what a run that was killed left half written."""
  if paths.is_remote(folder):
    started = {name.partition('/')[0] for name in buckets.names(str(folder))}
    for name in started - {'', *map(str, done)}:
      _remove(folder / name)
  elif folder.is_dir():
    for entry in folder.iterdir():
      if _TEMPORARY in entry.name:
        shutil.rmtree(entry)


def _remove(folder: Any) -> None:
  """Removes a checkpoint, which may be half written."""
  # Orbax would need a package for this that nothing else does.
  if paths.is_remote(folder):
    # It must be no checkpoint any more when something of it is missing.
    buckets.remove(str(folder), [_COMMITTED])
    buckets.remove(str(folder), buckets.names(str(folder)))
  else:
    shutil.rmtree(folder)


@contextlib.contextmanager
def _saying(doing: str):
  """Logs now and then that something is still being done."""
  done = threading.Event()
  start = time.monotonic()

  def say():
    while not done.wait(_SAID_SECONDS):
      logging.info('Still %s, for %.0f s.', doing, time.monotonic() - start)

  threading.Thread(target=say, daemon=True).start()
  try:
    yield
  finally:
    done.set()


class Best(NamedTuple):
  """The value of the metric that was best, and the step."""

  value: float
  step: int


def best(folder: paths.Name) -> Best | None:
  """Returns what a run's best checkpoint is; None without one.

  Raises:
    CheckpointError: if it is damaged, or cannot be read.
  """
  folder = paths.absolute(folder)
  step = latest_step(folder / 'best')
  if step is None:
    return None
  key = 'best_eval_metric_value'
  tree = read(folder / 'best' / str(step), lambda full: {key: full[key]})
  return Best(float(tree[key]), step)


def read(
  path: paths.Name, choose: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
  """Reads and checks the checkpoint of one step.

  Args:
    path: its folder, from the root.
    choose: takes the tree of shapes and dtypes that there is, of dicts and
      lists, and returns the part of it to read, with the containers to have.

  Returns:
    The tree that `choose` returns, of NumPy arrays.

  Raises:
    CheckpointError: if it is damaged, or cannot be read.
  """
  # Reading in parallel, Orbax prints a traceback for every array.
  with (
    _saying(f'reading {path}'),
    contextlib.redirect_stderr(io.StringIO()),
    ocp.Checkpointer(
      ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(),
        checksums=ocp.JsonCheckpointHandler(),
      ),
      multiprocessing_options=this_process_only(),
    ) as checkpointer,
  ):
    try:
      metadata = checkpointer.metadata(path).item_metadata['state'].tree
      full = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), dict(metadata)
      )
    except Exception as error:
      raise _unreadable(path, error) from error
    chosen = choose(full)
    try:
      restored = checkpointer.restore(
        path,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            jax.tree.map(lambda x: np.empty(x.shape, x.dtype), chosen),
            partial_restore=True,
          ),
          checksums=ocp.args.JsonRestore(),
        ),
      )
    except Exception as error:
      raise _unreadable(path, error) from error
  tree, expected = restored['state'], restored['checksums']
  for name, checksum in checksums(tree).items():
    if expected.get(name) != checksum:
      raise _damaged(path, f'{name} has changed since it was written')
  return tree


def this_process_only() -> ocp.options.MultiprocessingOptions:
  """Has Orbax wait for no other process: each reads, and one writes."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index},
    barrier_sync_key_prefix=f'process_{index}',
  )


def _named_leaves(tree: Any) -> dict[str, Any]:
  """Returns {name: leaf}, with names that lists and tuples do not change."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    '.'.join(
      str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
      for k in path
    ): leaf
    for path, leaf in leaves
  }


def checksums(tree: Any) -> dict[str, int]:
  """Returns the CRC-32 of each array; Orbax would not notice a flipped bit."""
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    leaves = _named_leaves(tree)
    sums = pool.map(
      lambda x: zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8)),
      leaves.values(),
    )
    return dict(zip(leaves, sums, strict=True))


def check_same(path: paths.Name, found: Any, wanted: Any) -> None:
  """Checks that a checkpoint has the shapes and dtypes that are wanted.

  Raises:
    CheckpointError: with the first differences, if there are any.
  """

  def show(leaf):
    return f'{leaf.dtype}{list(leaf.shape)}'

  found = {k: show(v) for k, v in _named_leaves(found).items()}
  wanted = {k: show(v) for k, v in _named_leaves(wanted).items()}
  differences = [
    f'  {name}: {found.get(name, "nothing")} in the checkpoint, '
    f'{wanted.get(name, "nothing")} in this experiment'
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if differences:
    hidden = len(differences) - _SHOWN_DIFFERENCES
    more = f'\n  and {hidden} more' if hidden > 0 else ''
    raise CheckpointError(
      f'The checkpoint {path} is of another model or optimizer:\n'
      + '\n'.join(differences[:_SHOWN_DIFFERENCES])
      + more
      + '\nContinue it with the config that wrote it, or choose a new folder '
      'with --checkpoint_dir.'
    )


def _unreadable(path: paths.Name, error: Exception) -> CheckpointError:
  """Tells a damaged checkpoint from a store that does not answer."""
  if paths.is_remote(path):
    try:
      buckets.names(str(path))
    except OSError as reason:
      return CheckpointError(f'Could not read {path}: {first_line(reason)}')
    if _STORE_FAILED.search(str(error)):
      return CheckpointError(f'Could not read {path}: {first_line(error)}')
  return _damaged(path, error)


def _damaged(path: paths.Name, error: Any) -> CheckpointError:
  return CheckpointError(
    f'The checkpoint {path} is damaged: {first_line(error)}\nDelete that '
    'folder to go on from the checkpoint before it, if there is one.'
  )


def first_line(error: Any) -> str:
  """Returns the first line of a message, without TensorStore's long tail."""
  text = getattr(error, 'strerror', None) or str(error)
  lines = text.split(' [tensorstore_spec')[0].strip().splitlines()
  return lines[0][:300] if lines else type(error).__name__
