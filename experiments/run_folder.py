"""What a run leaves beside its checkpoints: its settings, and its weights.

`run.json` says what was run, for whoever comes later; `weights.safetensors` are
the weights to use: those of the step that was best, where there was an
evaluation on the way, and the last ones otherwise; `README.md` is their model
card.
"""

import datetime
import importlib.metadata
import json
import platform
import types
from typing import Any

import jax

from experiments import command_line, recipe
from nfnets import errors, finite_json, paths, weights
from nfnets.data import builders, folders
from nfnets.errors import UserError
from nfnets.inference import card

_INFO, _WEIGHTS, _FILES = 'run.json', 'weights.safetensors', 'files.json'

# Settings that a run may go on without and with others: where its data are, how
# it is computed, and when it ends, or does not.
_FREE = (
  *('data_dir', 'eval_batch_size', 'transpose', 'accumulate_steps', 'remat'),
  *('traced_hyperparams', 'log_layers', 'per_example.chunk'),
  *('skip_corrupt', 'skip_nonfinite', 'private.epsilon', 'private.delta'),
)
# Those at the top that decide on its result; training_steps may be others, and
# patience, which is none of them: neither changes what is at a step.
_OF_RUN = (
  *('training_steps', 'random_seed', 'random_mode_train', 'evaluations'),
  *(
    'num_examples',
    'best_model_eval_metric',
    'best_model_eval_metric_higher_is_better',
  ),
)
# Settings that change the evaluation of its checkpoints.
_OF_EVALUATION = (
  *('model', 'model_kwargs', 'num_classes', 'image_size', 'which_loss'),
  *('which_dataset', 'fake_data', 'use_ema', 'eval_image_size'),
  *('eval_preproc', 'eval_subset', 'eval_bfloat16'),
)
_OF_PRIVACY = (
  *('private.noise_multiplier', 'private.sampling', 'private.key'),
  *('train_batch_size', 'num_examples'),
)


class RunFolder:
  """The folder of a run that is being trained.

  Attributes:
    is_writer: whether this process is the one that writes.
  """

  def __init__(self, config: Any, built: recipe.Recipe, command: str = ''):
    """Make nothing yet; `command` is for the record."""
    self._folder = paths.path(config.checkpoint_dir)
    self._kept: dict[str, Any] | None = None
    self._built = built
    self.is_writer = jax.process_index() == 0
    settings = dict(command_line.leaves(config.experiment_kwargs.config))
    if isinstance(built.builder, folders.Folder):
      settings['which_dataset'] = built.builder.root  # From any folder.
    of_run = command_line.leaves(config)
    # For all updates, because the choice of the best weights uses all.
    self._privacy = {}
    if built.privacy:
      self._privacy['privacy'] = built.privacy.facts(config.training_steps)
    found = importlib.metadata.distributions(name='nfnets')
    version = next((x.version for x in found), 'a clone, not installed')
    self._info = {
      'command': command,
      'settings': settings,
      'run': {
        **{k: v for k, v in of_run if 'experiment_kwargs' not in k},
        'num_examples': built.num_examples,
      },
      'versions': {
        'python': platform.python_version(),
        'jax': jax.__version__,
        'nfnets': version,
      },
      'started': datetime.datetime.now()
      .astimezone()
      .isoformat(timespec='seconds'),
      **self._privacy,
    }

  def go_on(self, begun: dict[str, Any], step: int, is_training: bool) -> None:
    """Check that a run may go on, or be evaluated; write nothing yet.

    Args:
      begun: the content of its run.json.
      step: the number of its last checkpoint.
      is_training: whether more steps may be made.
    """
    changed = compare_settings(begun, self._info, is_training)
    # Other settings follow from the number of pictures.
    if is_training and self.is_writer and 'which_dataset' not in changed:
      self._check_files()
    refused = [
      f'  {name}: {before!r} in the run, {now!r} now'
      for name, (before, now) in changed.items()
      if name != 'training_steps'
    ]
    fixed = changed.keys() & {'weights'}
    # The analysis of privacy assumes equal updates.
    if 'privacy' in self._info or 'privacy' in begun:
      fixed |= changed.keys() & set(_OF_PRIVACY)
    if refused and (fixed or not self._info['run']['change_settings']):
      advice = '--change_settings goes on with the new ones.'
      if fixed:
        advice = f'{", ".join(sorted(fixed))} cannot change within a run.'
      raise UserError(
        f'The run in {self._folder} has other settings:\n'
        + '\n'.join(refused)
        + '\nUse those of the run, or another --checkpoint_dir for a new run; '
        + advice,
        2,
      )
    entry = {
      'step': step,
      'time': self._info['started'],
      'command': self._info['command'],
      'changed': changed,
    }
    self._info['settings']['weights'] = begun['settings']['weights']
    self._info |= {
      'command': begun['command'],
      'started': begun['started'],
      'history': begun.get('history', []) + [entry] * bool(changed),
    }

  def begin(self) -> None:
    """Write what is run.

    Raises:
      UserError: if nothing can be written, or the files of the dataset cannot
        be decoded or are not those that the run began with.
    """
    builder = self._built.builder
    if isinstance(builder, folders.Folder):
      # Before its pictures are listed, which then may not change.
      builder.check_readable(
        builder.unreadable, self._built.config.skip_corrupt
      )
    if self.is_writer:
      with errors.prefix(f'Could not write {self._folder / _INFO}'):
        paths.make_folder(self._folder)
        self._check_files()
      self._write_info()
      self.kept()

  def end(self, results: dict[str, Any]) -> None:
    """Record the results, and write the card.

    Raises:
      UserError: if it cannot be written.
    """
    self.record(results)
    if self.is_writer and self.kept():
      self._write_card()

  def record(self, results: dict[str, Any]) -> None:
    """Write the results into `run.json`."""
    self._info['results'] = results
    if self.is_writer:
      self._write_info()

  def keep(self, kept: weights.Weights, step: int, **facts: Any) -> None:
    """Write weights, in place of those before.

    Args:
      kept: the weights.
      step: number of updates.
      **facts: other metadata.

    Raises:
      UserError: if they cannot be written.
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
    with errors.prefix(f'Could not write {self._folder / _WEIGHTS}'):
      weights.save_weights(self._folder / _WEIGHTS, *kept, metadata=metadata)
    self._kept = metadata
    self._write_card()

  def keep_best(self, state: types.SimpleNamespace) -> None:
    """Write the weights of a checkpoint that evaluation found to be the best.

    Args:
      state: JAXline's of the series 'best'.
    """
    value = {state.best_model_eval_metric: float(state.best_eval_metric_value)}
    self.keep(
      state.experiment_module.weights(), int(state.global_step), **value
    )

  def kept(self) -> dict[str, Any]:
    """Return what is known of the weights that are kept; {} if none are.

    Raises:
      UserError: if they cannot be read.
    """
    if self._kept is None:  # In a bucket, this reads all of the file.
      path = self._folder / _WEIGHTS
      with errors.prefix(f'Could not read {path}'):
        is_there = paths.is_file(path)
        self._kept = weights.read_metadata(path) if is_there else {}
    return self._kept

  def has_best(self) -> bool:
    """Return whether the weights that are kept were found to be the best."""
    return any(name.startswith('eval_') for name in self.kept())

  def kept_weights(self) -> weights.Weights:
    """Read the weights that are kept."""
    return weights.read_weights(self._folder / _WEIGHTS)

  def _check_files(self) -> None:
    if isinstance(self._built.builder, folders.Folder):
      self._built.builder.check_unchanged(str(self._folder / _FILES))

  def _write_card(self) -> None:
    # If this program evaluates, another one trains, and wrote run.json.
    info = read_info(str(self._folder)) or self._info
    with errors.prefix(f'Could not write {self._folder / card.NAME}'):
      card.write_beside(self._folder / _WEIGHTS, info, metadata=self.kept())

  def _write_info(self) -> None:
    text = finite_json.dumps(self._info, indent=1, default=str) + '\n'
    with errors.prefix(f'Could not write {self._folder / _INFO}'):
      paths.write_bytes(self._folder / _INFO, text.encode())


def compare_settings(
  begun: dict[str, Any], now: dict[str, Any], is_training: bool
) -> dict[str, tuple[Any, Any]]:
  """Return {name: (value in the run, value now)} that decide on it."""

  def select(info):
    of_run = {k: v for k, v in info['run'].items() if k in _OF_RUN}
    found = {**info['settings'], **of_run}
    if not found.get('private.noise_multiplier'):  # The others mean nothing.
      found = {k: v for k, v in found.items() if 'private.' not in k}
    if is_training:
      return {k: v for k, v in found.items() if k not in _FREE}
    return {k: v for k, v in found.items() if k.split('.')[0] in _OF_EVALUATION}

  before, now = (
    select(begun),
    select(json.loads(finite_json.dumps(now, default=str))),
  )
  pairs = {k: (before.get(k), now.get(k)) for k in {**before, **now}}
  return {
    name: (old, new)
    for name, (old, new) in pairs.items()
    # Older versions wrote '' and 0 for what is unset.
    if (old or None) != (new or None)
    # Weights that are unset now are those of the run.
    and (new or name != 'weights')
    # Arguments may be missing; other settings are where versions differ.
    and ('.' in name or name in before and name in now)
  }


def read_info(folder: str) -> dict[str, Any] | None:
  """Return what is in a run's `run.json`; None where there is none.

  Raises:
    UserError: if one cannot tell.
  """
  path = paths.path(folder) / _INFO
  with errors.prefix(f'Could not read {path}'):
    try:
      return json.loads(paths.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
      return None
