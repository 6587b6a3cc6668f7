"""Reads the description of a sweep, a small Python file."""

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

# {name of a value: {setting: value}}.
Choices = Mapping[Any, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Description of a sweep.

  Attributes:
    config: name of a recipe, or path of a config file.
    axes: {name: choices, or a distribution of Optuna}, in the file's order.
    seeds: values of `random_seed`. Each point is trained with all of them.
    settings: {name: value} of all trials.
    metric: name of a result of a run.
    maximize: whether larger values are better.
    sampler: a sampler of Optuna. None: all points of the grid.
    num_points: number of points that the sampler chooses.
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
    """Return {axis: distribution of Optuna}."""
    return {
      name: optuna.distributions.CategoricalDistribution(tuple(axis))
      if isinstance(axis, Mapping)
      else axis
      for name, axis in self.axes.items()
    }

  def grid(self) -> list[dict[str, Any]]:
    """Return all points, {axis: name of its value}; [] with a sampler."""
    if self.sampler is not None:
      return []
    return [
      dict(zip(self.axes, values, strict=True))
      for values in itertools.product(*self.axes.values())
    ]

  def settings_of(self, point: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the changed settings of a trial, {name: value}."""
    settings = dict(self.settings)
    for name, value in point.items():
      axis = self.axes[name]
      is_named = isinstance(axis, Mapping)
      settings.update(axis[value] if is_named else {name: value})
    return {**settings, 'random_seed': seed}

  def folder_of(
    self, folder: pathlib.Path, trial: optuna.trial.FrozenTrial
  ) -> pathlib.Path:
    """Return the folder of a trial, e.g. lr=0.1,seed=0."""
    values = {name: trial.params[name] for name in self.axes}
    values['seed'] = trial.user_attrs['seed']
    short = {key.rpartition('.')[2]: value for key, value in values.items()}
    values = short if len(short) == len(values) else values
    name = ','.join(f'{key}={value}' for key, value in values.items())
    return folder / re.sub(r'[^\w.,=+-]', '_', name)

  def config_of(
    self, point: Mapping[str, Any], seed: int
  ) -> ml_collections.ConfigDict:
    """Return the config of a trial; raise UserError for unknown settings."""
    config = configs.load(self.config)
    config.report = False  # The sweep writes its own.
    # One program for all values of lr, weight decay and clipping.
    config.experiment_kwargs.config.traced_hyperparams = True
    command_line.change(config, self.settings_of(point, seed))
    return config


def read(path: str) -> Sweep:
  """Read a sweep from a file.

  Args:
    path: a Python file that sets `config`, `axes` and `seeds`, and optionally
      the other attributes of `Sweep`. An axis is a list of values of the
      setting with its name, a dict {name: {setting: value}}, or a distribution
      of Optuna. Names that begin with `_` are ignored.

  Raises:
    UserError: if the file cannot be read or does not describe a sweep.
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
  """Build the sweep; raise ValueError if a value is wrong."""
  known = [field.name for field in dataclasses.fields(Sweep)]
  for name in names:
    if name not in known:
      raise ValueError(
        f'{name!r} says nothing about a sweep; there are {", ".join(known)}. '
        'Begin other names with an underscore.'
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
        f'axis {name!r} is a distribution, which needs a sampler: '
        'sampler = optuna.samplers.TPESampler(seed=0), and num_points.'
      )
  if sweep.sampler is not None and sweep.num_points < 1:
    raise ValueError(
      "'num_points' is missing: the number of points of the sampler."
    )
  # Check that all values of all axes are valid.
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
  """Return the choices or the distribution of an axis."""
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
  # Optuna can only store plain values; others get a name.
  plain = (bool, int, float, str, type(None))
  return {
    value if isinstance(value, plain) else str(value): {name: value}
    for value in values
  }
