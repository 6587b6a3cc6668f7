"""Runs the trials of a sweep in one or more processes.

Optuna's storage `sweep.db` has the trials and their states. A process holds a
file lock in the folder of the trial that it runs. The operating system releases
the lock when the process ends. If a trial is marked as running but its lock is
free, the next process runs it again. (Optuna's heartbeats would detect this
later, and would also report paused processes as dead.)
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
  """Run all trials that no other process runs.

  Returns:
    The finished trials, and their numbers by state.

  Raises:
    UserError: if a trial fails, or the storage is unusable or belongs to
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
          if results and sweep.metric not in results:
            raise UserError(
              f'The results have no {sweep.metric}; they have '
              f'{", ".join(results)}.'
            )
          # Samplers treat pruned trials as worse than all others.
          state = TrialState.COMPLETE if results else TrialState.PRUNED
          study.tell(trial.number, results.get(sweep.metric), state)
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
  """Open or create the storage; raise UserError if it has another sweep."""
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
      # A study of Optuna cannot change the values of an axis.
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
  """Return the trials, without the placeholders of the sampler's choices."""
  found = study.get_trials(states=states or None)
  return [trial for trial in found if 'seed' in trial.user_attrs]


def _num_left(study: optuna.Study) -> int:
  return len(_get(study, TrialState.WAITING, TrialState.RUNNING))


def _take(
  study: optuna.Study, sweep: sweep_file.Sweep, folder: pathlib.Path
) -> tuple[FrozenTrial, filelock.FileLock] | None:
  """Return the next trial and its acquired lock.

  None: no trial is left for this process.
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
      study.tell(chosen, state=TrialState.FAIL)  # A placeholder without seed.
      for seed in sweep.seeds:
        add(chosen.params, seed)
    trial = study.trials[study.ask().number]
    lock = lock_of(trial)
    lock.acquire(timeout=_SECONDS)
    return trial, lock


def _train(
  sweep: sweep_file.Sweep, trial: FrozenTrial, run: pathlib.Path, shared: Any
) -> dict[str, Any]:
  """Train quietly; return the results, or {} if the loss diverged."""
  info = run_folder.read_info(str(run)) or {}
  if 'results' in info:  # The process ended before it stored them.
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
