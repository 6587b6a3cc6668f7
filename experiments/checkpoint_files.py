"""Reading and checking one checkpoint, as `checkpoints` writes them."""

from collections.abc import Callable
from concurrent import futures
import contextlib
import io
import os
import pathlib
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

_SHOWN_DIFFERENCES = 5


class CheckpointError(RuntimeError):
  """A checkpoint cannot be used, written or waited for any longer."""


def latest_step(folder: pathlib.Path) -> int | None:
  """Returns the last step that a series has; None without any."""
  if not folder.is_dir():
    return None
  return max(ocp.utils.checkpoint_steps(folder), default=None)


class Best(NamedTuple):
  """The value of the metric that was best, and the step."""

  value: float
  step: int


def best(folder: pathlib.Path) -> Best | None:
  """Returns what a run's best checkpoint is; None without one.

  Raises:
    CheckpointError: if it is damaged.
  """
  folder = folder.absolute()  # As Orbax wants it.
  step = latest_step(folder / 'best')
  if step is None:
    return None
  key = 'best_eval_metric_value'
  tree = read(folder / 'best' / str(step), lambda full: {key: full[key]})
  return Best(float(tree[key]), step)


def read(
  path: pathlib.Path, choose: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
  """Reads and checks the checkpoint of one step.

  Args:
    path: its folder.
    choose: takes the tree of shapes and dtypes that there is, of dicts and
      lists, and returns the part of it to read, with the containers to have.

  Returns:
    The tree that `choose` returns, of NumPy arrays.

  Raises:
    CheckpointError: if it is damaged.
  """
  # Reading in parallel, Orbax prints a traceback for every array.
  with (
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
      raise _damaged(path, error) from error
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
      raise _damaged(path, error) from error
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


def check_same(path: pathlib.Path, found: Any, wanted: Any) -> None:
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


def _damaged(path: pathlib.Path, error: Any) -> CheckpointError:
  return CheckpointError(
    f'The checkpoint {path} is damaged: {first_line(error)}\nDelete that '
    'folder to go on from the checkpoint before it, if there is one.'
  )


def first_line(error: Any) -> str:
  """Returns the first line of a message, without TensorStore's long tail."""
  lines = str(error).split(' [tensorstore_spec')[0].strip().splitlines()
  return lines[0][:300] if lines else type(error).__name__
