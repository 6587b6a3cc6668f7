"""Extracts the weights of a training checkpoint.

python experiments/tools/extract_weights.py runs/f0 --output=f0.npz
"""

import argparse
import contextlib
import pathlib
import sys
from typing import TYPE_CHECKING, Any

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nfnets import errors, finite_json, paths
from nfnets.inference import command_line

if TYPE_CHECKING:
  from nfnets import weights as weights_lib

# Fields of the train state.
_NAMES = {'ema': ('ema_params', 'ema_state'), 'raw': ('params', 'state')}


def read_checkpoint(
  path: paths.Name, which: str | None = None
) -> tuple['weights_lib.Weights', str]:
  """Read only the weights of a checkpoint.

  Args:
    path: the folder of a step.
    which: 'raw', or 'ema' for the averaged weights. None: the average if the
      checkpoint has one.

  Returns:
    Parameters and state, and 'raw' or 'ema'.

  Raises:
    UserError: if the checkpoint is damaged or has no average.
  """

  def choose(full: dict[str, Any]) -> dict[str, Any]:
    nonlocal which
    train_state = full['experiment_module']['train_state']
    has_average = bool(train_state.get('ema_params'))
    which = which or ('ema' if has_average else 'raw')
    if which == 'ema' and not has_average:
      raise errors.UserError(
        f'{path} has no averaged weights: use_ema was False. Use --which=raw.'
      )
    chosen = {name: train_state[name] for name in _NAMES[which]}
    return {'experiment_module': {'train_state': chosen}}

  from experiments import checkpoints
  from nfnets import weights as weights_lib

  tree = checkpoints.read(path, choose)
  found = tree['experiment_module']['train_state']
  return weights_lib.Weights(*(found[name] for name in _NAMES[which])), which


def main(argv: list[str] | None = None) -> int:
  """Run the command; return its exit status."""
  parser = command_line.Parser(description=__doc__.split('\n')[0])
  parser.add_argument(
    'folder',
    metavar='RUN',
    help='the checkpoint_dir of a run, such as runs/f0',
  )
  parser.add_argument(
    '--output',
    required=True,
    metavar='FILE',
    help='file to write: .npz or .safetensors',
  )
  parser.add_argument(
    '--which',
    choices=tuple(_NAMES),
    help='averaged or raw weights (the average, if there is one)',
  )
  parser.add_argument(
    '--series',
    choices=('latest', 'best'),
    default='latest',
    help='the last checkpoint, or the best one in evaluation (latest)',
  )
  args = parser.parse_args(argv)
  if not args.output.lower().endswith(('.npz', '.safetensors')):
    parser.error(f'--output={args.output} must end in .npz or .safetensors')
  return command_line.run(_extract, args)


def _extract(args: argparse.Namespace) -> int:
  output, folder = paths.path(args.output), paths.path(args.folder)
  series = paths.absolute(args.folder) / args.series
  if not paths.is_dir(series):
    raise errors.UserError(f'there is no checkpoint in {series}')
  from absl import logging
  import jax

  logging.set_verbosity(logging.WARNING)  # Orbax logs its steps.
  from experiments import checkpoints
  from nfnets import weights as weights_lib

  # The run may be using the accelerator.
  jax.config.update('jax_platforms', 'cpu')
  step = checkpoints.latest_step(series)
  if step is None:
    raise errors.UserError(f'there is no checkpoint in {series}')
  weights, which = read_checkpoint(series / str(step), args.which)
  metadata = {}
  with contextlib.suppress(OSError, ValueError):
    # Network and classes of the run's final weights, without their results.
    metadata = weights_lib.read_metadata(folder / 'weights.safetensors')
  metadata = {k: v for k, v in metadata.items() if not k.startswith('eval_')}
  metadata['step'] = step
  with errors.prefix(f'{args.output} cannot be written'):
    weights_lib.save_weights(args.output, *weights, metadata=metadata)
    if output.name == 'weights.safetensors':
      # Weights of this name have their own folder, which gets a model card.
      from nfnets.inference import card, runs  # Import TensorFlow.

      info = {}
      with contextlib.suppress(errors.UserError):
        info = runs.read_info(folder)
      info = {**info, 'results': {}}
      card.write_beside(args.output, info, metadata=metadata)
  match = None
  with contextlib.suppress(ValueError):  # A network with other arguments.
    match = weights_lib.identify(weights.params)
  kind = 'averaged' if which == 'ema' else 'raw'
  print(
    f'extracted the {kind} weights of step {step} of {series}', file=sys.stderr
  )
  results = {'output': args.output, 'step': step, 'which': which}
  results['model'] = match and match.name
  results['num_classes'] = match and match.num_classes
  return finite_json.print_results(results)


if __name__ == '__main__':
  sys.exit(main())
