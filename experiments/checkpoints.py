"""JAXline checkpoints on disk, by Orbax.

A folder holds two series, `latest` and `best`, each with a folder per step.
A step appears whole or not at all. The copy to the host is made when `save` is
called and written in the background, so training may go on at once.
"""

from collections.abc import Callable
import contextlib
import pathlib
import shutil
import tempfile
import time
import types
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from experiments import checkpoint_files, jaxline_compat
from experiments.checkpoint_files import CheckpointError

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 15.0


class OrbaxCheckpointer:
  """A `jaxline.utils.Checkpointer` that keeps its checkpoints on disk.

  In the modes that only evaluate, `restore_path` waits for a checkpoint that it
  has not named yet, for `config.eval_wait_minutes` at most.
  """

  def __init__(
    self,
    config: Any,
    mode: str,
    check_training: Callable[[], None] | None = None,
    on_best: Callable[[types.SimpleNamespace], None] | None = None,
  ):
    """Opens the folder `config.checkpoint_dir`, or makes it in training.

    Args:
      config: JAXline's, with `checkpoint_dir`, `max_checkpoints_to_keep`,
        `one_off_evaluate`, `eval_wait_minutes` and `save_retry_minutes`.
      mode: JAXline's mode: 'train', or one that evaluates.
      check_training: is called while waiting for a checkpoint, and raises if
        none will come, because training has ended. None if training happens
        in another program.
      on_best: is called with the state when the best one so far is saved.

    Raises:
      CheckpointError: if training could not write there.
    """
    self._root = pathlib.Path(config.checkpoint_dir).absolute()
    self._is_training = mode == 'train'
    self._keep = config.max_checkpoints_to_keep
    self._one_off = config.one_off_evaluate
    self._wait_minutes = config.eval_wait_minutes
    self._check_training = check_training
    self._on_best = on_best
    self._states: dict[str, types.SimpleNamespace] = {}
    self._managers: dict[str, ocp.CheckpointManager] = {}
    self._last_path: str | None = None
    self._retry_minutes = config.save_retry_minutes
    # Why the last checkpoint of a series is not on the disk.
    self._failed: dict[str, CheckpointError] = {}
    if self._is_training and not jax.process_index():
      with self._writing('latest'):
        folder = self._root / 'latest'
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()

  def check_folder(self) -> None:
    """Raises CheckpointError if there is nothing to evaluate or wait for."""
    if not self._root.is_dir():
      raise self._nothing_in(self._root)

  def get_experiment_state(self, ckpt_series: str) -> types.SimpleNamespace:
    """Returns what JAXline keeps its counters and the experiment in."""
    return self._states.setdefault(ckpt_series, types.SimpleNamespace())

  def save(self, ckpt_series: str) -> None:
    """Copies the state to the host and begins to write it.

    Where that fails, or has failed with the checkpoint before, training goes
    on, because it still has everything; `wait_for_checkpointing_to_finish` is
    where it matters.

    Raises:
      CheckpointError: if the state could not be written in evaluation.
    """
    self._finish_writing(ckpt_series)
    self._failed.pop(ckpt_series, None)
    self._begin_writing(ckpt_series)
    error = self._failed.get(ckpt_series)
    if error is not None and not self._is_training:
      raise error
    if self._on_best is not None and ckpt_series == 'best':
      self._on_best(self.get_experiment_state('best'))

  def can_be_restored(self, ckpt_series: str) -> bool:
    """Tells whether there is a checkpoint."""
    return self._latest_step(ckpt_series) is not None

  def restore(self, ckpt_series: str) -> None:
    """Reads the last checkpoint into the state and its experiment.

    Raises:
      CheckpointError: if it is damaged, or one of another model.
    """
    state = self.get_experiment_state(ckpt_series)
    step = self._latest_step(ckpt_series)
    path = self._root / ckpt_series / str(step)
    wanted = state.experiment_module.abstract_snapshot()

    def choose(full):
      checkpoint_files.check_same(path, full['experiment_module'], wanted)
      return {**full, 'experiment_module': wanted}

    tree = checkpoint_files.read(path, choose)
    state.experiment_module.restore_from_snapshot(tree.pop('experiment_module'))
    for name, value in tree.items():
      if name == 'train_step_rng' and self._is_training:
        value = jaxline_compat.bcast_local_devices(value)
      setattr(state, name, value.item() if value.ndim == 0 else value)
    what = 'Continuing from' if self._is_training else 'Evaluating'
    logging.info('%s step %d of %s', what, step, path.parent)

  def restore_path(self, ckpt_series: str) -> str | None:
    """Returns where the last checkpoint is.

    Raises:
      CheckpointError: if there is none that evaluation has not seen yet, and
        none will come or none came in time.
    """
    if not self._is_training:
      self._wait_for_news(ckpt_series)
    step = self._latest_step(ckpt_series)
    if step is None:
      return None
    self._last_path = str(self._root / ckpt_series / str(step))
    return self._last_path

  def wait_for_checkpointing_to_finish(self) -> None:
    """Returns when everything has been written.

    In training, tries again for `save_retry_minutes` if something could not be.

    Raises:
      CheckpointError: if it still could not.
    """
    deadline = time.monotonic() + 60 * self._retry_minutes
    for series in list(self._states):
      self._finish_writing(series)
      while error := self._failed.pop(series, None):
        if not self._is_training or time.monotonic() > deadline:
          raise error
        logging.info(
          'Trying for %g minutes to write the last checkpoint.',
          self._retry_minutes,
        )
        time.sleep(_RETRY_SECONDS)
        self._begin_writing(series)
        self._finish_writing(series)

  def close(self) -> None:
    """Finishes writing and releases the folder."""
    for series in list(self._managers):
      self._finish_writing(series)
      self._close_manager(series)

  def _begin_writing(self, series: str) -> None:
    state = self.get_experiment_state(series)
    step = int(state.global_step)
    tree = _snapshot(state)
    with self._noting_failure(series):
      manager = self._manager(series)
      if step in manager.all_steps():
        return  # The end of training coincides with a periodic save.
      self._check_space(tree)
      manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          checksums=ocp.args.JsonSave(checkpoint_files.checksums(tree)),
        ),
      )

  def _check_space(self, tree: Any) -> None:
    """Raises CheckpointError where Orbax would fail half-way, at length."""
    needed = sum(x.nbytes for x in jax.tree.leaves(tree))
    disk = shutil.disk_usage(self._root)
    if disk.total and disk.free < needed:
      raise CheckpointError(
        f'The disk of {self._root} is full: a checkpoint takes '
        f'{needed / 2**20:.1f} MiB, and {disk.free / 2**20:.1f} MiB are free.'
      )

  def _finish_writing(self, series: str) -> None:
    if series in self._managers:
      with self._noting_failure(series):
        self._managers[series].wait_until_finished()

  @contextlib.contextmanager
  def _noting_failure(self, series: str):
    """Notes and logs a CheckpointError, and makes room for what comes next."""
    try:
      with self._writing(series):
        yield
    except CheckpointError as error:
      self._failed[series] = error
      if self._is_training:
        logging.error('%s\nNothing is lost yet: it will be tried again.', error)
      # The next manager removes what is half written.
      self._close_manager(series)

  def _close_manager(self, series: str) -> None:
    manager = self._managers.pop(series, None)
    if manager is not None:
      with contextlib.suppress(Exception):  # What was noted already.
        manager.close()

  def _manager(self, series: str) -> ocp.CheckpointManager:
    if series not in self._managers:
      folder = self._root / series
      folder.mkdir(parents=True, exist_ok=True)
      self._managers[series] = ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=preservation_policy.LatestN(self._keep),
          # What a killed run left half written.
          cleanup_tmp_directories=True,
          create=False,
          multiprocessing_options=checkpoint_files.this_process_only(),
        ),
      )
    return self._managers[series]

  def _latest_step(self, series: str) -> int | None:
    # Not by the manager: another process may be the one that writes.
    return checkpoint_files.latest_step(self._root / series)

  @contextlib.contextmanager
  def _writing(self, series: str):
    """Turns what goes wrong with files into one sentence."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      if isinstance(error, CheckpointError):
        raise
      raise CheckpointError(
        f'Could not write a checkpoint to {self._root / series}: '
        f'{checkpoint_files.first_line(error)}'
      ) from error

  def _nothing_in(self, folder: pathlib.Path) -> CheckpointError:
    return CheckpointError(
      f'No checkpoint in {folder}. Train first, with the same command and '
      '--jaxline_mode=train, or name another folder with '
      '--checkpoint_dir.'
    )

  def _wait_for_news(self, series: str) -> None:
    """Waits for a checkpoint other than the last one that was named."""
    start, logged = time.time(), 0.0
    since = time.strftime('%H:%M:%S', time.localtime(start))
    folder = self._root / series
    while True:
      step = self._latest_step(series)
      if step is not None and str(folder / str(step)) != self._last_path:
        return
      what = 'No checkpoint' if self._last_path is None else 'No new checkpoint'
      if self._check_training is not None:
        self._check_training()
      elif self._one_off:
        raise self._nothing_in(folder)
      waited = time.time() - start
      if waited > 60 * self._wait_minutes:
        raise CheckpointError(
          f'{what} in {folder} for {self._wait_minutes:g} minutes. Is '
          'training running? --eval_wait_minutes sets how long '
          'evaluation waits.'
        )
      if time.time() - logged > 60:
        logged = time.time()
        logging.info(
          '%s in %s yet; waiting since %s, for %g minutes at most.',
          what,
          folder,
          since,
          self._wait_minutes,
        )
      time.sleep(_POLL_SECONDS)


def _snapshot(state: types.SimpleNamespace) -> dict[str, Any]:
  """Copies what a checkpoint holds to NumPy arrays."""
  tree = {}
  for name, value in vars(state).items():
    if name == 'experiment_module':
      value = value.snapshot_state()
    elif isinstance(value, jax.Array):  # The key, one for each device.
      value = jaxline_compat.get_first(value)
    if value is not None and not isinstance(value, str):
      tree[name] = jax.tree.map(np.asarray, value)
  return tree
