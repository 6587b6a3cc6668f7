"""What a run wrote for TensorBoard."""

import pathlib

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from nfnets import paths

# TensorBoard uses TensorFlow, which this keeps from the accelerators.
import nfnets.data  # noqa: F401

Scalars = dict[str, tuple[list[int], list[float]]]


def read_scalars(folder: pathlib.Path) -> Scalars:
  """Returns {name: (steps, values)} of the event files in a folder."""
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
  """Returns {'train': scalars, 'eval': scalars} of a run; {} for none."""
  return {
    mode: read_scalars(folder / mode) if paths.is_dir(folder / mode) else {}
    for mode in ('train', 'eval')
  }
