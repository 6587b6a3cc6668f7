"""The curves that a run leaves, and its evaluations during training."""

import collections
from collections.abc import Mapping
import pathlib
from typing import NamedTuple

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from nfnets import paths

# TensorBoard uses TensorFlow, which this keeps from the accelerators.
import nfnets.data  # noqa: F401

Scalars = dict[str, tuple[list[int], list[float]]]


def read_scalars(folder: pathlib.Path) -> Scalars:
  """Return {name: (steps, values)} of a folder's event files; {} for none."""
  if not paths.is_dir(folder):
    return {}
  # TensorFlow 2 writes scalars as tensors; 0 keeps every point.
  events = event_accumulator.EventAccumulator(str(folder), {'tensors': 0})
  events.Reload()
  curves = {}
  for name in events.Tags()['tensors']:
    # A step that was made again after a stop counts once, as it was last.
    points = {
      event.step: tensor_util.make_ndarray(event.tensor_proto).item()
      for event in events.Tensors(name)
    }
    curves[name] = (sorted(points), [points[step] for step in sorted(points)])
  return curves


def read_run(folder: pathlib.Path) -> dict[str, Scalars]:
  """Return {'train': scalars, 'eval': scalars} of a run; {} for none."""
  return {mode: read_scalars(folder / mode) for mode in ('train', 'eval')}


class Row(NamedTuple):
  """One evaluation during training (of the averaged weights, if there are any).

  Both losses are means over examples, without augmentation, label smoothing,
  dropout and stochastic depth.

  Attributes:
    epoch: Epochs of training, a fraction.
    step: Number of updates.
    train_loss: Mean loss in nats on a fixed sample of the training images.
    valid_loss: Mean loss in nats on the evaluated split.
    accuracy: Top-1 accuracy on the evaluated split, in [0, 1].
    learning_rate: Learning rate of the last update.
    is_best: Whether no other row is better; during training, none so far.
  """

  epoch: float
  step: int
  train_loss: float
  valid_loss: float
  accuracy: float
  learning_rate: float
  is_best: bool

  @classmethod
  def of(cls, step: int, metrics: Mapping[str, float], is_best: bool) -> 'Row':
    """Select the fields from the metrics of a step."""
    # The averaged weights are kept, where there is an average.
    prefix = 'eval_ema_' if 'eval_ema_loss' in metrics else 'eval_'
    return cls(
      metrics['epoch'],
      step,
      metrics['train_sample_loss'],
      metrics[f'{prefix}loss'],
      metrics[f'{prefix}top_1_acc'],
      metrics['learning_rate'],
      is_best,
    )


def rows(scalars: Scalars, best_step: int | None = None) -> list[Row]:
  """Return the evaluations during training from the curves in `eval/`."""
  points = collections.defaultdict(dict)
  for name, curve in scalars.items():
    for step, value in zip(*curve, strict=True):
      points[step][name] = value
  return [
    Row.of(step, metrics, step == best_step)
    for step, metrics in sorted(points.items())
    if 'train_sample_loss' in metrics
  ]
