"""A JAXline checkpointer that writes files with Orbax.

A run has two series, `latest` and `best`. A series is a folder with one folder
per step. Checkpoints are atomic: on a disk Orbax renames the folder at the end,
and in a bucket it writes `_COMMITTED` last.

Orbax's CheckpointManager is not suitable for buckets: it needs
google-cloud-storage to list steps, and treats a server that does not respond as
an empty bucket.
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
import types
from typing import Any
import zlib

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import jaxline_compat
from nfnets import errors, messages, paths
from nfnets.errors import UserError

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 15.0
# How long training waits for the previous checkpoint.
_PATIENCE_SECONDS = 60.0
_SHOWN_DIFFERENCES = 5
_COMMITTED = 'commit_success.txt'
# TensorStore's and TensorFlow's messages about servers that do not respond, or
# respond with an error other than 404 (missing) and 416 (range).
_STORE_FAILED = re.compile(
  'curl|retry attempts failed|(response.code=?)[ \'"]*(?!404|416)[45]',
  re.IGNORECASE,
)


def latest_step(folder: paths.Name) -> int | None:
  """Return the last step of a series, or None."""
  with errors.prefix(f'Could not look for checkpoints in {folder}'):
    return max(_steps(folder), default=None)


def _steps(folder: paths.Name) -> list[int]:
  if not paths.is_remote(folder):
    return ocp.utils.checkpoint_steps(folder) if os.path.isdir(folder) else []
  found = (name.split('/') for name in paths.names(folder))
  return [int(x[0]) for x in found if x[0].isdigit() and x[1:] == [_COMMITTED]]


def write(folder: Any, step: int, tree: Any, keep: int) -> None:
  """Write a step unless it exists, and keep the last `keep` steps."""
  is_remote = paths.is_remote(folder)
  if not is_remote:
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(x.nbytes for x in jax.tree.leaves(tree))
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < needed:  # Orbax would leave a partial step.
      raise UserError(
        f'The disk of {folder} is full: a checkpoint takes '
        f'{needed / 2**20:.1f} MiB, and {disk.free / 2**20:.1f} MiB are free.'
      )
  done = _steps(folder)
  if step in done:
    return  # The end of training coincides with a periodic save.
  with messages.log_waiting(f'writing {folder / str(step)}'):
    found = paths.names(folder) if is_remote else os.listdir(folder)
    # Orbax fails if a bucket has an empty folder of this step.
    started = {name.partition('/')[0] for name in found} | {str(step)}
    for name in started - {*map(str, done)}:
      if name.partition('.')[0].isdigit():  # Left by a killed run.
        paths.remove(folder / name)
    with _checkpointer() as checkpointer:
      checkpointer.save(
        folder / str(step),
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(tree),
          checksums=ocp.args.JsonSave(_checksums(tree)),
        ),
      )
    for old in sorted([*done, step])[:-keep]:
      # Remove the mark first: a partial folder must not count as a checkpoint.
      paths.remove(folder / str(old) / _COMMITTED)
      paths.remove(folder / str(old))


def _checkpointer() -> ocp.Checkpointer:
  """Return a checkpointer that does not synchronize with other processes."""
  index = jax.process_index()
  only_this = ocp.options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index},
    barrier_sync_key_prefix=f'process_{index}',
  )
  options = {'multiprocessing_options': only_this}
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(**options),
    state=ocp.PyTreeCheckpointHandler(**options),
    checksums=ocp.JsonCheckpointHandler(**options),
  )
  return ocp.Checkpointer(handler, **options)


def best(folder: paths.Name) -> tuple[float, int] | None:
  """Return the best value of the metric and its step, or None."""
  series, key = paths.absolute(folder) / 'best', 'best_eval_metric_value'
  step = latest_step(series)
  if step is None:
    return None
  tree = read(series / str(step), lambda full: {key: full[key]})
  return float(tree[key]), step


def read(
  path: paths.Name, choose: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
  """Read and check the checkpoint of one step.

  Args:
    path: absolute path of its folder.
    choose: a function from the stored tree of shapes and dtypes (dicts and
      lists) to the part to read, with the containers of the result.
  """
  # Orbax prints a traceback for each array that it cannot read.
  with (
    messages.log_waiting(f'reading {path}'),
    contextlib.redirect_stderr(io.StringIO()),
    _checkpointer() as checkpointer,
  ):
    try:
      metadata = checkpointer.metadata(path).item_metadata['state'].tree
      full = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), dict(metadata)
      )
      chosen = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), choose(full))
      restored = checkpointer.restore(
        path,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(chosen, partial_restore=True),
          checksums=ocp.args.JsonRestore(),
        ),
      )
      tree, expected = restored['state'], restored['checksums']
      for name, checksum in _checksums(tree).items():
        if expected.get(name) != checksum:
          raise ValueError(f'{name} has changed since writing')
    except UserError:  # From `choose`.
      raise
    except Exception as error:
      reason = messages.one_line(error)
      if paths.is_remote(path):
        with errors.prefix(f'Could not read {path}'):
          if _STORE_FAILED.search(str(error)):
            raise OSError(reason) from error
          paths.names(path)
      raise UserError(
        f'The checkpoint {path} is damaged: {reason}\n'
        'Delete that folder to continue from the previous checkpoint, if there '
        'is one.'
      ) from error
  return tree


def _named_leaves(tree: Any) -> dict[str, Any]:
  """Return {name: leaf}, with the same names for lists and tuples."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _checksums(tree: Any) -> dict[str, int]:
  """Return the CRC-32 of each array; Orbax does not detect flipped bits."""
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    leaves = _named_leaves(tree)
    sums = pool.map(
      lambda x: zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8)),
      leaves.values(),
    )
    return dict(zip(leaves, sums, strict=True))


def _check_same(path: paths.Name, found: Any, wanted: Any) -> None:
  """Raise UserError if shapes or dtypes of a checkpoint differ."""
  found, wanted = (
    {k: f'{v.dtype}{list(v.shape)}' for k, v in _named_leaves(tree).items()}
    for tree in (found, wanted)
  )
  lines = [
    f'  {name}: {found.get(name, "nothing")} in the checkpoint, '
    f'{wanted.get(name, "nothing")} in this experiment'
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if lines:
    if hidden := len(lines[_SHOWN_DIFFERENCES:]):
      lines[_SHOWN_DIFFERENCES:] = [f'  and {hidden} more']
    raise UserError(
      f'The checkpoint {path} is of another model or optimizer:\n'
      + '\n'.join(lines)
      + '\nContinue it with the config that wrote it, or choose a new folder '
      'with --checkpoint_dir.'
    )


class OrbaxCheckpointer:
  """A `jaxline.utils.Checkpointer` that writes files."""

  def __init__(
    self,
    config: Any,
    mode: str,
    check_training: Callable[[], None] | None = None,
    on_best: Callable[[types.SimpleNamespace], None] | None = None,
  ):
    """Open the folder `config.checkpoint_dir`; training creates it.

    Args:
      config: JAXline's config.
      mode: JAXline's mode: 'train' or an evaluation mode.
      check_training: called while waiting for a checkpoint. It raises if
        training has ended. None if training runs in another program.
      on_best: called with the state when a new best state is saved.
    """
    self._root = paths.absolute(config.checkpoint_dir)
    self._is_training = mode == 'train'
    self._config = config
    self._check_training = check_training
    self._on_best = on_best
    self._states: dict[str, types.SimpleNamespace] = {}
    # The writer's thread, and the error of the last checkpoint.
    self._writer = threading.Thread()
    self._failure: UserError | None = None
    self._last_path: str | None = None
    if self._is_training and not jax.process_index():
      with errors.prefix(f'Could not write a checkpoint to {self._root}'):
        paths.make_folder(self._root / 'latest')

  def check_folder(self) -> None:
    """Raise UserError if the folder does not exist."""
    with errors.prefix(f'Could not look for checkpoints in {self._root}'):
      if not paths.is_dir(self._root):
        raise _no_checkpoint(self._root)

  def get_experiment_state(self, ckpt_series: str) -> types.SimpleNamespace:
    return self._states.setdefault(ckpt_series, types.SimpleNamespace())

  def save(self, ckpt_series: str) -> None:
    """Copy the state to the host and start to write it.

    If that fails, or the previous checkpoint is not finished, training
    continues, and `wait_for_checkpointing_to_finish` tries again.
    """
    state, self._series = self.get_experiment_state(ckpt_series), ckpt_series
    if self._is_written(_PATIENCE_SECONDS):
      self._start_writing()
    else:
      where = f'Step {int(state.global_step)} is not written to {self._root}'
      reason = f'/{ckpt_series}: the previous checkpoint is not finished.'
      self._note_failure(UserError(where + reason))
    if not self._is_training:
      self.wait_for_checkpointing_to_finish()
    if self._on_best is not None and ckpt_series == 'best':
      self._on_best(state)

  def can_be_restored(self, ckpt_series: str) -> bool:
    return latest_step(self._root / ckpt_series) is not None

  def restore(self, ckpt_series: str) -> None:
    """Read the last checkpoint into the state and its experiment."""
    state = self.get_experiment_state(ckpt_series)
    folder = self._root / ckpt_series
    step = latest_step(folder)
    wanted = state.experiment_module.abstract_snapshot()

    def choose(full):
      _check_same(folder / str(step), full['experiment_module'], wanted)
      return {**full, 'experiment_module': wanted}

    tree = read(folder / str(step), choose)
    state.experiment_module.restore_from_snapshot(tree.pop('experiment_module'))
    for name, value in tree.items():
      if name == 'train_step_rng' and self._is_training:
        value = jaxline_compat.bcast_local_devices(value)
      setattr(state, name, value.item() if value.ndim == 0 else value)
    doing = 'Continuing from' if self._is_training else 'Evaluating'
    logging.info('%s step %d of %s', doing, step, folder)

  def restore_path(self, ckpt_series: str) -> str | None:
    """Return the path of the last checkpoint.

    Evaluation waits up to `eval_wait_minutes` for a new one.
    """
    folder = self._root / ckpt_series
    step = latest_step(folder) if self._is_training else self._wait(folder)
    if step is not None:
      self._last_path = str(folder / str(step))
    return self._last_path

  def wait_for_checkpointing_to_finish(self) -> None:
    """Wait for the writer; training retries for `save_retry_minutes`."""
    minutes = self._config.save_retry_minutes
    deadline = time.monotonic() + 60 * minutes
    while self._is_written() and self._failure is not None:
      if not self._is_training or time.monotonic() > deadline:
        raise self._failure
      logging.info('Retrying for %g minutes to write the last one.', minutes)
      time.sleep(_RETRY_SECONDS)
      self._start_writing()

  def close(self) -> None:
    """Wait for the writer for a minute."""
    self._is_written(_PATIENCE_SECONDS)

  def _start_writing(self) -> None:
    """Copy the state to NumPy arrays, and start the writer."""
    state = self.get_experiment_state(self._series)
    folder, step = self._root / self._series, int(state.global_step)
    tree = {}
    for name, value in vars(state).items():
      if name == 'experiment_module':
        value = value.snapshot_state()
      elif isinstance(value, jax.Array):  # The keys of the devices.
        value = jaxline_compat.get_first(value)
      if value is not None and not isinstance(value, str):
        tree[name] = jax.tree.map(np.asarray, value)

    def write_it():
      try:
        write(folder, step, tree, self._config.max_checkpoints_to_keep)
      except Exception as error:  # Including TensorFlow's own classes.
        if not isinstance(error, UserError):
          where = f'Could not write a checkpoint to {folder}'
          error = UserError(f'{where}: {messages.one_line(error)}')
        self._note_failure(error)

    self._failure = None
    self._writer = threading.Thread(target=write_it, daemon=True)
    self._writer.start()

  def _is_written(self, seconds: float | None = None) -> bool:
    if self._writer.ident is not None:
      self._writer.join(seconds)
    return not self._writer.is_alive()

  def _note_failure(self, error: UserError) -> None:
    self._failure = error
    if self._is_training:
      logging.error('%s\nNothing is lost. It will be tried again.', error)

  def _wait(self, folder: Any) -> int:
    """Wait for a step that differs from `_last_path`."""
    minutes, start = self._config.eval_wait_minutes, time.time()
    is_logged = False
    new = '' if self._last_path is None else 'new '
    missing = f'No {new}checkpoint in {folder}'
    while True:
      step = None
      try:
        step = latest_step(folder)
      except UserError as error:
        if self._config.one_off_evaluate:
          raise
        logging.warning('%s. Trying again.', error)
      if step is not None and str(folder / str(step)) != self._last_path:
        return step
      if self._check_training is not None:
        self._check_training()
      elif self._config.one_off_evaluate:
        raise _no_checkpoint(folder)
      if time.time() - start > 60 * minutes:
        advice = '--eval_wait_minutes sets how long evaluation waits.'
        raise UserError(
          f'{missing} for {minutes:g} minutes. Is training running? {advice}'
        )
      if not is_logged:
        since = time.strftime('waiting since %H:%M:%S')
        logging.info(
          '%s yet; %s, for %g minutes at most.', missing, since, minutes
        )
        is_logged = True
      time.sleep(_POLL_SECONDS)


def _no_checkpoint(folder: paths.Name) -> UserError:
  return UserError(
    f'No checkpoint in {folder}. Train first, with the same command and '
    '--jaxline_mode=train, or name another folder with --checkpoint_dir.'
  )
