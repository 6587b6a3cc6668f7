"""Trains one recipe with many settings and seeds, and compares.

A trial is an ordinary run in a folder of its own; a sweep that was stopped,
even killed, goes on where it was, and several processes may share one.
"""

import argparse
import json
import os
import pathlib

from nfnets import paths
from nfnets.inference import command_line
from nfnets.inference.command_line import CommandError


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
    CommandError: if the file is no sweep, or a trial cannot be made.
  """
  command_line.check_installed('A sweep', ['optuna'], 'study')
  command_line.check_installed('A sweep', ['matplotlib'], 'train')
  # These import them, and JAX, which takes a second.
  from experiments.studies import sweep_file, sweep_trials

  sweep = sweep_file.read(args.file)
  folder = _make_folder(args.output or f'runs/{sweep_file.name(args.file)}')
  trials = sweep_trials.Trials(sweep, folder)

  from experiments.studies import sweep_results, sweep_training

  stopped = sweep_training.make_trials(sweep, trials)
  results = {
    'trials': len(trials.all()),
    'left': trials.num_left(),
    **sweep_results.write(sweep, trials.all(), folder),
    'stopped_by_sigterm': stopped,
  }
  print(json.dumps(results))
  return 0


def _make_folder(name: str) -> pathlib.Path:
  if paths.is_remote(name):
    raise CommandError(
      f'--output={name}: Optuna keeps its storage in a folder of this machine.',
      2,
    )
  folder = pathlib.Path(name)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise CommandError(f'--output={name}: {error.strerror}.') from error
  if not os.access(folder, os.W_OK):
    raise CommandError(f'--output={name}: nothing can be written there.')
  return folder
