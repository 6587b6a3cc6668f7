"""How signals propagate through networks, by depth (arXiv 2101.08692).

A picture of what enters and leaves residual blocks, and the numbers beside it.
"""

import argparse
from collections.abc import Iterable, Sequence
import csv
import json
import os
import sys
import time

import jax
import jax.numpy as jnp

from experiments.studies import signal_measure, signal_networks
from nfnets import paths, zoo
from nfnets.inference import command_line, networks

_EPILOG = """\
A network is a name of nfnets.list_models() and, after colons, what is changed
in it, such as nf_resnet50:weight_standardization=no:alpha=1. What can be
changed is below, from --activation on; an option is for all networks that have
such a part.

The numbers are written beside the picture, with .csv for its suffix: a row for
each block. The last line of standard output is JSON.
"""
_FORMATS = ('.png', '.pdf', '.svg')
_NOISE = 'noise'
_IMAGE_SIZE = 128  # Pixels.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `run`."""
  parser.epilog = _EPILOG
  parser.add_argument(
    '--models',
    type=lambda text: [_network(part) for part in text.split(',')],
    metavar='NAME[,NAME]',
    help='the networks; with --weights, the one that they are of',
  )
  parser.add_argument(
    '--input',
    default=_NOISE,
    metavar='noise|DATASET',
    help='what is sent through them: pixels from N(0, 1), or training images '
    'of a folder or a prepared dataset of TFDS (noise)',
  )
  parser.add_argument(
    '--data_dir',
    metavar='DIR',
    help="where TFDS's datasets are (TFDS's own default)",
  )
  parser.add_argument(
    '--weights',
    metavar='WEIGHTS',
    help='what `python -m nfnets.classify` takes; without, networks are new',
  )
  parser.add_argument(
    '--image_size',
    type=command_line.positive,
    metavar='N',
    help='side of the images in pixels (128, or the training size if that is '
    'less; with --weights the test size)',
  )
  parser.add_argument(
    '--batch_size',
    type=command_line.positive,
    default=32,
    metavar='N',
    help='how many images (32)',
  )
  parser.add_argument(
    '--seed',
    type=_seed,
    default=0,
    metavar='N',
    help='of the weights and the input (0)',
  )
  parser.add_argument(
    '--output',
    default='signal.png',
    metavar='FILE',
    help='the picture: .png, .pdf or .svg (signal.png)',
  )
  for key, text in signal_networks.HELP.items():
    parser.add_argument(f'--{key}', metavar='VALUE', help=text)


def _seed(text: str) -> int:
  if not text.isdecimal() or int(text) >= 2**31 - 1:
    raise argparse.ArgumentTypeError(f'{text} is not in [0, 2^31 - 1)')
  return int(text)


def _network(text: str) -> str:
  try:
    signal_networks.parse(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return text


def run(args: argparse.Namespace) -> int:
  """Measures networks, and writes picture and table; returns the exit status.

  Raises:
    CommandError: if that cannot be done.
    PathError: if the name of a file cannot be one.
  """
  command_line.check_installed('Drawing', ['matplotlib'], 'train')
  from experiments.studies import signal_picture

  table = _check_output(args.output)
  opened = _open_weights(args) if args.weights else None
  chosen = _choose_networks(args, opened and opened.name)
  weights = opened and signal_measure.Weights(opened.params, opened.state)
  results = []
  for named in chosen:
    start = time.monotonic()
    model = opened.model if opened else zoo.create_model(named.name)
    size = args.image_size or _default_size(model, is_new=not opened)
    images = _images(args, model, size)
    rows = signal_measure.measure(named, model, images, weights, args.seed)
    seconds = time.monotonic() - start
    print(
      f'{named}: {len(rows) - 1} blocks, {len(images)} images of {size} px, '
      f'{seconds:.0f} s',
      file=sys.stderr,
      flush=True,
    )
    results.append(rows)
  _write_table(results, table)
  signal_picture.draw(results, args.output)
  last = {rows[0].network: rows[-1].avg_var for rows in results}
  print(json.dumps({'output': args.output, 'table': table, 'last_var': last}))
  return 0


def _check_output(output: str) -> str:
  """Returns the name of the table that goes with a picture."""
  if not output.endswith(_FORMATS):
    raise command_line.CommandError(
      f'--output={output} does not end in {", ".join(_FORMATS)}.', 2
    )
  table = f'{os.path.splitext(output)[0]}.csv'
  for name in (output, table):
    command_line.check_output(name)
  return table


def _open_weights(args: argparse.Namespace) -> networks.Network:
  names = {text.partition(':')[0] for text in args.models or ()}
  if len(names) > 1:
    raise command_line.CommandError(
      f'--weights={args.weights} are of one network, and --models names '
      f'{len(names)}: {", ".join(sorted(names))}.',
      2,
    )
  args.model = names.pop() if names else None
  return command_line.open_network(args)


def _choose_networks(
  args: argparse.Namespace, of_weights: str | None
) -> list[signal_networks.Named]:
  """Returns the networks that the arguments name, changed as they say."""
  texts = args.models or ([of_weights] if of_weights else [])
  if not texts:
    raise command_line.CommandError('--models or --weights is missing.', 2)
  options = {
    key: getattr(args, key)
    for key in signal_networks.HELP
    if getattr(args, key) is not None
  }
  try:
    found = [signal_networks.parse(text, options) for text in texts]
  except signal_networks.ChangeError as error:
    raise command_line.CommandError(error, 2) from error
  for key in options:
    if not any(signal_networks.takes(named, key) for named in found):
      raise command_line.CommandError(
        f'--{key}: none of these networks has that to change.', 2
      )
  return found


def _default_size(model: zoo.Model, is_new: bool) -> int:
  return min(_IMAGE_SIZE, model.train_size) if is_new else model.test_size


def _images(args: argparse.Namespace, model: zoo.Model, size: int) -> jax.Array:
  """Returns float32 [batch_size, size, size, 3], as the network takes them."""
  if args.input == _NOISE:
    shape = (args.batch_size, size, size, 3)
    return jax.random.normal(jax.random.key(args.seed + 1), shape)
  args.data = args.input
  builder = command_line.open_data(args)
  from nfnets.data import dataset

  try:
    with dataset.train_batches(
      builder,
      'train',
      image_size=size,
      global_batch_size=args.batch_size,
      seed=args.seed,
      skip_corrupt=True,
    ) as batches:
      images = next(batches)['images']
  except dataset.DatasetError as error:
    raise command_line.CommandError(error) from error
  return jnp.asarray(model.normalize(images))


def _write_table(
  results: Iterable[Sequence[signal_measure.Row]], name: str
) -> None:
  with (
    paths.writing(name) as temporary,
    open(temporary, 'w', newline='') as file,
  ):
    writer = csv.writer(file)
    writer.writerow(signal_measure.Row._fields)
    writer.writerows(row for rows in results for row in rows)
