"""What a run leaves beside its checkpoints: its settings, and its weights.

`run.json` says what was run, for whoever comes later; `weights.safetensors` are
the weights to use: those of the step that was best, where there was an
evaluation on the way, and the last ones otherwise.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import types
from typing import Any

from absl import logging
import jax

from experiments import command_line, progress, recipe, trainer
from experiments.checkpoint_files import CheckpointError
from nfnets import weights
from nfnets.data import builders, folders

_INFO, _WEIGHTS, _FILES = 'run.json', 'weights.safetensors', 'files.csv'


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
    self._folder = pathlib.Path(config.checkpoint_dir)
    self._built = built
    self.is_writer = jax.process_index() == 0
    settings = dict(command_line.leaves(config.experiment_kwargs.config))
    if isinstance(built.builder, folders.Folder):
      settings['which_dataset'] = built.builder.root  # From any folder.
    of_run = command_line.leaves(config)
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
        self._folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self._built.builder, folders.Folder):
          self._built.builder.check_unchanged(str(self._folder / _FILES))
        self._write_info()

  def end(self, results: dict[str, Any]) -> None:
    """Adds what came out.

    Raises:
      CheckpointError: if it cannot be written.
    """
    self._info['results'] = results
    if self.is_writer:
      with self._writing(_INFO):
        self._write_info()

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
        **facts,
      },
    )
    with self._writing(_WEIGHTS):
      weights.save_weights(self._folder / _WEIGHTS, *kept, metadata=metadata)

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
    """Returns what is known of the weights that are kept; {} if none are."""
    path = self._folder / _WEIGHTS
    return weights.read_metadata(path) if path.is_file() else {}

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

  def _write_info(self) -> None:
    temporary = self._folder / f'.{_INFO}.{os.getpid()}'
    temporary.write_text(json.dumps(self._info, indent=1, default=str) + '\n')
    os.replace(temporary, self._folder / _INFO)


def _version() -> str:
  try:
    return importlib.metadata.version('nfnets')
  except importlib.metadata.PackageNotFoundError:
    return 'a clone that is not installed'


def read_info(folder: str) -> dict[str, Any] | None:
  """Returns what is in a run's `run.json`; None where there is none."""
  try:
    return json.loads((pathlib.Path(folder) / _INFO).read_text())
  except (OSError, ValueError):
    return None


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
    best = self._folder.kept().get(self._metric)
    # Of equal ones the later, which was trained for longer.
    if best is None or self._sign * value >= self._sign * best:
      try:
        self._folder.keep(module.weights(), step, **{self._metric: value})
      except CheckpointError as error:
        logging.error('%s Training goes on.', error)
