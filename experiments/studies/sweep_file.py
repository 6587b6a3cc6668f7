"""A sweep as a small Python file describes it."""

from collections.abc import Mapping
import dataclasses
import itertools
import os
import pathlib
import re
import runpy
import traceback
import types
from typing import Any

import ml_collections
import optuna

from experiments import command_line, configs
from nfnets.errors import UserError

# The settings that a value of an axis stands for, by the name of the value.
Choices = Mapping[Any, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What is tried.

  Attributes:
    config: name of a recipe, or the path of a config file.
    axes: {name: choices, or a distribution of Optuna's}, in the file's order.
    seeds: values of `random_seed` that every point is trained with.
    settings: {name: value} that all trials have.
    metric: of the results of a run.
    maximize: whether high values are good ones.
    sampler: one of Optuna's; None tries all points of the grid.
    num_points: how many the sampler chooses.
  """

  config: str
  axes: Mapping[str, Choices | optuna.distributions.BaseDistribution]
  seeds: tuple[int, ...]
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
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

  def folder_of(
    self, folder: pathlib.Path, trial: optuna.trial.FrozenTrial
  ) -> pathlib.Path:
    """Returns the folder of a trial, such as lr=0.1,seed=0."""
    values = {name: trial.params[name] for name in self.axes}
    values['seed'] = trial.user_attrs['seed']
    short = {key.rpartition('.')[2]: value for key, value in values.items()}
    values = short if len(short) == len(values) else values
    name = ','.join(f'{key}={value}' for key, value in values.items())
    return folder / re.sub(r'[^\w.,=+-]', '_', name)

  def config_of(
    self, point: Mapping[str, Any], seed: int
  ) -> ml_collections.ConfigDict:
    """Returns the config of a trial; raises UserError for unknown settings."""
    config = configs.load(self.config)
    config.report = False  # The sweep has its own.
    # One program for all values of what is tried most.
    config.experiment_kwargs.config.traced_hyperparams = True
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
    UserError: if it cannot be read, or describes no sweep.
  """
  if not os.path.isfile(path):
    raise UserError(f'There is no file {path}.', 2)
  try:
    names = runpy.run_path(path)
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    text = f'{type(error).__name__}: {error}'
    if isinstance(error, SyntaxError):
      lines, text = [error.lineno], f'{error.msg}.'
    where = f'{path}, line {lines[-1]}' if lines else path
    raise UserError(f'{where}: {text}', 2) from error
  own = {
    name: value
    for name, value in names.items()
    if not name.startswith('_') and not isinstance(value, types.ModuleType)
  }
  try:
    return _check(own)
  except ValueError as error:
    raise UserError(f'{path}: {error}', 2) from error


def _check(names: dict[str, Any]) -> Sweep:
  """Returns the sweep; raises ValueError where something is wrong."""
  known = [field.name for field in dataclasses.fields(Sweep)]
  for name in names:
    if name not in known:
      raise ValueError(
        f'{name!r} says nothing about a sweep; there are {", ".join(known)}. '
        'Begin names of your own with an underscore.'
      )
  names = {'settings': {}, **names}
  for name, kinds, text in (
    ('config', str, 'the name of a config'),
    ('axes', Mapping, 'a dict with names of settings'),
    ('seeds', (list, tuple, range), 'a list of numbers'),
    ('settings', Mapping, 'a dict with names of settings'),
  ):
    if name not in names:
      raise ValueError(f'{name!r} is missing: {text}.')
    value = names[name]
    if not isinstance(value, kinds) or not (value or name == 'settings'):
      raise ValueError(f'{name!r} is {value!r}; it must be {text}.')
  axes = {key: _axis(key, value) for key, value in names['axes'].items()}
  sweep = Sweep(**{**names, 'axes': axes, 'seeds': tuple(names['seeds'])})
  for name, axis in axes.items():
    if sweep.sampler is None and not isinstance(axis, Mapping):
      raise ValueError(
        f'axis {name!r} has no list of values, which needs a sampler: '
        'sampler = optuna.samplers.TPESampler(seed=0), and num_points.'
      )
  if sweep.sampler is not None and sweep.num_points < 1:
    raise ValueError(
      "'num_points' is missing: how many points the sampler chooses."
    )
  # Every value of every axis must be one that its setting can have.
  values = {
    name: list(axis)
    if isinstance(axis, Mapping)
    else [getattr(axis, 'low', None) or axis.choices[0]]
    for name, axis in axes.items()
  }
  first = {name: found[0] for name, found in values.items()}
  for name, found in values.items():
    for value in found:
      sweep.config_of({**first, name: value}, sweep.seeds[0])
  return sweep


def _axis(name: str, values: Any) -> Any:
  """Returns the choices of an axis, or its distribution."""
  if isinstance(values, optuna.distributions.BaseDistribution):
    return values
  if not isinstance(values, (list, tuple, range, Mapping)) or not values:
    raise ValueError(
      f'axis {name!r} is {values!r}; it must be a list of values, a dict of '
      '{name: {setting: value}}, or a distribution of Optuna.'
    )
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
