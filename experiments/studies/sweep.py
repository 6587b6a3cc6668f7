"""Trains one recipe with many settings and seeds, and compares the results.

Each trial is an ordinary run in its own folder. A stopped or killed sweep
continues, and several processes can share one.
"""

import argparse
import os
import pathlib

from nfnets import errors, finite_json, paths
from nfnets.errors import UserError
from nfnets.inference import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of the sub-command."""
  parser.add_argument(
    'file',
    metavar='FILE',
    help='a Python file with a config, axes and seeds, such as '
    'examples/sweeps/batch_size.py (see docs/clipping.md)',
  )
  parser.add_argument(
    '--output',
    metavar='DIR',
    help='the folder of the results (runs/NAME, where NAME is the file)',
  )


def run(args: argparse.Namespace) -> int:
  """Run the remaining trials; return the exit status.

  Raises:
    UserError: if the file does not describe a sweep, or a trial fails.
  """
  command_line.check_installed('A sweep', ['optuna'], 'study')
  command_line.check_installed('A sweep', ['matplotlib'], 'train')
  from experiments.studies import sweep_file

  sweep = sweep_file.read(args.file)
  name = args.output or f'runs/{pathlib.PurePath(args.file).stem}'
  if paths.is_remote(name):
    raise UserError(
      f'--output={name}: Optuna needs a local folder.',
      2,
    )
  with errors.prefix(f'--output={name}'):
    pathlib.Path(name).mkdir(parents=True, exist_ok=True)
  if not os.access(name, os.W_OK):
    raise UserError(f'--output={name}: the folder is not writable.')
  from experiments.studies import sweep_results, sweep_trials

  folder = pathlib.Path(name)
  trials, counts = sweep_trials.make(sweep, folder)
  files = sweep_results.write(sweep, trials, folder)
  return finite_json.print_results({**counts, **files})
