"""What a run leaves beside its checkpoints: its settings, and its weights.

`run.json` says what was run, for whoever comes later; `weights.safetensors` are
the weights to use: those of the step that was best, where there was an
evaluation on the way, and the last ones otherwise; `README.md` is their model
card.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import platform
import time
import types
from typing import Any

from absl import logging
import jax

from experiments import command_line, progress, recipe, trainer
from experiments.checkpoint_files import CheckpointError
from nfnets import paths, weights
from nfnets.data import builders, folders
from nfnets.inference import card

_INFO, _WEIGHTS, _FILES = 'run.json', 'weights.safetensors', 'files.csv'
_RETRY_SECONDS = 15.0


class RunFolder:
  """The folder of a run that is being trained.

  Attributes:
    is_writer: whether this process is the one that writes.
  """

  def __init__(self, config: Any, built: recipe.Recipe, command: str = ''):
    """Makes nothing yet.

    Args:
      config: JAXline's.
      built: the recipe.
      command: the command line, for the record.
    """
    self._folder = paths.path(config.checkpoint_dir)
    self._kept: dict[str, Any] | None = None
    self._built = built
    self.is_writer = jax.process_index() == 0
    settings = dict(command_line.leaves(config.experiment_kwargs.config))
    if isinstance(built.builder, folders.Folder):
      settings['which_dataset'] = built.builder.root  # From any folder.
    of_run = command_line.leaves(config)
    # Of all updates, whichever the best weights come to be of: that these are
    # the best tells of later ones, too.
    self._privacy = {}
    if built.privacy:
      self._privacy['privacy'] = built.privacy.facts(config.training_steps)
    self._info = {
      'command': command,
      'settings': settings,
      'run': {k: v for k, v in of_run if 'experiment_kwargs' not in k},
      'versions': {
        'python': platform.python_version(),
        'jax': jax.__version__,
        'nfnets': _version(),
      },
      'started': datetime.datetime.now()
      .astimezone()
      .isoformat(timespec='seconds'),
      **self._privacy,
    }

  def begin(self) -> None:
    """Writes what is run.

    Raises:
      CheckpointError: if nothing can be written.
      nfnets.data.errors.DatasetError: if the files of the dataset are not
        those that the run began with.
    """
    if self.is_writer:
      with self._writing(_INFO):
        paths.make_folder(self._folder)
        if isinstance(self._built.builder, folders.Folder):
          self._built.builder.check_unchanged(str(self._folder / _FILES))
        self._write_info()
      self.kept()

  def end(self, results: dict[str, Any]) -> None:
    """Adds what came out.

    Raises:
      CheckpointError: if it cannot be written.
    """
    self._info['results'] = results
    if self.is_writer:
      with self._writing(_INFO):
        self._write_info()
      if self.kept():
        self._write_card()

  def keep(self, kept: weights.Weights, step: int, **facts: Any) -> None:
    """Writes weights, in place of those before.

    Args:
      kept: the weights.
      step: how many updates made them.
      **facts: what else is known of them.

    Raises:
      CheckpointError: if they cannot be written.
    """
    if not self.is_writer:
      return
    config, builder = self._built.config, self._built.builder
    names = None if builder is None else builders.class_names(builder)
    metadata = weights.describe(
      self._built.model,
      **{
        'class_names': names,
        'model_kwargs': config.model_kwargs.to_dict(),
        'train_size': config.image_size,
        'image_size': config.eval_image_size,
        'preprocessing': config.eval_preproc,
        'train_preprocessing': config.train_preproc,
        'trained_on': config.which_dataset,
        'step': step,
        **self._privacy,
        **facts,
      },
    )
    with self._writing(_WEIGHTS):
      weights.save_weights(self._folder / _WEIGHTS, *kept, metadata=metadata)
    self._kept = metadata
    self._write_card()

  def keep_best(self, state: types.SimpleNamespace) -> None:
    """Writes the weights of a checkpoint that evaluation found to be the best.

    Args:
      state: JAXline's of the series 'best'.
    """
    value = {state.best_model_eval_metric: float(state.best_eval_metric_value)}
    self.keep(
      state.experiment_module.weights(), int(state.global_step), **value
    )

  def kept(self) -> dict[str, Any]:
    """Returns what is known of the weights that are kept; {} if none are.

    Raises:
      CheckpointError: if they cannot be read.
    """
    if self._kept is None:  # In a bucket, this reads all of the file.
      path = self._folder / _WEIGHTS
      try:
        is_there = paths.is_file(path)
        self._kept = weights.read_metadata(path) if is_there else {}
      except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise CheckpointError(f'Could not read {path}: {reason}') from error
    return self._kept

  def has_best(self) -> bool:
    """Tells whether the weights that are kept were found to be the best."""
    return any(name.startswith('eval_') for name in self.kept())

  def kept_weights(self) -> weights.Weights:
    """Reads the weights that are kept."""
    return weights.read_weights(self._folder / _WEIGHTS)

  @contextlib.contextmanager
  def _writing(self, name: str):
    try:
      yield
    except OSError as error:
      raise CheckpointError(
        f'Could not write {self._folder / name}: {error.strerror or error}.'
      ) from error

  def _write_card(self) -> None:
    with self._writing(card.NAME):
      card.write_beside(
        self._folder / _WEIGHTS, self._info, metadata=self.kept()
      )

  def _write_info(self) -> None:
    text = json.dumps(self._info, indent=1, default=str) + '\n'
    paths.write_bytes(self._folder / _INFO, text.encode())


def _version() -> str:
  try:
    return importlib.metadata.version('nfnets')
  except importlib.metadata.PackageNotFoundError:
    return 'a clone that is not installed'


def check_bucket(folder: str) -> None:
  """Checks that files can be written, where that leaves nothing behind.

  Raises:
    CheckpointError: if a folder is in a bucket, and they cannot.
  """
  if not paths.is_remote(folder):
    return
  try:
    paths.make_folder(folder)
  except OSError as error:
    reason = error.strerror or error
    raise CheckpointError(f'Could not write to {folder}: {reason}.') from error


def read_info(folder: str) -> dict[str, Any] | None:
  """Returns what is in a run's `run.json`; None where there is none.

  Raises:
    CheckpointError: if one cannot tell.
  """
  path = paths.path(folder) / _INFO
  try:
    return json.loads(paths.read_bytes(path))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  except OSError as error:
    reason = error.strerror or error
    raise CheckpointError(f'Could not read {path}: {reason}.') from error


class Validation:
  """Evaluates training at equal intervals, and keeps the best weights.

  When depends on the step alone, so that a run that is stopped and goes on
  keeps the same.
  """

  def __init__(self, config: Any, folder: RunFolder):
    """Evaluates nothing yet.

    Args:
      config: JAXline's, with `evaluations` above 0.
      folder: where the best weights go.
    """
    self._last = config.training_steps
    self._interval = math.ceil(self._last / config.evaluations)
    self._metric = config.best_model_eval_metric
    self._sign = 1 if config.best_model_eval_metric_higher_is_better else -1
    if config.experiment_kwargs.config.use_ema:
      # The averaged weights are what is kept.
      name = self._metric.removeprefix('eval_').removeprefix('ema_')
      self._metric = f'eval_ema_{name}'
    self._folder = folder
    self._retry_minutes = config.save_retry_minutes
    # The arguments of `keep` for the best weights, until they are written.
    self._unsaved: tuple[weights.Weights, int, dict[str, float]] | None = None
    self._writer = progress.Writer(config, 'eval')

  def __call__(self, module: trainer.Experiment, step: int) -> None:
    """Evaluates if it is time to.

    Raises:
      preemption.StoppedError: if the run was asked to end meanwhile.
    """
    if step % self._interval and step != self._last or not step:
      return
    metrics = module.evaluate(global_step=None, rng=None, writer=None)
    self._writer.write_scalars(step, metrics)
    if not self._folder.is_writer:
      return
    value = metrics[self._metric]
    known = self._unsaved[2] if self._unsaved else self._folder.kept()
    best = known.get(self._metric)
    # Of equal ones the later, which was trained for longer.
    if best is None or self._sign * value >= self._sign * best:
      self._unsaved = module.weights(), step, {self._metric: value}
    try:
      self._save()
    except CheckpointError as error:
      logging.error('%s Training goes on.', error)

  def close(self) -> None:
    """Waits until the curves are where they belong."""
    self._writer.finish()

  def finish(self) -> None:
    """Makes sure that the best weights are written.

    Raises:
      CheckpointError: if they could not be, for `save_retry_minutes`.
    """
    deadline = time.monotonic() + 60 * self._retry_minutes
    while True:
      try:
        return self._save()
      except CheckpointError as error:
        if time.monotonic() > deadline:
          raise
        logging.error('%s Trying again.', error)
        time.sleep(_RETRY_SECONDS)

  def _save(self) -> None:
    if self._unsaved is not None:
      kept, step, facts = self._unsaved
      self._folder.keep(kept, step, **facts)
      self._unsaved = None
