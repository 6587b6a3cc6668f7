"""The command line: recipes and settings by name, and what `--help` says.

Any setting may be given by its own name: `--train_batch_size=64` stands for
`--config.experiment_kwargs.config.train_batch_size=64`, and
`--checkpoint_dir=runs/x` for `--config.checkpoint_dir=runs/x`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import difflib
import pathlib
import sys
from typing import Any

from absl import flags
from jaxline import base_config
import jaxline.platform  # noqa: F401 (defines --config and --jaxline_mode)
import ml_collections

from experiments import configs
from nfnets import paths

_OURS = 'experiment_kwargs.config'
# Other names of settings.
_ALIASES = {'data': 'which_dataset'}


class UsageError(ValueError):
  """The command line is wrong."""


def parse(argv: list[str]) -> tuple[str, ml_collections.ConfigDict]:
  """Returns the config's name, and the config with what `argv` changes.

  Flags that are not settings are read into `absl.flags.FLAGS`.

  Args:
    argv: the program's name, and its arguments.

  Raises:
    UsageError: for anything that the command line has wrong.
  """
  name = config_name(argv)
  try:
    defaults = configs.load(name)
  except ValueError as error:
    raise UsageError(str(error)) from error
  args = [argv[0], f'--config={configs.FILE}:{name}']
  args += _long_forms(argv[1:], defaults)
  for arg in args[2:]:
    key = arg.lstrip('-').partition('=')[0]
    if key.startswith('config.') and not _is_setting(defaults, key):
      raise UsageError(_no_setting(key, defaults))
  # ml_collections looks there for what to override.
  before, sys.argv = sys.argv, args
  try:
    rest = flags.FLAGS(args)[1:]
  except flags.UnrecognizedFlagError as error:
    raise UsageError(_no_setting(error.flagname, defaults)) from error
  except (flags.Error, TypeError, ValueError) as error:
    raise UsageError(str(error)) from error
  finally:
    sys.argv = before
  if rest:
    raise UsageError(f'Unknown arguments: {" ".join(rest)}')
  config = flags.FLAGS.config
  try:
    base_config.validate_config(config)
  except ValueError as error:
    raise UsageError(str(error)) from error
  if not config.get('checkpoint_dir'):
    path, _, argument = name.partition(':')
    run_name = '_'.join(filter(None, (pathlib.Path(path).stem, argument)))
    config.checkpoint_dir = f'runs/{run_name}'
  _check_places(config)
  return name, config


def _check_places(config: ml_collections.ConfigDict) -> None:
  """Raises UsageError where a folder or file is named that cannot be used."""
  ours = config.experiment_kwargs.config
  for setting, place in (
    ('checkpoint_dir', config.checkpoint_dir),
    ('data_dir', ours.data_dir),
    ('data', ours.which_dataset),
    ('weights', ours.weights),
  ):
    # As weights.find does, which knows names of the hub's, too.
    if place and not place.startswith('hf://'):
      try:
        paths.path(place)
      except paths.PathError as error:
        raise UsageError(f'--{setting}: {error}') from error


def change(
  config: ml_collections.ConfigDict, settings: Mapping[str, Any]
) -> None:
  """Changes settings, which are named as on the command line.

  Args:
    config: JAXline's, which is changed.
    settings: {name: value}; arguments of the network and of the optimizer, such
      as `model_kwargs.width`, may be new.

  Raises:
    UsageError: if there is no such setting, or it is of another type.
  """
  for name, value in settings.items():
    key = _ALIASES.get(name, name)
    is_ours = key.partition('.')[0] in config.experiment_kwargs.config
    path = f'config.{_OURS}.{key}' if is_ours else f'config.{key}'
    parent, _, last = path.rpartition('.')
    if _is_setting(config, path):
      unlocked = contextlib.nullcontext()
    elif parent.endswith(('.model_kwargs', '.optimizer.kwargs')):
      unlocked = config.unlocked()
    else:
      raise UsageError(_no_setting(name, config))
    try:
      with unlocked:
        _get(config, parent)[last] = value
    except (TypeError, ValueError) as error:
      raise UsageError(f'{name} cannot be {value!r}: {error}') from error


def is_given(setting: str) -> bool:
  """Tells whether the command line that was parsed sets this setting."""
  return f'config.{setting}' in flags.FLAGS


def config_name(argv: list[str]) -> str:
  """Returns what `--config` names.

  Raises:
    UsageError: if it is missing.
  """
  for i, arg in enumerate(argv[1:], start=1):
    if arg == '--config' and i + 1 < len(argv):
      return argv[i + 1]
    if arg.startswith('--config='):
      return arg.removeprefix('--config=')
  raise UsageError(
    f'--config=NAME is missing; --help explains it. The names are '
    f'{", ".join(configs.names())}.'
  )


def leaves(
  config: ml_collections.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields (name, value) of the settings, with dots in nested names."""
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _long_forms(
  args: list[str], config: ml_collections.ConfigDict
) -> Iterator[str]:
  """Yields the arguments without --config, with settings in JAXline's form."""
  known = {k: _OURS for k in config.experiment_kwargs.config}
  known = {**{k: '' for k in config}, **known}
  args = iter(args)
  for arg in args:
    name, equals, value = arg.partition('=')
    key = name.removeprefix('--')
    key = _ALIASES.get(key, key)
    if name == '--config':
      if not equals:
        next(args, None)
      continue
    top = key.partition('.')[0]
    if not name.startswith('--') or top not in known or key in flags.FLAGS:
      yield arg
      continue
    path = '.'.join(filter(None, ('config', known[top], key)))
    if not equals:
      is_switch = isinstance(_get(config, path), bool)
      value = 'True' if is_switch else next(args, None)
      if value is None:
        raise UsageError(f'--{key} has no value; write --{key}=VALUE.')
    yield f'--{path}={value}'


def _get(config: ml_collections.ConfigDict, path: str) -> Any:
  for key in path.split('.')[1:]:
    if not isinstance(config, ml_collections.ConfigDict) or key not in config:
      return None
    config = config[key]
  return config


def _is_setting(config: ml_collections.ConfigDict, path: str) -> bool:
  parent, _, key = path.rpartition('.')
  parent = config if parent == 'config' else _get(config, parent)
  # In a list, as `betas[0]`, and ml_collections will tell.
  return isinstance(parent, ml_collections.ConfigDict) and (
    key.partition('[')[0] in parent
  )


def _no_setting(name: str, config: ml_collections.ConfigDict) -> str:
  """Says that there is no setting or flag of this name, and which are near."""
  name = name.removeprefix('config.').removeprefix(f'{_OURS}.')
  known = {k.removeprefix(f'{_OURS}.') for k, _ in leaves(config)}
  known |= {'config', 'jaxline_mode', *_ALIASES}
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
  hint = f' Did you mean {" or ".join(f"--{c}" for c in close)}?'
  return (
    f'There is no setting {name!r}.{hint if close else ""} --help explains all '
    'of them.'
  )
