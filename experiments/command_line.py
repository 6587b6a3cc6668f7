"""The command line: recipes and settings by name, and their help.

Any setting may be given by its own name: `--train_batch_size=64` is the same as
`--config.experiment_kwargs.config.train_batch_size=64`, and
`--checkpoint_dir=runs/x` as `--config.checkpoint_dir=runs/x`.

Nothing here imports JAX or TensorFlow, so that mistakes are answered at once.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping
import contextlib
import difflib
import os
import pathlib
import textwrap
from typing import Any

from jaxline import base_config
import ml_collections

from experiments import configs
from experiments.configs import settings as declared
from nfnets import errors, paths
from nfnets.errors import UserError
from nfnets.inference import command_line as commands

_OURS = 'experiment_kwargs.config'
# Other names of settings.
_ALIASES = {'data': 'which_dataset'}
_SWITCHES = {'true': True, '1': True, 'false': False, '0': False}


def parse(
  argv: list[str], parser: argparse.ArgumentParser | None = None
) -> tuple[str, ml_collections.ConfigDict]:
  """Return the name of the config, and the config with its settings changed.

  Args:
    argv: the program's name, and arguments that are a config and settings.
    parser: has parsed the program's other options; a misspelt one may be near
      to one of these.

  Raises:
    UserError: for a wrong command line.
  """
  name, rest = _split_config([argv[0], *paths.arguments(argv[1:])])
  config = configs.load(name)
  options = list(parser._option_string_actions) if parser else []
  args = iter(rest)
  for arg in args:
    flag, equals, text = arg.partition('=')
    if not flag.startswith('--'):
      raise UserError(f'Unknown argument: {arg}', 2)
    found = _find(config, flag.removeprefix('--'))
    if found is None:
      raise _no_setting(flag, config, options)
    parent, key = found
    if not equals:
      text = 'true' if isinstance(parent[key], bool) else next(args, None)
    if text is None:
      raise UserError(f'{flag} has no value; write {flag}=VALUE.', 2)
    with _naming(f'{flag}={text}'):
      parent[key] = _value(parent, key, text)
  config.lock()
  with errors.prefix('--config', status=2):
    base_config.validate_config(config)
  if config.patience is not None:
    if config.patience < 1:
      raise UserError(
        f'patience is {config.patience}; it must be positive, or None.', 2
      )
    if not config.evaluations:
      raise UserError(
        'patience counts evaluations during training, and there are none: set '
        '--evaluations=10, too.',
        2,
      )
  if not config.get('checkpoint_dir'):
    path, _, argument = name.partition(':')
    run_name = '_'.join(filter(None, (pathlib.Path(path).stem, argument)))
    config.checkpoint_dir = f'runs/{run_name}'
  _check_names(config)
  return name, config


def _check_names(config: ml_collections.ConfigDict) -> None:
  """Expand the names of files and folders; raise UserError for wrong ones."""
  ours = config.experiment_kwargs.config
  for name, settings, key in (
    ('checkpoint_dir', config, 'checkpoint_dir'),
    ('data_dir', ours, 'data_dir'),
    ('data', ours, 'which_dataset'),
    ('weights', ours, 'weights'),
  ):
    value = settings[key]
    # Weights can be names of the hub.
    if value and not value.startswith('hf://'):
      try:
        paths.path(value)
      except UserError as error:
        raise UserError(f'--{name}: {error}', 2) from error
      settings[key] = paths.expand(value)  # A config file may have ~.


def check_exist(config: ml_collections.ConfigDict) -> None:
  """Raise UserError if the weights or the dataset do not exist."""
  ours, folder = config.experiment_kwargs.config, config.checkpoint_dir
  # A run that continues does not need its first weights any more.
  continues = paths.is_remote(folder) or os.path.isdir(f'{folder}/latest')
  commands.check_exist(
    weights=None if continues else ours.weights,
    data=None if ours.fake_data else ours.which_dataset,
    data_dir=ours.data_dir,
  )


def change(
  config: ml_collections.ConfigDict, settings: Mapping[str, Any]
) -> None:
  """Change settings, which are named as on the command line.

  Args:
    config: JAXline's, which is changed.
    settings: {name: value}; arguments of the network and of the optimizer, such
      as `model_kwargs.width`, may be new.

  Raises:
    UserError: if there is no such setting, or it is of another type.
  """
  for name, value in settings.items():
    found = _find(config, name)
    if found is None:
      group, _, key = name.rpartition('.')
      if group not in ('model_kwargs', 'optimizer.kwargs'):
        raise _no_setting(name, config)
      parent, last = _find(config, group)
      found = parent[last], key
    parent, key = found
    with parent.unlocked(), _naming(f'{name} cannot be {value!r}'):
      parent[key] = value


def _find(
  config: ml_collections.ConfigDict, name: str
) -> tuple[ml_collections.ConfigDict, str] | None:
  """Return what a setting is in, and its key there; None if there is none."""
  name = name.removeprefix('config.').removeprefix(f'{_OURS}.')
  name = _ALIASES.get(name, name)
  ours = config.experiment_kwargs.config
  parent = ours if name.partition('.')[0] in ours else config
  *groups, key = name.split('.')
  for group in groups:
    parent = parent.get(group)
    if not isinstance(parent, ml_collections.ConfigDict):
      return None
  return (parent, key) if key in parent else None


def _value(parent: ml_collections.ConfigDict, key: str, text: str) -> Any:
  """Return the value of a setting that a text stands for.

  Raises:
    ValueError: for a text of another type than the setting's.
  """
  kind = parent.get_type(key)
  field = dict(parent.items(preserve_field_references=True))[key]
  if isinstance(field, ml_collections.FieldReference) and text in ('', 'None'):
    return None
  if kind is str:
    return text
  if kind is bool:
    if text.lower() not in _SWITCHES:
      raise ValueError('it is True or False')
    return _SWITCHES[text.lower()]
  if kind in (int, float):
    return kind(text)
  try:
    return ast.literal_eval(text.title() if text.lower() in _SWITCHES else text)
  except (SyntaxError, ValueError):
    return text


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
  try:
    yield
  except (TypeError, ValueError) as error:
    raise UserError(f'{setting}: {error}.', 2) from error


def _split_config(argv: list[str]) -> tuple[str, list[str]]:
  """Return the argument of `--config`, and the other arguments.

  Raises:
    UserError: if it is missing.
  """
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument('--config', nargs='?')
  args, rest = parser.parse_known_args(argv[1:])
  if not args.config:
    advice = f'--help explains it. The names are {", ".join(configs.names())}.'
    if any(arg.partition('=')[0] == '--data' for arg in rest):
      advice = (
        'For pictures of your own it is --config=finetune, with '
        '--weights=nfnet_f0 to start from.'
      )
    raise UserError(f'--config=NAME is missing. {advice}', 2)
  return args.config, rest


def without(argv: list[str], *settings: str) -> list[str]:
  """Return a command line without the flags of these settings."""
  flags_left_out = [f'--{setting}' for setting in settings]
  rest, arguments = [], iter(argv)
  for arg in arguments:
    name, equals, _ = arg.partition('=')
    if name not in flags_left_out:
      rest.append(arg)
    elif not equals:
      next(arguments, None)  # Its value.
  return rest


def leaves(
  config: ml_collections.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yield (name, value) of the settings, with dots in nested names."""
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    elif isinstance(value, ml_collections.FieldReference):
      yield f'{prefix}{key}', value.get()
    else:
      yield f'{prefix}{key}', value


def explain_settings(argv: list[str]) -> str:
  """Return all settings, their values and help.

  Args:
    argv: the command line; the values are those of the recipe that it names.
  """
  try:
    name, _ = _split_config(argv)
    config = configs.load(name)
  except ValueError:
    name, config = 'f0', configs.load('f0')
  lines = []
  for title, table, settings in (
    ('experiment', declared.EXPERIMENT, config.experiment_kwargs.config),
    ('run', declared.RUN, config),
  ):
    lines.append(f'Settings of the {title}, as --config={name} has them:\n')
    for key, (_, text) in table.items():
      shown = leaves(ml_collections.ConfigDict({key: settings[key]}))
      shown = ' '.join(f'--{k}={v}' for k, v in shown)
      lines.append(textwrap.indent(textwrap.fill(shown, 76), '  '))
      lines.append(textwrap.indent(textwrap.fill(text, 70), ' ' * 6))
    lines.append('')
  return '\n'.join(lines)


def _no_setting(
  flag: str, config: ml_collections.ConfigDict, options: list[str] = ()
) -> UserError:
  """Return the error for an unknown setting, which names the nearest ones."""
  name = flag.removeprefix('--').removeprefix('config.')
  name = name.removeprefix(f'{_OURS}.')
  known = {k.removeprefix(f'{_OURS}.') for k, _ in leaves(config)}
  known |= {'config', *_ALIASES, *(x.removeprefix('--') for x in options)}
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
  hint = f' Did you mean {" or ".join(f"--{c}" for c in close)}?'
  return UserError(
    f'There is no setting {name!r}.{hint if close else ""} --help explains all '
    'of them.',
    2,
  )
