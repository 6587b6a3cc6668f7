"""Takes the weights out of a training checkpoint.

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

# Where a train state has them.
_NAMES = {'ema': ('ema_params', 'ema_state'), 'raw': ('params', 'state')}


def read_checkpoint(
  path: paths.Name, which: str | None = None
) -> tuple['weights_lib.Weights', str]:
  """Reads the weights of a checkpoint, and nothing else of it.

  Args:
    path: the folder of a step.
    which: 'raw', or 'ema' for the average; None for the average if there is
      one.

  Returns:
    Parameters and state, and which they are.

  Raises:
    UserError: if the checkpoint is damaged, or has no average.
  """

  def choose(full: dict[str, Any]) -> dict[str, Any]:
    nonlocal which
    train_state = full['experiment_module']['train_state']
    has_average = bool(train_state.get('ema_params'))
    which = which or ('ema' if has_average else 'raw')
    if which == 'ema' and not has_average:
      raise errors.UserError(
        f'{path} has no averaged weights, because it was trained with '
        'use_ema=False; --which=raw takes those that there are.'
      )
    chosen = {name: train_state[name] for name in _NAMES[which]}
    return {'experiment_module': {'train_state': chosen}}

  from experiments import checkpoints
  from nfnets import weights as weights_lib

  tree = checkpoints.read(path, choose)
  found = tree['experiment_module']['train_state']
  return weights_lib.Weights(*(found[name] for name in _NAMES[which])), which


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
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
  return command_line.run(_extract, args)


def _extract(args: argparse.Namespace) -> int:
  output, folder = paths.path(args.output), paths.path(args.folder)
  series = paths.absolute(args.folder) / args.series
  if not paths.is_dir(series):
    raise errors.UserError(f'there is no checkpoint in {series}')
  from absl import logging
  import jax

  logging.set_verbosity(logging.WARNING)  # Orbax describes what it does.
  from experiments import checkpoints
  from nfnets import weights as weights_lib

  # The accelerator may be busy with the very run.
  jax.config.update('jax_platforms', 'cpu')
  step = checkpoints.latest_step(series)
  if step is None:
    raise errors.UserError(f'there is no checkpoint in {series}')
  weights, which = read_checkpoint(series / str(step), args.which)
  metadata = {}
  with contextlib.suppress(OSError, ValueError):
    # Network and classes of the run's own weights, not how good these are.
    metadata = weights_lib.read_metadata(folder / 'weights.safetensors')
  metadata = {k: v for k, v in metadata.items() if not k.startswith('eval_')}
  metadata['step'] = step
  with errors.prefix(f'{args.output} cannot be written'):
    weights_lib.save_weights(args.output, *weights, metadata=metadata)
    if output.name == 'weights.safetensors':
      # It has a folder to itself, so a model card goes beside it.
      from nfnets.inference import card, runs  # Bring TensorFlow.

      info = {}
      with contextlib.suppress(errors.UserError):
        info = runs.read_info(folder)
      info = {**info, 'results': {}}
      card.write_beside(args.output, info, metadata=metadata)
  match = None
  with contextlib.suppress(ValueError):  # A network with other arguments.
    match = weights_lib.identify(weights.params)
  kind = 'averaged' if which == 'ema' else 'raw'
  print(f'took the {kind} weights of step {step} of {series}', file=sys.stderr)
  results = {'output': args.output, 'step': step, 'which': which}
  results['model'] = match and match.name
  results['num_classes'] = match and match.num_classes
  return finite_json.print_results(results)


if __name__ == '__main__':
  sys.exit(main())
