"""How signals propagate through networks, by depth (arXiv 2101.08692).

A picture of what enters and leaves residual blocks, and the numbers beside it.
"""

import argparse
import csv
import os
import sys
import time

import jax
import jax.numpy as jnp

from experiments.studies import signal_measure
from nfnets import errors, finite_json, paths, zoo
from nfnets.errors import UserError
from nfnets.inference import command_line

_EPILOG = """\
A network is a name of nfnets.list_models() and, after colons, what is changed
in it, such as nf_resnet50:weight_standardization=no:alpha=1. What can be
changed is below, from --activation on; an option is for all networks that have
such a part.

The numbers are written beside the picture, with .csv for its suffix: a row for
each block. The last line of standard output is JSON.
"""
_FORMATS = ('.png', '.pdf', '.svg')
_IMAGE_SIZE = 128  # Pixels.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `run`."""
  parser.epilog = _EPILOG
  add = parser.add_argument
  add(
    '--models',
    metavar='NAME[,NAME]',
    help='the networks; with --weights, the one that they are of',
  )
  add(
    '--input',
    default='noise',
    metavar='noise|DATASET',
    help='what is sent through them: pixels from N(0, 1), or training images '
    'of a folder or a prepared dataset of TFDS (noise)',
  )
  add(
    '--data_dir',
    metavar='DIR',
    help="where TFDS's datasets are (TFDS's own default)",
  )
  add(
    '--weights',
    metavar='WEIGHTS',
    help='what `python -m nfnets.classify` takes; without, networks are new',
  )
  add(
    '--image_size',
    type=command_line.positive,
    metavar='N',
    help='side of the images in pixels (128, or the training size if that is '
    'less; with --weights the test size)',
  )
  command_line.add_batch_size(parser, 32)
  add(
    '--seed',
    type=command_line.whole_number(0, 2**31 - 2),
    default=0,
    metavar='N',
    help='of the weights and the input (0)',
  )
  add(
    '--output',
    default='signal.png',
    metavar='FILE',
    help='the picture: .png, .pdf or .svg (signal.png)',
  )
  for key, (text, _) in signal_measure.SWITCHES.items():
    add(f'--{key}', metavar='VALUE', help=text)


def run(args: argparse.Namespace) -> int:
  """Measures networks, and writes picture and table; returns the exit status.

  Raises:
    UserError: if that cannot be done.
  """
  command_line.check_installed('Drawing', ['matplotlib'], 'train')
  from experiments.studies import signal_picture

  if not args.output.endswith(_FORMATS):
    formats = ', '.join(_FORMATS)
    raise UserError(f'--output={args.output} does not end in {formats}.', 2)
  table = f'{os.path.splitext(args.output)[0]}.csv'
  for name in (args.output, table):
    command_line.check_output(name)
  opened, texts = None, args.models.split(',') if args.models else []
  if args.weights:
    names = {text.partition(':')[0] for text in texts}
    if len(names) > 1:
      raise UserError(
        f'--weights={args.weights} are of one network, and --models names '
        f'{len(names)}: {", ".join(sorted(names))}.',
        2,
      )
    args.model = names.pop() if names else None
    opened = command_line.open_network(args)
    texts = texts or [opened.name]
  if not texts:
    raise UserError('--models or --weights is missing.', 2)
  options = {key: getattr(args, key) for key in signal_measure.SWITCHES}
  options = {key: text for key, text in options.items() if text is not None}
  with errors.prefix('--models', status=2):
    chosen = [signal_measure.parse(text, options) for text in texts]
  for key in options:
    if not any(key in named.changes for named in chosen):
      raise UserError(f'--{key}: none of these networks has that to change.', 2)
  results = []
  for named in chosen:
    start = time.monotonic()
    model = opened.model if opened else zoo.create_model(named.name)
    size = min(_IMAGE_SIZE, model.train_size)
    size = args.image_size or (model.test_size if opened else size)
    images = _images(args, model, size)
    weights = opened and (opened.params, opened.state)
    rows = signal_measure.measure(named, model, images, weights, args.seed)
    print(
      f'{named}: {len(rows) - 1} blocks, {len(images)} images of {size} px, '
      f'{time.monotonic() - start:.0f} s',
      file=sys.stderr,
      flush=True,
    )
    results.append(rows)
  with paths.writing(table) as temporary, open(temporary, 'w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(signal_measure.Row._fields)
    writer.writerows(finite_json.finite([r for rows in results for r in rows]))
  signal_picture.draw(results, args.output)
  last = {rows[0].network: rows[-1].avg_var for rows in results}
  return finite_json.print_results(
    {'output': args.output, 'table': table, 'last_var': last}
  )


def _images(args: argparse.Namespace, model: zoo.Model, size: int) -> jax.Array:
  """Returns float32 [batch_size, size, size, 3], as the network takes them."""
  if args.input == 'noise':
    shape = (args.batch_size, size, size, 3)
    return jax.random.normal(jax.random.key(args.seed + 1), shape)
  from nfnets.data import dataset

  options = dataset.Options(
    size, args.batch_size, seed=args.seed, skip_corrupt=True
  )
  builder = dataset.load_builder(args.input, args.data_dir)
  with dataset.train_batches(builder, 'train', options) as batches:
    images = next(batches)['images']
  return jnp.asarray(model.normalize(images))
