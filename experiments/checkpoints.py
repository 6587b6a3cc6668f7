"""JAXline checkpoints on disk or in a bucket, by Orbax.

A folder holds two series, `latest` and `best`, each with a folder per step.
A step appears whole or not at all. The copy to the host is made when `save` is
called and written in the background, so training may go on at once.
"""

from collections.abc import Callable
import contextlib
import shutil
import threading
import time
import types
from typing import Any

from absl import logging
import jax
import numpy as np

from experiments import checkpoint_files, jaxline_compat
from experiments.checkpoint_files import CheckpointError
from nfnets import paths

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 15.0
# How long training waits for the checkpoint before to be written.
_PATIENCE_SECONDS = 60.0


class OrbaxCheckpointer:
  """A `jaxline.utils.Checkpointer` that keeps its checkpoints in files.

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
    self._root = paths.absolute(config.checkpoint_dir)
    self._is_training = mode == 'train'
    self._keep = config.max_checkpoints_to_keep
    self._one_off = config.one_off_evaluate
    self._wait_minutes = config.eval_wait_minutes
    self._check_training = check_training
    self._on_best = on_best
    self._states: dict[str, types.SimpleNamespace] = {}
    # What writes, or has written, the last checkpoint of a series.
    self._writers: dict[str, threading.Thread] = {}
    self._last_path: str | None = None
    self._retry_minutes = config.save_retry_minutes
    # Why the last checkpoint of a series is not there.
    self._failed: dict[str, CheckpointError] = {}
    if self._is_training and not jax.process_index():
      with self._writing('latest'):
        paths.make_folder(self._root / 'latest')

  def check_folder(self) -> None:
    """Raises CheckpointError if there is nothing to evaluate or wait for."""
    try:
      is_there = paths.is_dir(self._root)
    except OSError as error:
      raise CheckpointError(
        f'Could not look for checkpoints in {self._root}: '
        f'{checkpoint_files.first_line(error)}'
      ) from error
    if not is_there:
      raise self._nothing_in(self._root)

  def get_experiment_state(self, ckpt_series: str) -> types.SimpleNamespace:
    """Returns what JAXline keeps its counters and the experiment in."""
    return self._states.setdefault(ckpt_series, types.SimpleNamespace())

  def save(self, ckpt_series: str) -> None:
    """Copies the state to the host and begins to write it.

    Where that fails, or the checkpoint before is still being written, training
    goes on, because it still has everything; `wait_for_checkpointing_to_finish`
    is where it matters.

    Raises:
      CheckpointError: if the state could not be written in evaluation.
    """
    is_written = self._is_written(ckpt_series, _PATIENCE_SECONDS)
    self._failed.pop(ckpt_series, None)
    if is_written:
      self._begin_writing(ckpt_series)
    else:
      step = self.get_experiment_state(ckpt_series).global_step
      self._note_failure(
        ckpt_series,
        CheckpointError(
          f'Step {int(step)} is not written to {self._root / ckpt_series}: the '
          'one before still is, and takes long.'
        ),
      )
    if not self._is_training:
      self.wait_for_checkpointing_to_finish()
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
      while True:
        self._is_written(series)  # Says now and then what it is waiting for.
        error = self._failed.pop(series, None)
        if error is None:
          break
        if not self._is_training or time.monotonic() > deadline:
          raise error
        logging.info(
          'Trying for %g minutes to write the last checkpoint.',
          self._retry_minutes,
        )
        time.sleep(_RETRY_SECONDS)
        self._begin_writing(series)

  def close(self) -> None:
    """Finishes writing, unless that takes long."""
    for series in list(self._writers):
      self._is_written(series, _PATIENCE_SECONDS)

  def _begin_writing(self, series: str) -> None:
    state = self.get_experiment_state(series)
    step = int(state.global_step)
    tree = _snapshot(state)

    def write():
      with self._noting_failure(series):
        checkpoint_files.write(self._root / series, step, tree, self._keep)

    with self._noting_failure(series):
      self._check_space(tree)
      # A daemon, which keeps no program from ending.
      self._writers[series] = threading.Thread(target=write, daemon=True)
      self._writers[series].start()

  def _is_written(self, series: str, seconds: float | None = None) -> bool:
    """Waits for what writes a checkpoint; tells whether it has ended."""
    writer = self._writers.get(series)
    if writer is None:
      return True
    writer.join(seconds)
    return not writer.is_alive()

  def _check_space(self, tree: Any) -> None:
    """Raises CheckpointError where Orbax would fail half-way, at length."""
    if paths.is_remote(self._root):
      return
    needed = sum(x.nbytes for x in jax.tree.leaves(tree))
    disk = shutil.disk_usage(self._root)
    if disk.total and disk.free < needed:
      raise CheckpointError(
        f'The disk of {self._root} is full: a checkpoint takes '
        f'{needed / 2**20:.1f} MiB, and {disk.free / 2**20:.1f} MiB are free.'
      )

  @contextlib.contextmanager
  def _noting_failure(self, series: str):
    try:
      with self._writing(series):
        yield
    except CheckpointError as error:
      self._note_failure(series, error)

  def _note_failure(self, series: str, error: CheckpointError) -> None:
    self._failed[series] = error
    if self._is_training:
      logging.error('%s\nNothing is lost yet: it will be tried again.', error)

  def _latest_step(self, series: str) -> int | None:
    # Looked up each time: another process may be the one that writes.
    return checkpoint_files.latest_step(self._root / series)

  @contextlib.contextmanager
  def _writing(self, series: str):
    """Turns what goes wrong with files into one sentence."""
    try:
      yield
    except CheckpointError:
      raise
    except Exception as error:  # TensorFlow has kinds of its own.
      raise CheckpointError(
        f'Could not write a checkpoint to {self._root / series}: '
        f'{checkpoint_files.first_line(error)}'
      ) from error

  def _nothing_in(self, folder: paths.Name) -> CheckpointError:
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
      try:
        step = self._latest_step(series)
      except CheckpointError as error:
        if self._one_off:
          raise
        step = None  # It comes to one who waits.
        logging.warning('%s. Trying again.', error)
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
