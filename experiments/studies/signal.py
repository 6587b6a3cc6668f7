"""Draws how signals propagate through networks (arXiv 2101.08692).

The picture and a table show means and variances for each residual block.
"""

import argparse
import csv
import dataclasses
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
A network is a name of nfnets.list_models() and, after colons, its changes, such
as nf_resnet50:weight_standardization=no:alpha=1. A change is an argument of the
network's class (alpha, activation, ...) or one of

  scaled_activations=no      activations without gamma
  weight_standardization=no  kernels as drawn
  init=he, init=fan_in       kernels from N(0, 2 / fan_in) or N(0, 1 / fan_in),
                             if they are not standardized
  order=act_norm_conv        the activation before BatchNorm

A table with a row for each block is written beside the picture, as .csv. The
last line of standard output is JSON.
"""
_FORMATS = ('.png', '.pdf', '.svg')
_IMAGE_SIZE = 128  # Pixels.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `run`."""
  parser.epilog = _EPILOG
  add = parser.add_argument
  add(
    '--models',
    metavar='NAME[,NAME]',
    help='the networks; with --weights, variants of their network',
  )
  add(
    '--input',
    default='noise',
    metavar='noise|DATASET',
    help='the input: pixels from N(0, 1), or training images of a folder or '
    'a TFDS dataset (noise)',
  )
  add(
    '--data_dir',
    metavar='DIR',
    help="the TFDS folder (TFDS's default)",
  )
  add(
    '--weights',
    metavar='WEIGHTS',
    help='weights as in `python -m nfnets.classify` (new weights)',
  )
  add(
    '--image_size',
    type=command_line.positive,
    metavar='N',
    help='image size in pixels (128, or the training size if it is smaller; '
    'with --weights the test size)',
  )
  command_line.add_batch_size(parser, 32)
  add(
    '--seed',
    type=command_line.whole_number(0, 2**31 - 2),
    default=0,
    metavar='N',
    help='seed of the weights and the input (0)',
  )
  add(
    '--output',
    default='signal.png',
    metavar='FILE',
    help='the picture: .png, .pdf or .svg (signal.png)',
  )


def run(args: argparse.Namespace) -> int:
  """Measure networks, write the picture and the table; return the exit status.

  Raises:
    UserError: if an argument is wrong.
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
        f'--weights={args.weights} are weights of one network, and --models '
        f'has {len(names)}: {", ".join(sorted(names))}.',
        2,
      )
    args.model = names.pop() if names else None
    opened = command_line.open_network(args)
    texts = texts or [opened.name]
  if not texts:
    raise UserError('--models or --weights is missing.', 2)
  with errors.prefix('--models', status=2):
    chosen = [signal_measure.parse(text) for text in texts]
  results = []
  for named in chosen:
    start = time.monotonic()
    arguments = {**opened.model.overrides} if opened else {}
    arguments |= named.arguments
    model = zoo.create_model(named.name, **arguments)
    if opened:
      model = dataclasses.replace(model, entry=opened.model.entry)
    size = min(_IMAGE_SIZE, model.train_size)
    size = args.image_size or (model.test_size if opened else size)
    images = _images(args, model, size)
    weights = opened and (opened.params, opened.state)
    rows = signal_measure.measure(named, model, images, weights, args.seed)
    print(
      f'{named.text}: {len(rows) - 1} blocks, {len(images)} images, {size} px, '
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
  """Return normalized images, float32 [batch_size, size, size, 3]."""
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
