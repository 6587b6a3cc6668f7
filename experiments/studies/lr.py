"""Learning rate range test (arXiv 1506.01186, section 3.3).

Raises the learning rate from step to step with the training step of a recipe
(optimizer, AGC, augmentation, initial weights), and draws the loss.
"""

import argparse
import io
import math

import numpy as np

from experiments import command_line
from nfnets import finite_json, paths
from nfnets.errors import UserError
from nfnets.inference import command_line as commands

_EPILOG = """\
Any setting of the recipe can be an option: --data=DIR, --weights=W,
--train_batch_size=64, ... See experiments/experiment.py --help.

The suggestion is the rate with the lowest smoothed loss, for a schedule with
warm-up and decay. Also try half of it. The last line of standard output is
JSON.
"""
_SMOOTHING = 0.9  # Decay of the exponential average of the losses.
_TOO_LARGE = 3  # The test ends at this multiple of the lowest loss.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `run`."""
  parser.epilog = _EPILOG
  parser.add_argument(
    '--steps',
    type=commands.whole_number(20),
    default=200,
    metavar='N',
    help='number of training steps (200)',
  )
  for name, default in (('lowest', 1e-3), ('highest', 30.0)):
    parser.add_argument(
      f'--{name}',
      type=float,
      default=default,
      metavar='RATE',
      help=f'{name} learning rate ({default:g})',
    )
  parser.add_argument(
    '--output', default='lr.png', metavar='FILE', help='PNG to write (lr.png)'
  )


def run(args: argparse.Namespace) -> int:
  """Run the test and write the picture; return the exit status.

  Args:
    args: the arguments, and `settings`, the arguments of the recipe.

  Raises:
    UserError: if settings are wrong.
  """
  name, config = command_line.parse(['study.py lr', *args.settings])
  command_line.check_exist(config)
  if not 0 < args.lowest < args.highest:
    raise UserError(
      f'--lowest={args.lowest:g} must be positive and less than '
      f'--highest={args.highest:g}.',
      2,
    )
  commands.check_output(args.output, '.png')
  rates, losses, own = measure(config, args.lowest, args.highest, args.steps)
  smoothed = smooth(losses)
  suggestion = float(f'{rates[np.argmin(smoothed)]:.2g}')
  title = f'{name}: suggested --lr={suggestion:g}, the recipe has {own:g}'
  picture = draw(rates, losses, smoothed, suggestion, own, title)
  paths.write_bytes(args.output, picture)
  return finite_json.print_results(
    {
      'config': name,
      'suggested_lr': suggestion,
      'recipe_lr': own,
      'lowest_loss': float(smoothed.min()),
      'steps': len(losses),
      'output': args.output,
    }
  )


def measure(
  config, lowest: float, highest: float, steps: int
) -> tuple[np.ndarray, np.ndarray, float]:
  """Train with a learning rate that grows from step to step.

  Args:
    config: JAXline's config. It is changed.
    lowest: the first rate, in units of the setting `lr`.
    highest: the last rate.
    steps: maximum number of steps. The test ends if the loss grows too large.

  Returns:
    The rates and the losses, float64 [N], and the recipe's rate.
  """
  # Slow imports, after the checks of the command.
  import jax
  import optax

  from experiments import defaults, jaxline_compat, recipe
  from experiments import step as step_lib

  ours = config.experiment_kwargs.config
  ours.lr_schedule.name = 'constant'
  ours.traced_hyperparams = True  # One compilation for all rates.
  key = jaxline_compat.init_rng(config)
  built = recipe.build(ours, key, num_devices=1)
  weights = defaults.read_weights(built, True) if ours.weights else None
  state = step_lib.init_train_state(
    built.model, built.optimizer, False, key, weights
  )
  train_step = jax.jit(
    step_lib.make_train_step(
      *(built.model, built.optimizer, built.schedule, ours),
      class_weights=built.class_weights(),
    ),
    donate_argnums=0,
  )
  scale = recipe.traced_values(ours)['peak'] / ours.lr
  rates = np.geomspace(lowest, highest, steps)
  losses = []
  with built.train_batches() as batches:
    for i, (rate, batch) in enumerate(zip(rates, batches, strict=False)):
      values = recipe.traced_values(ours)
      values['peak'] = np.float32(rate * scale)
      opt_state = optax.tree.set(state.opt_state, **values)
      state, metrics = train_step(
        state._replace(opt_state=opt_state), batch, jax.random.fold_in(key, i)
      )
      losses.append(float(metrics['train_loss']))
      if not math.isfinite(losses[-1]):
        losses.pop()
        break
      if smooth(losses)[-1] > _TOO_LARGE * smooth(losses).min():
        break
  if len(losses) < 2:
    raise UserError(
      f'The loss is not finite at a rate of {lowest:g}: try a lower --lowest.'
    )
  return rates[: len(losses)], np.array(losses), ours.lr


def smooth(losses) -> np.ndarray:
  """Return the bias-corrected exponential average of losses."""
  average, averages = 0.0, []
  for i, loss in enumerate(losses, start=1):
    average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
    averages.append(average / (1 - _SMOOTHING**i))
  return np.array(averages)


def draw(rates, losses, smoothed, suggestion, own, title: str) -> bytes:
  """Draw losses by learning rate; return a PNG."""
  from matplotlib import figure

  canvas = figure.Figure(figsize=(7, 4), dpi=100, layout='constrained')
  axes = canvas.subplots()
  axes.plot(rates, losses, color='0.8', label='loss of each step')
  axes.plot(rates, smoothed, color='#0072B2', linewidth=2, label='smoothed')
  axes.axvline(suggestion, color='#D55E00', label=f'suggestion: {suggestion:g}')
  axes.axvline(
    own, color='#009E73', linestyle='--', label=f"the recipe's: {own:g}"
  )
  axes.set(xscale='log', xlabel='learning rate', ylabel='training loss')
  axes.set_ylim(0, 1.5 * smoothed[0])
  axes.set_title(title, fontsize=10)
  axes.legend(frameon=False, fontsize=9)
  png = io.BytesIO()
  canvas.savefig(png, format='png')
  return png.getvalue()
