"""Trains one recipe with many settings and seeds, and compares.

A trial is an ordinary run in a folder of its own; a sweep that was stopped,
even killed, goes on where it was, and several processes may share one.
"""

import argparse
import os
import pathlib

from nfnets import errors, finite_json, paths
from nfnets.errors import UserError
from nfnets.inference import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the sub-command."""
  parser.add_argument(
    'file',
    metavar='FILE',
    help='a Python file that names a config, axes and seeds, such as '
    'examples/sweeps/batch_size.py; docs/clipping.md explains it',
  )
  parser.add_argument(
    '--output',
    metavar='DIR',
    help='the folder of all results (runs/NAME, after the file)',
  )


def run(args: argparse.Namespace) -> int:
  """Makes all trials that are left; returns the exit status.

  Raises:
    UserError: if the file is no sweep, or a trial cannot be made.
  """
  command_line.check_installed('A sweep', ['optuna'], 'study')
  command_line.check_installed('A sweep', ['matplotlib'], 'train')
  from experiments.studies import sweep_file

  sweep = sweep_file.read(args.file)
  name = args.output or f'runs/{pathlib.PurePath(args.file).stem}'
  if paths.is_remote(name):
    raise UserError(
      f'--output={name}: Optuna keeps its storage in a folder of this machine.',
      2,
    )
  with errors.prefix(f'--output={name}'):
    pathlib.Path(name).mkdir(parents=True, exist_ok=True)
  if not os.access(name, os.W_OK):
    raise UserError(f'--output={name}: nothing can be written there.')
  from experiments.studies import sweep_results, sweep_trials

  folder = pathlib.Path(name)
  trials, counts = sweep_trials.make(sweep, folder)
  files = sweep_results.write(sweep, trials, folder)
  return finite_json.print_results({**counts, **files})
