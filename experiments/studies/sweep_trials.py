"""Makes the trials of a sweep, which several processes share.

What is to be tried, is under way and has come out is in `sweep.db`, Optuna's
storage. A process holds a lock of the operating system for the trial that it
runs, in the trial's folder. The lock is free again when the process has died,
however it did; a trial that is under way, but whose lock is free, is tried
again by the next process. (Optuna's heartbeats would tell that after a while
only, and wrongly of a process that was stopped for as long.)
"""

import contextlib
import hashlib
import itertools
import pathlib
import shlex
import time
from typing import Any

from absl import logging
import filelock
import optuna
from optuna.trial import FrozenTrial, TrialState
import sqlalchemy.exc

from experiments import hosts, loop, run_folder, screen, train
from experiments import step as step_lib
from experiments.studies import sweep_file
from nfnets import messages
from nfnets.errors import UserError

_LOCK = '.lock'
_SECONDS = 60.0


def make(
  sweep: sweep_file.Sweep, folder: pathlib.Path
) -> tuple[list[FrozenTrial], dict[str, Any]]:
  """Makes trials while there are any that no other process makes.

  Returns:
    Optuna's trials that have ended, and how many there are of what kind.

  Raises:
    UserError: if one cannot be made, the storage cannot be used, or it is of
      another sweep.
  """
  try:
    study = _open_study(sweep, folder)
    screen.set_up_logging()
    hosts.keep_compiled_programs()
    shared, stopped = step_lib.make_shared(), False
    while not stopped and (taken := _take(study, sweep, folder)):
      trial, lock = taken
      start, run = time.monotonic(), sweep.folder_of(folder, trial)
      try:
        results = _train(sweep, trial, run, shared)
        stopped = bool(results.get('stopped_by_sigterm'))
        if not stopped:
          _tell(study, trial, results, sweep.metric)
      except UserError as error:
        raise UserError(f'{run.name}: {error}', error.status) from error
      finally:
        lock.release()
      value, seconds = results.get(sweep.metric), time.monotonic() - start
      shown = 'diverged' if value is None else f'{sweep.metric} {value:.4g}'
      logging.info(
        '%s: %s; %.0f s; %d left', run.name, shown, seconds, _num_left(study)
      )
    ended = _get(study, TrialState.COMPLETE, TrialState.PRUNED)
    counts = {'trials': len(ended), 'left': _num_left(study)}
    return ended, {**counts, 'stopped_by_sigterm': stopped}
  except (
    sqlalchemy.exc.SQLAlchemyError,
    optuna.exceptions.StorageInternalError,
  ) as error:
    cause = getattr(error.__cause__, 'orig', None)
    cause = messages.one_line(cause or getattr(error, 'orig', error))
    raise UserError(
      f'The storage {folder}/sweep.db cannot be used: {cause}.'
    ) from error


def _open_study(sweep: sweep_file.Sweep, folder: pathlib.Path) -> optuna.Study:
  """Opens the storage, or makes it; raises UserError for another sweep's."""
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  axes = repr(sweep.distributions()).encode()
  same = {
    'config': sweep.config,
    'settings': {k: str(v) for k, v in sorted(sweep.settings.items())},
    'metric': sweep.metric,
  }
  with filelock.FileLock(folder / _LOCK):
    storage = optuna.storages.RDBStorage(
      f'sqlite:///{folder}/sweep.db',
      engine_kwargs={'connect_args': {'timeout': _SECONDS}},
    )
    study = optuna.create_study(
      storage=storage,
      sampler=sweep.sampler,
      # In a study of Optuna's, an axis keeps its values.
      study_name=hashlib.sha256(axes).hexdigest()[:16],
      direction='maximize' if sweep.maximize else 'minimize',
      load_if_exists=True,
    )
    for summary in optuna.get_all_study_summaries(storage):
      for key, value in summary.user_attrs.get('sweep', same).items():
        if value != same[key]:
          raise UserError(
            f'{folder} has trials of another sweep: its {key} was {value}, '
            f'and is {same[key]}. Choose another --output.',
            2,
          )
    study.set_user_attr('sweep', same)
  return study


def _get(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
  """Returns trials, without those by which a sampler chose a point."""
  found = study.get_trials(states=states or None)
  return [trial for trial in found if 'seed' in trial.user_attrs]


def _num_left(study: optuna.Study) -> int:
  return len(_get(study, TrialState.WAITING, TrialState.RUNNING))


def _take(
  study: optuna.Study, sweep: sweep_file.Sweep, folder: pathlib.Path
) -> tuple[FrozenTrial, filelock.FileLock] | None:
  """Returns the next trial and its lock, which this process holds now.

  None if nothing is left, or is under way in other processes.
  """

  def add(params, seed):
    study.add_trial(
      optuna.create_trial(
        state=TrialState.WAITING,
        params=params,
        distributions=sweep.distributions(),
        user_attrs={'seed': seed},
      )
    )

  def lock_of(trial):
    run = sweep.folder_of(folder, trial)
    run.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(run / _LOCK, timeout=0)

  with filelock.FileLock(folder / _LOCK):
    for trial in _get(study, TrialState.RUNNING):
      with contextlib.suppress(filelock.Timeout), lock_of(trial):
        study.tell(trial.number, state=TrialState.FAIL)
        add(trial.params, trial.user_attrs['seed'])
    there = [(trial.params, trial.user_attrs['seed']) for trial in _get(study)]
    for seed, point in itertools.product(sweep.seeds, sweep.grid()):
      if (point, seed) not in there:
        add(point, seed)
    if not _get(study, TrialState.WAITING):
      points = {repr(params) for params, _ in there}
      if sweep.sampler is None or len(points) >= sweep.num_points:
        return None
      chosen = study.ask(sweep.distributions())
      study.tell(chosen, state=TrialState.FAIL)  # It has no seed.
      for seed in sweep.seeds:
        add(chosen.params, seed)
    trial = study.trials[study.ask().number]
    lock = lock_of(trial)
    lock.acquire(timeout=_SECONDS)
    return trial, lock


def _train(
  sweep: sweep_file.Sweep, trial: FrozenTrial, run: pathlib.Path, shared: Any
) -> dict[str, Any]:
  """Trains without a word; returns the results, without any if it diverged."""
  info = run_folder.read_info(str(run)) or {}
  if 'results' in info:  # But its process ended before that was noted.
    return info['results']
  seed = trial.user_attrs['seed']
  settings = sweep.settings_of(trial.params, seed) | {'checkpoint_dir': run}
  command = [
    *('python', 'experiments/experiment.py', f'--config={sweep.config}'),
    *(f'--{name}={value}' for name, value in settings.items()),
  ]
  config = sweep.config_of(trial.params, seed)
  config.checkpoint_dir = str(run)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  try:
    results = train.train_and_evaluate(
      config, 'train', shlex.join(command), shared
    )
  except loop.NonFiniteError:
    return {}
  finally:
    logging.set_verbosity(verbosity)
  if results.get('interrupted'):
    raise KeyboardInterrupt
  return results


def _tell(
  study: optuna.Study, trial: FrozenTrial, results: dict[str, Any], metric: str
) -> None:
  """Notes what came out of a trial."""
  if results and metric not in results:
    raise UserError(
      f'There is no {metric} in the results; there are {", ".join(results)}.'
    )
  # For samplers, a trial that was pruned is worse than all that were not.
  state = TrialState.COMPLETE if results else TrialState.PRUNED
  study.tell(trial.number, results.get(metric), state)
