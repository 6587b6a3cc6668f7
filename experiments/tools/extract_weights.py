"""Takes the weights out of a training checkpoint.

python experiments/tools/extract_weights.py runs/f0 --output=f0.npz
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import jax

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import checkpoint_files
from nfnets import paths
from nfnets import weights as weights_lib

# Where a train state has them.
_NAMES = {'ema': ('ema_params', 'ema_state'), 'raw': ('params', 'state')}


class NoAverageError(ValueError):
  """A checkpoint is of a run that keeps no average of its weights."""


def read_checkpoint(
  path: paths.Name, which: str | None = None
) -> tuple[weights_lib.Weights, str]:
  """Reads the weights of a checkpoint, and nothing else of it.

  Args:
    path: the folder of a step.
    which: 'raw', or 'ema' for the average; None for the average if there is
      one.

  Returns:
    Parameters and state, and which they are.

  Raises:
    checkpoint_files.CheckpointError: if the checkpoint is damaged.
    NoAverageError: if there is no average.
  """

  def choose(full: dict[str, Any]) -> dict[str, Any]:
    nonlocal which
    train_state = full['experiment_module']['train_state']
    has_average = bool(train_state.get('ema_params'))
    if which is None:
      which = 'ema' if has_average else 'raw'
    elif which == 'ema' and not has_average:
      raise NoAverageError(
        f'{path} has no averaged weights, because it was trained with '
        'use_ema=False; --which=raw takes those that there are.'
      )
    chosen = {name: train_state[name] for name in _NAMES[which]}
    return {'experiment_module': {'train_state': chosen}}

  tree = checkpoint_files.read(path, choose)
  train_state = tree['experiment_module']['train_state']
  return weights_lib.Weights(
    *(train_state[name] for name in _NAMES[which])
  ), which


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    'folder',
    metavar='RUN',
    help='the checkpoint_dir of a run, such as runs/f0',
  )
  parser.add_argument(
    '--output',
    required=True,
    metavar='FILE',
    help='what to write: a name that ends in .npz or .safetensors',
  )
  parser.add_argument(
    '--which',
    choices=tuple(_NAMES),
    help='the average of the weights, or the weights themselves (the average, '
    'if there is one)',
  )
  parser.add_argument(
    '--series',
    choices=('latest', 'best'),
    default='latest',
    help='the last checkpoint, or the one that evaluation found best (latest)',
  )
  args = parser.parse_args(argv)
  if not args.output.lower().endswith(('.npz', '.safetensors')):
    parser.error(f'--output={args.output} must end in .npz or .safetensors')
  # The accelerator may be busy with the very run.
  jax.config.update('jax_platforms', 'cpu')
  try:
    paths.path(args.output)
    series = paths.absolute(args.folder) / args.series
  except paths.PathError as error:
    parser.error(str(error))
  try:
    step = checkpoint_files.latest_step(series)
    if step is None:
      return _fail(f'there is no checkpoint in {series}')
    weights, which = read_checkpoint(series / str(step), args.which)
    metadata = {**_metadata(args.folder), 'step': step}
    weights_lib.save_weights(args.output, *weights, metadata=metadata)
    if paths.path(args.output).name == 'weights.safetensors':
      _write_card(args.output, args.folder, metadata)
  except (checkpoint_files.CheckpointError, NoAverageError) as error:
    return _fail(error)
  except OSError as error:
    return _fail(f'{args.output} cannot be written: {error.strerror or error}')
  try:
    match = weights_lib.identify(weights.params)
  except ValueError:
    match = None  # A network with other arguments.
  what = 'averaged' if which == 'ema' else 'raw'
  print(f'took the {what} weights of step {step} of {series}', file=sys.stderr)
  results = {
    'output': args.output,
    'step': step,
    'which': which,
    'model': match and match.name,
    'num_classes': match and match.num_classes,
  }
  print(json.dumps(results))
  return 0


def _metadata(folder: str) -> dict[str, Any]:
  """Returns what the run's own weights say of the network and its classes."""
  try:
    metadata = weights_lib.read_metadata(
      paths.path(folder) / 'weights.safetensors'
    )
  except (OSError, ValueError):
    return {}
  # How good those are, and not these.
  return {k: v for k, v in metadata.items() if not k.startswith('eval_')}


def _write_card(output: str, folder: str, metadata: dict[str, Any]) -> None:
  """Writes the model card, beside weights that have a folder to themselves."""
  from nfnets.inference import card, runs  # Bring TensorFlow.

  try:
    info = runs.read_info(paths.path(folder))
  except runs.RunError:
    info = {}
  # How good the run's own weights are, and not these.
  card.write_beside(output, {**info, 'results': {}}, metadata=metadata)


def _fail(error: Any) -> int:
  print(f'error: {error}', file=sys.stderr)
  return 1


if __name__ == '__main__':
  sys.exit(main())
