"""Draws images of a training batch, as the network sees them.

python experiments/tools/show_batch.py --config=NAME --output=batch.png

The images are those that the first rows of the batch of that step hold when the
recipe is trained, after all that is done to them, with their labels.
"""

import io
import json
import math
import pathlib
import sys

from absl import flags
from matplotlib import figure
import ml_collections
import numpy as np

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import command_line, jaxline_compat, recipe
from nfnets import paths
from nfnets.data import builders, dataset
from nfnets.data.batches import Batch

_USAGE = """\
usage: python experiments/tools/show_batch.py --config=NAME --output=FILE
           [options]

  --config=NAME        a recipe, or the path of a config file
  --SETTING=VALUE      another value of a setting, such as
                       --augment_name=cutmix
  --output=FILE        the PNG to write
  --images=N           how many images of the batch to show (16)
  --step=N             the step, from 0, whose batch to show (0)

The last line of standard output is JSON; everything else goes to standard
error.
"""

_OUTPUT = flags.DEFINE_string('output', None, 'The PNG to write.')
_IMAGES = flags.DEFINE_integer('images', 16, 'How many images.', lower_bound=1)
_STEP = flags.DEFINE_integer('step', 0, 'The step, from 0.', lower_bound=0)

_DPI = 100
# Of an image in the drawing, in pixels.
_MIN_SIDE, _MAX_SIDE = 160, 256


def main(argv: list[str]) -> int:
  """Runs the command; returns its exit status.

  0 is success, 1 a failure, 2 a wrong command.
  """
  if '--help' in argv or '-h' in argv:
    print(_USAGE, file=sys.stderr)
    return 0
  try:
    name, config = command_line.parse(argv)
    if not _OUTPUT.value:
      raise command_line.UsageError(f'--output is missing.\n\n{_USAGE}')
    paths.path(_OUTPUT.value)
    images, labels = read(config, _STEP.value, _IMAGES.value)
    ours = config.experiment_kwargs.config
    title = f'{name}, step {_STEP.value}: {ours.train_preproc}'
    if ours.augment_name:
      title += f', {ours.augment_name}'
    paths.write_bytes(_OUTPUT.value, draw(images, labels, title))
  except (
    command_line.UsageError,
    recipe.ConfigError,
    paths.PathError,
  ) as error:
    return _fail(error, 2)
  except (dataset.DatasetError, OSError) as error:
    return _fail(error, 1)
  results = {
    'config': name,
    'output': _OUTPUT.value,
    'step': _STEP.value,
    'images': len(images),
    'image_size': ours.image_size,
  }
  print(json.dumps(results), flush=True)
  return 0


def read(
  config: ml_collections.ConfigDict, step: int, num_images: int
) -> tuple[np.ndarray, list[str]]:
  """Reads the first images of a training batch.

  Args:
    config: JAXline's.
    step: the batch's number, from 0.
    num_images: how many images.

  Returns:
    What the network gets, without normalization: uint8 [num_images, H, W, 3],
    and the label of each, in one line per class that it belongs to.

  Raises:
    ConfigError: if settings are wrong, or the batch has fewer images.
    nfnets.data.dataset.DatasetError: if the dataset cannot be used.
  """
  ours = config.experiment_kwargs.config
  built = recipe.build(ours, jaxline_compat.init_rng(config))
  if built.builder is None:
    raise recipe.ConfigError('fake_data is set: there is nothing to see.')
  batch_size = ours.train_batch_size
  copies = ours.augmentation_multiplicity
  if num_images > batch_size * copies:
    raise recipe.ConfigError(
      f'--images={num_images} is more than the batch has; train_batch_size is '
      f'{batch_size}.'
    )
  # The first of as many processes as leave it just enough of the batch: the
  # rest of it is not even decoded.
  share = -(-num_images // copies)
  while batch_size % share:
    share += 1
  with built.train_batches(
    step, process_index=0, process_count=batch_size // share
  ) as batches:
    batch = dict(next(batches))
  if ours.transpose:
    batch['images'] = batch['images'].transpose(3, 0, 1, 2)
  batch = {key: x[:num_images] for key, x in batch.items()}
  normalized = built.model.normalize(batch['images'].astype(np.float32))
  images = built.model.denormalize(normalized)
  images = np.uint8(np.round(images.clip(0, 255)))
  return images, _labels(batch, builders.class_names(built.builder))


def draw(images: np.ndarray, labels: list[str], title: str) -> bytes:
  """Draws images in a square, each with its label below.

  Args:
    images: uint8 [N, H, W, 3].
    labels: of each image, in one or two lines.
    title: what is above them all.

  Returns:
    A PNG.
  """
  columns = math.ceil(math.sqrt(len(images)))
  rows = math.ceil(len(images) / columns)
  side = min(max(images.shape[1], _MIN_SIDE), _MAX_SIDE) / _DPI
  canvas = figure.Figure(
    figsize=(columns * (side + 0.2), rows * (side + 0.45) + 0.4),
    dpi=_DPI,
    layout='constrained',
  )
  canvas.suptitle(title, fontsize=9)
  for i, axes in enumerate(canvas.subplots(rows, columns, squeeze=False).flat):
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if i < len(images):
      axes.imshow(images[i])
      axes.set_xlabel(labels[i], fontsize=8)
  png = io.BytesIO()
  canvas.savefig(png, format='png')
  return png.getvalue()


def _labels(batch: Batch, names: list[str]) -> list[str]:
  """Returns the labels, such as 'goldfish' or '63 % tench\\n37 % goldfish'."""
  labels = [names[label] for label in batch['labels']]
  if 'ratio' not in batch:
    return labels
  others = [names[label] for label in batch['mix_labels']]
  percents = np.round(100 * batch['ratio']).astype(int)
  return [
    f'{percent} % {a}\n{100 - percent} % {b}' if a != b else f'100 % {a}'
    for a, b, percent in zip(labels, others, percents, strict=True)
  ]


def _fail(error: Exception, status: int) -> int:
  print(f'error: {error}', file=sys.stderr, flush=True)
  return status


if __name__ == '__main__':
  sys.exit(main(sys.argv))
