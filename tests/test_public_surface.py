"""The names, arguments, flags and settings that users rely on.

`public_surface.txt` lists them. After a change that is meant, write it again:

python tests/test_public_surface.py
"""

import argparse
from collections.abc import Callable, Iterator
import difflib
import importlib
import inspect
import pathlib
import sys
from typing import Any
from unittest import mock

import pytest

# For the command above.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import command_line, configs
import nfnets
from tools import write_api

_ROOT = pathlib.Path(nfnets.__file__).parents[1]
_FILE = pathlib.Path(__file__).with_name('public_surface.txt')
# `*` stands for the names in `__all__`.
_NAMES = """
nfnets.* nfnets.optim.* nfnets.weights.* nfnets.utils.* nfnets.data.preprocess.*
nfnets.data.autoaugment.* nfnets.nfnet.NFNet nfnets.nf_resnet.NF_ResNet
nfnets.nf_regnet.NF_RegNet nfnets.resnet.ResNet
nfnets.skipinit_resnet.SkipInit_ResNet nfnets.fixup_resnet.FixUp_ResNet
nfnets.base.nfnet_params nfnets.base.nf_regnet_params nfnets.base.nonlinearities
nfnets.base.WSConv2D nfnets.base.SqueezeExcite nfnets.base.StochDepth
nfnets.base.signal_metrics experiments.configs.load experiments.recipe.build
experiments.recipe.create_model experiments.recipe.create_schedule
experiments.recipe.create_optimizer experiments.step.init_train_state
experiments.step.make_train_step experiments.step.make_eval_step
experiments.trainer.Experiment
""".split()
# The first is listed in full; the others list what differs from it.
_CONFIGS = """
f0 f6:sam nf_resnet50 nf_resnet50:private nf_regnet_b0 resnet50
skipinit_resnet50 fixup_resnet50 digits digits:private finetune finetune:f4+
finetune:2023 pretrain:f4+ pretrain:2023
""".split()


def _describe(name: str, value: Any) -> Iterator[str]:
  """Yields a line for a name, and one for each of a class's own members."""
  keys = f': {", ".join(value)}' if isinstance(value, dict) else ''
  yield name + (write_api.signature(value) if callable(value) else keys)
  for parent in value.__mro__ if isinstance(value, type) else ():
    if parent.__module__.startswith(('nfnets', 'experiments')):
      for member in vars(parent):
        if member == '__call__' or not member.startswith('_'):
          part = inspect.getattr_static(value, member)
          yield from _describe(f'{name}.{member}', part)


def _library() -> Iterator[str]:
  for name in _NAMES:
    module, _, last = name.rpartition('.')
    home = importlib.import_module(module)
    for member in home.__all__ if last == '*' else [last]:
      yield from _describe(f'{module}.{member}', getattr(home, member))
  yield from (f'model {name}' for name in nfnets.list_models())


def _arguments(command: str, main: Callable, *args: str) -> Iterator[str]:
  """Yields the arguments of a command, and of its sub-commands."""
  parameters = inspect.signature(main).parameters.values()
  # With the program's name in front where it is not optional.
  argv = [['', *args] if p.default is p.empty else args for p in parameters]
  parse = 'argparse.ArgumentParser.parse_known_args'
  with (
    mock.patch('sys.argv', ['']),
    mock.patch(parse, autospec=True) as parse,
    pytest.raises(SystemExit),
  ):
    parse.side_effect = SystemExit
    main(*argv)
  parser = parse.call_args.args[0]
  for name in args:
    parser = parser._subparsers._group_actions[0].choices[name]
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for name in action.choices:
        yield from _arguments(f'{command} {name}', main, *args, name)
    elif action.dest != 'help':
      line = ' '.join([command, *(action.option_strings or [action.dest])])
      for key in ('nargs', 'required', 'choices', 'default'):
        value = getattr(action, key)
        line += '' if value is None or value is False else f' {key}={value!r}'
      yield line


def _commands() -> Iterator[str]:
  files = [*_ROOT.glob('nfnets/*.py'), *_ROOT.glob('experiments/tools/*.py')]
  files.append(_ROOT / 'experiments' / 'experiment.py')
  for file in (f for f in files if '\ndef main(' in f.read_text()):
    name = '.'.join(file.relative_to(_ROOT).with_suffix('').parts)
    module = importlib.import_module(name)
    yield from _arguments(name, module.main)


def _settings() -> Iterator[str]:
  first = {}
  yield from (f'--config={name}' for name in configs.names())
  yield from (f'--{a} is --{b}' for a, b in command_line._ALIASES.items())
  for name in _CONFIGS:
    leaves = command_line.leaves(configs.load(name))
    # Each can be given without the path to it.
    own = {k.removeprefix('experiment_kwargs.config.'): v for k, v in leaves}
    yield from (f'--config={name} has no {k}' for k in first.keys() - own)
    for key, value in own.items():
      if key not in first or first[key] != value:
        value = getattr(value, '__name__', repr(value))
        yield f'--config={name} --{key}={value}'
    first = first or own


def _surface() -> list[str]:
  return sorted({*_library(), *_commands(), *_settings()})


def test_public_surface_is_what_the_file_lists():
  changes = difflib.ndiff(_FILE.read_text().splitlines(), _surface())
  changes = '\n'.join(line for line in changes if line[0] in '-+')
  hint = 'If this is meant: python tests/test_public_surface.py'
  assert not changes, f'What users rely on has changed. {hint}\n{changes}'


if __name__ == '__main__':
  _FILE.write_text('\n'.join(_surface()) + '\n')
