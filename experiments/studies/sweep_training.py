"""Makes the trials of a sweep, one after the other, as runs in folders."""

import shlex
import time
from typing import Any

from absl import flags, logging

from experiments import (
  checkpoints,
  command_line,
  compilation_cache,
  derived,
  experiment,
  programs,
  progress,
  recipe,
  run_folder,
  trainer,
)
from experiments.studies import sweep_file, sweep_trials
from nfnets.data import dataset
from nfnets.inference.command_line import CommandError


def make_trials(sweep: sweep_file.Sweep, trials: sweep_trials.Trials) -> bool:
  """Makes trials while there are any that no other process makes.

  Args:
    sweep: what is tried.
    trials: where they come from, and what comes out is noted.

  Returns:
    Whether SIGTERM has ended it.

  Raises:
    CommandError: if one cannot be made.
  """
  progress.set_up_logging()
  if not flags.FLAGS.is_parsed():  # JAXline's, of which none is given.
    flags.FLAGS.mark_as_parsed()
  compilation_cache.enable()
  shared = programs.Shared()
  while (trial := trials.take()) is not None:
    start = time.monotonic()
    value = None
    try:
      results = _make(sweep, trial, shared)
      if results.get('stopped_by_sigterm'):
        return True
      value = results.get(sweep.metric)
      if value is None:
        raise CommandError(
          f'There is no {sweep.metric} in the results of {trial.folder}; there '
          f'are {", ".join(results)}.'
        )
    except trainer.NonFiniteError:
      logging.info('%s diverged', trial.folder.name)
    trials.finish(trial, value)
    if value is not None:
      logging.info('%s: %s %.4g', trial.folder.name, sweep.metric, value)
    logging.info(
      'That took %.0f s; %d left.',
      time.monotonic() - start,
      trials.num_left(),
    )
  return False


def _make(
  sweep: sweep_file.Sweep, trial: sweep_trials.Trial, shared: programs.Shared
) -> dict[str, Any]:
  """Trains, without a word; returns what came out."""
  begun = run_folder.read_info(str(trial.folder)) or {}
  if 'results' in begun:  # But its process ended before that was noted.
    return begun['results']
  settings = {
    **sweep.settings_of(trial.point, trial.seed),
    'checkpoint_dir': str(trial.folder),
  }
  command = [
    *('python', 'experiments/experiment.py', f'--config={sweep.config}'),
    *(f'--{name}={value}' for name, value in settings.items()),
  ]
  config = sweep.config_of(trial.point, trial.seed)
  config.checkpoint_dir = str(trial.folder)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  try:
    return experiment.run(config, 'train', shlex.join(command), shared)
  except (recipe.ConfigError, command_line.UsageError) as error:
    raise CommandError(f'{trial.folder.name}: {error}', 2) from error
  except (
    checkpoints.CheckpointError,
    dataset.DatasetError,
    derived.WeightsError,
  ) as error:
    raise CommandError(f'{trial.folder.name}: {error}') from error
  finally:
    logging.set_verbosity(verbosity)
