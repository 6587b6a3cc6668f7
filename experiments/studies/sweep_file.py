"""A sweep as a small Python file describes it."""

from collections.abc import Mapping
import dataclasses
import itertools
import os
import pathlib
import runpy
import traceback
import types
from typing import Any

import ml_collections
import optuna

from experiments import command_line, configs
from nfnets.inference.command_line import CommandError

# The settings that a value of an axis stands for, by the name of the value.
Choices = Mapping[Any, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What is tried.

  Attributes:
    config: name of a recipe, or the path of a config file.
    settings: {name: value} that all trials have.
    axes: {name: choices, or a distribution of Optuna's}, in the file's order.
    seeds: values of `random_seed` that every point is trained with.
    metric: of the results of a run.
    maximize: whether high values are good ones.
    sampler: one of Optuna's; None tries all points of the grid.
    num_points: that the sampler chooses.
  """

  config: str
  settings: Mapping[str, Any]
  axes: Mapping[str, Choices | optuna.distributions.BaseDistribution]
  seeds: tuple[int, ...]
  metric: str = 'test_top_1_acc'
  maximize: bool = True
  sampler: optuna.samplers.BaseSampler | None = None
  num_points: int = 0

  def distributions(self) -> dict[str, Any]:
    """Returns {axis: distribution of Optuna's}."""
    return {
      name: optuna.distributions.CategoricalDistribution(tuple(axis))
      if isinstance(axis, Mapping)
      else axis
      for name, axis in self.axes.items()
    }

  def grid(self) -> list[dict[str, Any]]:
    """Returns all points, {axis: name of its value}; none with a sampler."""
    if self.sampler is not None:
      return []
    return [
      dict(zip(self.axes, values, strict=True))
      for values in itertools.product(*self.axes.values())
    ]

  def settings_of(self, point: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns {name: value} of what a trial changes of the config."""
    settings = dict(self.settings)
    for name, value in point.items():
      axis = self.axes[name]
      is_named = isinstance(axis, Mapping)
      settings.update(axis[value] if is_named else {name: value})
    return {**settings, 'random_seed': seed}

  def config_of(
    self, point: Mapping[str, Any], seed: int
  ) -> ml_collections.ConfigDict:
    """Returns the config of a trial.

    Raises:
      command_line.UsageError: if there is no such setting.
    """
    config = configs.load(self.config)
    # One program for all values of what is tried most.
    config.experiment_kwargs.config.numbers_as_arguments = True
    command_line.change(config, self.settings_of(point, seed))
    return config


def read(path: str) -> Sweep:
  """Reads a file.

  Args:
    path: of a Python file that sets `config`, `axes` and `seeds`, and may set
      the other attributes of `Sweep`. An axis is a list of values of the
      setting that it is named after, a dict of {name: {setting: value}}, or a
      distribution of Optuna's. Names that begin with `_` are the file's own.

  Raises:
    CommandError: if it cannot be read, or describes no sweep.
  """
  if not os.path.isfile(path):
    raise CommandError(f'There is no file {path}.', 2)
  try:
    names = runpy.run_path(path)
  except SyntaxError as error:
    raise CommandError(
      f'{path}, line {error.lineno}: {error.msg}.', 2
    ) from error
  except Exception as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == path
    ]
    where = f'{path}, line {lines[-1]}' if lines else path
    raise CommandError(
      f'{where}: {type(error).__name__}: {error}', 2
    ) from error
  try:
    return _check(
      {
        name: value
        for name, value in names.items()
        if not name.startswith('_') and not isinstance(value, types.ModuleType)
      }
    )
  except ValueError as error:
    raise CommandError(f'{path}: {error}', 2) from error


def name(path: str) -> str:
  """Returns what a sweep is called after its file."""
  return pathlib.PurePath(path).stem


def _check(names: dict[str, Any]) -> Sweep:
  """Returns the sweep; raises ValueError where something is wrong."""
  known = [field.name for field in dataclasses.fields(Sweep)]
  for unknown in sorted(set(names) - set(known)):
    raise ValueError(
      f'{unknown!r} says nothing about a sweep; there are '
      f'{", ".join(known)}. Begin names of your own with an underscore.'
    )
  for needed in ('config', 'axes', 'seeds'):
    if needed not in names:
      raise ValueError(f'{needed!r} is missing.')
  for kind in ('axes', 'settings'):
    if not isinstance(names.setdefault(kind, {}), Mapping):
      raise ValueError(f'{kind!r} must be a dict, with names of settings.')
  if not names['axes']:
    raise ValueError("'axes' is empty: name at least one setting to try.")
  seeds = names['seeds']
  if not isinstance(seeds, (list, tuple, range)) or not all(
    isinstance(seed, int) for seed in seeds
  ):
    raise ValueError(f"'seeds' is {seeds!r}; it must be a list of numbers.")
  if not seeds:
    raise ValueError("'seeds' is empty: one number trains each point once.")
  names['seeds'] = tuple(seeds)
  names['axes'] = {k: _axis(k, v) for k, v in names['axes'].items()}
  sweep = Sweep(**names)
  continuous = [
    name for name, axis in sweep.axes.items() if not isinstance(axis, Mapping)
  ]
  if sweep.sampler is None and continuous:
    raise ValueError(
      f'axis {continuous[0]!r} has no list of values, which needs a sampler: '
      'sampler = optuna.samplers.TPESampler(seed=0), and num_points.'
    )
  if sweep.sampler is not None and sweep.num_points < 1:
    raise ValueError(
      "'num_points' is missing: how many points the sampler chooses."
    )
  _check_settings(sweep)
  return sweep


def _axis(name: str, values: Any) -> Any:
  """Returns the choices of an axis, or its distribution."""
  if isinstance(values, optuna.distributions.BaseDistribution):
    return values
  if not isinstance(values, (list, tuple, range, Mapping)):
    raise ValueError(
      f'axis {name!r} is {values!r}; it must be a list of values, a dict of '
      '{name: {setting: value}}, or a distribution of Optuna.'
    )
  if not values:
    raise ValueError(f'axis {name!r} is empty.')
  if isinstance(values, Mapping):
    for key, settings in values.items():
      if not isinstance(settings, Mapping):
        raise ValueError(
          f'axis {name!r}: {key!r} must be a dict, {{setting: value}}.'
        )
    return values
  # What Optuna keeps is named; other values are named by what they look like.
  plain = (bool, int, float, str, type(None))
  return {
    value if isinstance(value, plain) else str(value): {name: value}
    for value in values
  }


def _check_settings(sweep: Sweep) -> None:
  """Raises ValueError if a config or a setting is none."""
  first = {
    name: next(iter(axis))
    if isinstance(axis, Mapping)
    else getattr(axis, 'low', None) or axis.choices[0]
    for name, axis in sweep.axes.items()
  }
  sweep.config_of(first, sweep.seeds[0])
  for name, axis in sweep.axes.items():
    for value in axis if isinstance(axis, Mapping) else ():
      sweep.config_of({**first, name: value}, sweep.seeds[0])
