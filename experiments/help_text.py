"""What `--help` says of the settings: the comments beside them in the code."""

import ast
import inspect
import os
import sys
import textwrap
from typing import Any

from jaxline import base_config
import ml_collections

from experiments import command_line, configs


def show(text: str) -> None:
  """Prints a text; `--help | head` may close the pipe before its end."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # What is left goes nowhere, or Python would fail at its end instead.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain_settings(argv: list[str]) -> str:
  """Returns all settings, their values and what they mean.

  Args:
    argv: the command line; the values are those of the recipe that it names.
  """
  try:
    name = command_line.config_name(argv)
    config = configs.load(name)
  except ValueError:
    name, config = 'f0', configs.load('f0')
  explained = comments()
  lines = []
  ours = config.experiment_kwargs.config
  for title, prefix, settings in (
    ('Settings of the experiment', 'experiment_kwargs.config.', ours),
    ('Settings of the run', '', config),
  ):
    lines += [f'{title}, as --config={name} has them:', '']
    for key, value in settings.items():
      if key == 'experiment_kwargs':
        continue
      lines.append(_show(key, value))
      comment = textwrap.fill(explained.get(prefix + key, ''), 70)
      lines += [textwrap.indent(comment, ' ' * 6)] if comment else []
    lines.append('')
  return '\n'.join(lines)


def _show(key: str, value: Any) -> str:
  if not isinstance(value, ml_collections.ConfigDict):
    return f'  --{key}={value}'
  parts = ' '.join(f'--{key}.{k}={v}' for k, v in command_line.leaves(value))
  return textwrap.fill(parts, 78, initial_indent='  ', subsequent_indent='  ')


def comments() -> dict[str, str]:
  """Returns {setting: the comment beside it in the code}.

  Settings are named as in `training_steps` and `experiment_kwargs.config.lr`.
  JAXline's code explains its own, where ours says nothing of them.
  """
  jaxlines = _comments_in(base_config.get_base_config)
  return {**jaxlines, **_comments_in(configs.get_base)}


def _comments_in(function) -> dict[str, str]:
  """Returns the comments above or behind assignments to attributes."""
  source = inspect.getsource(function)
  lines = source.splitlines()
  found = {}
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign):
      continue
    key = ast.unparse(node.targets[0]).removeprefix('config.')
    key = key.replace('experiment.', 'experiment_kwargs.config.', 1)
    first = node.lineno - 1  # From 0.
    while lines[first - 1].lstrip().startswith('#'):
      first -= 1
    texts = [line.strip() for line in lines[first : node.lineno - 1]]
    texts.append(lines[node.end_lineno - 1][node.end_col_offset :].strip())
    text = ' '.join(t.removeprefix('#').strip() for t in texts).strip()
    if text:
      found[key] = text
  return found
