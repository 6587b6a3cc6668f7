"""What a run says to people at its end."""

import datetime
import shlex
from typing import Any

from experiments import checkpoint_files
from nfnets import paths


def describe(
  argv: list[str], config: Any, results: dict[str, Any], seconds: float
) -> str:
  """Returns a few lines: how it went, where the results are, what comes next.

  Args:
    argv: the command line.
    config: JAXline's.
    results: what the command prints as JSON.
    seconds: how long it took.
  """
  mode, step = results['mode'], results.get('step')
  took = f'{datetime.timedelta(seconds=round(seconds))}'
  if results.get('stopped_by_sigterm'):
    done = f'Stopped at step {step} after {took}; the same command goes on.'
  elif mode == 'eval':
    done = f'Evaluated in {took}.'
  else:
    done = f'Trained to step {step} in {took}'
    speed = results.get('images_per_second')
    done += f', {speed:.0f} images per second.' if speed else '.'
  lines = [done]
  if 'checkpoint_dir' not in results:
    return '\n'.join([*lines, *_accuracies(results)])
  folder = paths.path(results['checkpoint_dir'])
  lines += _accuracies(results)
  best = checkpoint_files.best(folder)
  if best is not None:
    metric = config.best_model_eval_metric
    lines.append(f'Best {metric} so far: {best.value:.4g}, at step {best.step}')
  lines.append(f'Results: {folder} (checkpoints, TensorBoard curves)')
  if 'report' in results:
    lines.append(f'Report: {results["report"]}')
  if mode == 'train':
    again = [
      a for a in argv if not a.startswith(('--jaxline_mode', '--weights='))
    ]
    if config.experiment_kwargs.config.weights:
      again.append('--weights=')  # Those that training ended with instead.
    again = shlex.join([*again, '--jaxline_mode=eval'])
    lines.append(f'Evaluate: python {again}')
  if paths.is_file(folder / 'weights.safetensors'):
    name = shlex.quote(str(folder))
    lines.append(f'Classify: python -m nfnets.classify --weights={name} IMAGE')
  return '\n'.join(lines)


def _accuracies(results: dict[str, Any]) -> list[str]:
  """Returns a line for each accuracy there is."""
  lines = []
  for key, what in (
    ('test_top_1_acc', 'Test accuracy'),
    ('eval_top_1_acc', 'Accuracy'),
    ('eval_ema_top_1_acc', 'Accuracy of the averaged weights'),
  ):
    if key in results:
      number = results[f'{key.partition("_")[0]}_num_examples']
      line = f'{what}: {results[key]:.2%} of {number} examples'
      if key.startswith('test') and results['test_split'] != 'test':
        line += f' ({results["test_split"]})'
      lines.append(line)
  return lines
