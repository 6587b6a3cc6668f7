"""Draws augmented images of a training batch with their labels.

python experiments/tools/show_batch.py --config=NAME --output=batch.png

The images are the first rows of the batch that training uses at that step.
"""

import argparse
import functools
import io
import math
import pathlib
import sys

import ml_collections
import numpy as np

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import command_line
from nfnets import finite_json, paths
from nfnets.errors import UserError
from nfnets.inference import command_line as commands

_DPI = 100
# Limits of an image's side in the drawing, in pixels.
_MIN_SIDE, _MAX_SIDE = 160, 256


def main(argv: list[str]) -> int:
  """Run the command; return its exit status.

  0: success; 1: failure; 2: wrong command.
  """
  parser = commands.Parser(
    description=__doc__.split('\n')[0],
    usage='show_batch.py --config=NAME --output=FILE [options] '
    '[--SETTING=VALUE]',
    allow_abbrev=False,
  )
  parser.add_argument('--output', metavar='FILE', help='the PNG to write')
  parser.add_argument(
    '--images',
    type=commands.positive,
    default=16,
    metavar='N',
    help='number of images (16)',
  )
  parser.add_argument(
    '--step',
    type=commands.whole_number(0),
    default=0,
    metavar='N',
    help='step of the batch, from 0 (0)',
  )
  args, rest = parser.parse_known_args(argv[1:])
  command = functools.partial(_show, argv=[argv[0], *rest], parser=parser)
  return commands.run(command, args)


def _show(
  args: argparse.Namespace, argv: list[str], parser: argparse.ArgumentParser
) -> int:
  name, config = command_line.parse(argv, parser)
  command_line.check_exist(config)
  if not args.output:
    raise UserError('--output is missing: the PNG to write.', 2)
  paths.path(args.output)
  images, labels = read(config, args.step, args.images)
  ours = config.experiment_kwargs.config
  title = f'{name}, step {args.step}: {ours.train_preproc}'
  if ours.augment_name:
    title += f', {ours.augment_name}'
  paths.write_bytes(args.output, draw(images, labels, title))
  sizes = {'images': len(images), 'image_size': ours.image_size}
  return finite_json.print_results(
    {'config': name, 'output': args.output, 'step': args.step, **sizes}
  )


def read(
  config: ml_collections.ConfigDict, step: int, num_images: int
) -> tuple[np.ndarray, list[str]]:
  """Read the first images of a training batch.

  Args:
    config: JAXline's config.
    step: number of the batch, from 0.
    num_images: number of images.

  Returns:
    Images before normalization, uint8 [num_images, H, W, 3], and their labels,
    with one line per class.

  Raises:
    UserError: if settings are wrong, the batch has fewer images, or the dataset
      cannot be used.
  """
  # Slow imports, after the checks of the command.
  from experiments import jaxline_compat, recipe
  from nfnets.data import builders

  ours = config.experiment_kwargs.config
  built = recipe.build(ours, jaxline_compat.init_rng(config))
  if built.builder is None:
    raise UserError('fake_data is set, so there are no images.', 2)
  batch_size = built.batch_size
  copies = ours.augmentation_multiplicity
  if num_images > batch_size * copies:
    raise UserError(
      f'--images={num_images} is larger than the batch: train_batch_size is '
      f'{ours.train_batch_size}.',
      2,
    )
  # Act as the first of many processes, which reads only a part of the batch.
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
  names = builders.class_names(built.builder)
  labels = [names[label] for label in batch['labels']]
  if 'ratio' in batch:  # Such as '63 % tench', and '37 % goldfish' below.
    others = [names[label] for label in batch['mix_labels']]
    percents = np.round(100 * batch['ratio']).astype(int)
    labels = [
      f'{n} % {a}\n{100 - n} % {b}' if a != b else f'100 % {a}'
      for a, b, n in zip(labels, others, percents, strict=True)
    ]
  return np.uint8(np.round(batch['images'].clip(0, 255))), labels


def draw(images: np.ndarray, labels: list[str], title: str) -> bytes:
  """Draw images in a grid, with their labels below.

  Args:
    images: uint8 [N, H, W, 3].
    labels: label of each image, in one or two lines.
    title: title of the drawing.

  Returns:
    A PNG.
  """
  from matplotlib import figure

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
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if i < len(images):
      axes.imshow(images[i])
      axes.set_xlabel(labels[i], fontsize=8)
  png = io.BytesIO()
  canvas.savefig(png, format='png')
  return png.getvalue()


if __name__ == '__main__':
  sys.exit(main(sys.argv))
