"""The trials of a sweep, which several processes share by Optuna's storage.

What is to be tried, is under way and has come out is in `sweep.db`. A process
holds a lock of the operating system for the trial that it runs, in the trial's
folder, which is free again when the process has died, however it did: a trial
that is under way, but whose lock is free, is tried again by who comes next.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import pathlib
import re
from typing import Any
import warnings

import filelock
import optuna
from optuna.trial import TrialState
import sqlalchemy.exc

from experiments.studies import sweep_file
from nfnets.inference.command_line import CommandError

STORAGE = 'sweep.db'
_LOCK = '.lock'
_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run.

  Attributes:
    number: Optuna's.
    point: {axis: name of its value}.
    seed: value of `random_seed`.
    folder: where the run is.
    value: the metric; None where it is not known, or training diverged.
    diverged: whether training came to numbers that are not finite.
  """

  number: int
  point: Mapping[str, Any]
  seed: int
  folder: pathlib.Path
  value: float | None = None
  diverged: bool = False


def _digest(sweep: sweep_file.Sweep) -> str:
  """Returns what the axes are known by."""
  text = repr(sweep.distributions())
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class Trials:
  """What is to be tried and what has come out."""

  def __init__(self, sweep: sweep_file.Sweep, folder: pathlib.Path):
    """Opens the storage, or makes it.

    Args:
      sweep: what to try.
      folder: of the sweep, which is there.

    Raises:
      CommandError: if the storage cannot be used, or is of another sweep.
    """
    self._sweep, self._folder = sweep, folder
    self._lock = filelock.FileLock(folder / _LOCK)
    self._held: filelock.FileLock | None = None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with self._using_storage():
      storage = optuna.storages.RDBStorage(
        f'sqlite:///{folder / STORAGE}',
        engine_kwargs={'connect_args': {'timeout': _SECONDS}},
      )
      self._study = optuna.create_study(
        storage=storage,
        sampler=sweep.sampler,
        # In a study of Optuna's, an axis keeps its values.
        study_name=_digest(sweep),
        direction='maximize' if sweep.maximize else 'minimize',
        load_if_exists=True,
      )
      self._check_same(storage)

  def _check_same(self, storage: optuna.storages.BaseStorage) -> None:
    """Raises CommandError if trials were made of anything else."""
    sweep = self._sweep
    what = {
      'config': sweep.config,
      'settings': {k: str(v) for k, v in sorted(sweep.settings.items())},
      'metric': sweep.metric,
    }
    for summary in optuna.get_all_study_summaries(storage):
      for key, value in summary.user_attrs.get('sweep', what).items():
        if value != what[key]:
          raise CommandError(
            f'{self._folder} has trials of another sweep: its {key} was '
            f'{value}, and is {what[key]}. Choose another --output.',
            2,
          )
    self._study.set_user_attr('sweep', what)

  def take(self) -> Trial | None:
    """Returns the next trial, which is this process's until `finish`.

    Returns:
      None if nothing is left, or is under way in other processes.

    Raises:
      CommandError: if the storage cannot be used.
    """
    with self._using_storage():
      self._add_missing()
      self._retry_abandoned()
      if not self._study.get_trials(states=(TrialState.WAITING,)):
        if not self._choose_point():
          return None
      trial = self._trial(self._study.trials[self._study.ask().number])
      trial.folder.mkdir(parents=True, exist_ok=True)
      self._held = filelock.FileLock(trial.folder / _LOCK)
      self._held.acquire(timeout=_SECONDS)
      return trial

  def finish(self, trial: Trial, value: float | None) -> None:
    """Notes what came out of a trial, None where training diverged."""
    with self._using_storage():
      # For samplers, a trial that was pruned is worse than all that were not.
      state = TrialState.PRUNED if value is None else TrialState.COMPLETE
      self._study.tell(trial.number, value, state)
      self._held.release()

  def all(self) -> list[Trial]:
    """Returns the trials that have ended."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    with self._using_storage():
      return [self._trial(t) for t in self._study.get_trials(states=states)]

  def num_left(self) -> int:
    """Returns how many trials there are to make or under way."""
    states = (TrialState.WAITING, TrialState.RUNNING)
    with self._using_storage():
      return len(self._study.get_trials(states=states))

  def _trial(self, trial: optuna.trial.FrozenTrial) -> Trial:
    seed = trial.user_attrs['seed']
    values = {**trial.params, 'seed': seed}
    names = [name.rpartition('.')[2] for name in values]
    if len(set(names)) < len(names):
      names = list(values)
    name = ','.join(
      f'{name}={value}'
      for name, value in zip(names, values.values(), strict=True)
    )
    return Trial(
      number=trial.number,
      point={name: trial.params[name] for name in self._sweep.axes},
      seed=seed,
      folder=self._folder / re.sub(r'[^\w.,=+-]', '_', name),
      value=trial.value if trial.state == TrialState.COMPLETE else None,
      diverged=trial.state == TrialState.PRUNED,
    )

  def _add(self, point: Mapping[str, Any], seed: int) -> None:
    self._study.add_trial(
      optuna.create_trial(
        state=TrialState.WAITING,
        params=dict(point),
        distributions=self._sweep.distributions(),
        user_attrs={'seed': seed},
      )
    )

  def _seeded(self) -> list[optuna.trial.FrozenTrial]:
    """Returns all trials but those by which a sampler chose a point."""
    trials = self._study.get_trials(deepcopy=False)
    return [trial for trial in trials if 'seed' in trial.user_attrs]

  def _add_missing(self) -> None:
    """Adds the points of the grid that are not in the storage."""
    there = {
      (repr(self._trial(trial).point), trial.user_attrs['seed'])
      for trial in self._seeded()
    }
    for seed in self._sweep.seeds:
      for point in self._sweep.grid():
        if (repr(point), seed) not in there:
          self._add(point, seed)

  def _choose_point(self) -> bool:
    """Has the sampler choose a point, unless there are enough; tells that."""
    sweep = self._sweep
    points = {repr(self._trial(trial).point) for trial in self._seeded()}
    if sweep.sampler is None or len(points) >= sweep.num_points:
      return False
    # What is asked for would be under way, with one seed.
    chosen = self._study.ask(sweep.distributions())
    self._study.tell(chosen, state=TrialState.FAIL)
    for seed in sweep.seeds:
      self._add(chosen.params, seed)
    return True

  def _retry_abandoned(self) -> None:
    """Has trials made again whose process is no more."""
    for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
      if 'seed' not in trial.user_attrs:  # It died as it chose a point.
        self._study.tell(trial.number, state=TrialState.FAIL)
        continue
      folder = self._trial(trial).folder
      folder.mkdir(parents=True, exist_ok=True)
      try:
        filelock.FileLock(folder / _LOCK).acquire(timeout=0).lock.release()
      except filelock.Timeout:
        continue
      self._study.tell(trial.number, state=TrialState.FAIL)
      with warnings.catch_warnings():
        warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
      retry(self._study, trial)

  @contextlib.contextmanager
  def _using_storage(self) -> Iterator[None]:
    """Keeps other processes out, and tells errors in one line."""
    try:
      with self._lock:
        yield
    except (
      OSError,
      sqlalchemy.exc.SQLAlchemyError,
      optuna.exceptions.StorageInternalError,
    ) as error:
      cause = getattr(error.__cause__, 'orig', None) or getattr(
        error, 'orig', None
      )
      raise CommandError(
        f'The storage {self._folder / STORAGE} cannot be used: '
        f'{cause or getattr(error, "strerror", None) or error}.'
      ) from error
