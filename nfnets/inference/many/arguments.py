"""The arguments that say which images, and where their results go."""

import argparse
import os
from typing import Any

from nfnets.inference import command_line
from nfnets.inference.many import sources

_SPLITS = ('train', 'valid', 'train_and_valid', 'test')


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that `open_source` reads."""
  parser.add_argument(
    'paths',
    nargs='*',
    metavar='IMAGE',
    help='an image in any format that Pillow reads; a folder: all images in '
    'it, at any depth, but for hidden ones and links to folders; a pattern in '
    "quotes, such as 'photos/**/*.jpg'; or - for an image from standard input",
  )
  parser.add_argument(
    '--list',
    metavar='FILE',
    help='a file with more of these, a path per line or ended by NULs; - for '
    'standard input',
  )
  parser.add_argument(
    '--data',
    metavar='DATA',
    help='instead of IMAGE, images with labels: a folder of images, one folder '
    'inside per class, or the name of a prepared dataset of TFDS',
  )
  parser.add_argument(
    '--split',
    choices=_SPLITS,
    help='which of them (test)',
  )
  parser.add_argument(
    '--data_dir',
    metavar='DIR',
    help="where TFDS's datasets are (TFDS's own default)",
  )
  command_line.add_batch_size(parser, 8)


def add_output(
  parser: argparse.ArgumentParser, suffixes: tuple[str, ...], required: bool
) -> None:
  """Adds `--output` and `--resume`."""
  parser.add_argument(
    '--output',
    required=required,
    metavar='FILE',
    help=f'the file to write: {", ".join(suffixes[:-1])} or {suffixes[-1]}. '
    'What is there is replaced when all is computed',
  )
  parser.add_argument(
    '--resume',
    action='store_true',
    help='go on with an output whose command was stopped; begin, if there is '
    'none',
  )


def check(
  parser: argparse.ArgumentParser,
  args: argparse.Namespace,
  suffixes: tuple[str, ...],
) -> None:
  """Ends the program with a message if arguments do not go together."""
  has_paths = bool(args.paths) or args.list is not None
  if args.data is not None and has_paths:
    parser.error('--data stands instead of IMAGE and --list')
  if args.data is None and not has_paths:
    parser.error(
      'the following arguments are required: IMAGE, or --list or --data'
    )
  if args.data is None and (args.split or args.data_dir):
    parser.error('--split and --data_dir belong to --data')
  if [*args.paths, args.list].count(sources.STDIN) > 1:
    parser.error('standard input, -, can be read once')
  if args.output is not None and not args.output.endswith(suffixes):
    parser.error(
      f'--output={args.output} ends in none of {", ".join(suffixes)}'
    )
  if args.resume and args.output is None:
    parser.error('--resume goes on with the file of --output, which is missing')
  args.split = args.split or 'test'


def open_source(args: argparse.Namespace) -> sources.Source:
  """Returns the images that the arguments name.

  Raises:
    CommandError: if a list or a dataset cannot be read.
  """
  if args.data is not None:
    return _open_data(args)
  if args.list is not None:
    try:
      sources.check_list(args.list)
    except OSError as error:
      message = f'--list={args.list}: {error.strerror}'
      raise command_line.CommandError(message, 2) from error
  return sources.of_paths(args.paths, args.list)


def are_many(args: argparse.Namespace) -> bool:
  """Returns whether images may fill more than a batch, as far as one sees."""
  return (
    args.data is not None
    or args.list is not None
    or len(args.paths) > args.batch_size
    or not all(os.path.isfile(path) for path in args.paths)
  )


def _open_data(args: argparse.Namespace) -> Any:
  builder = command_line.open_data(args)
  from nfnets.data.errors import DatasetError
  from nfnets.inference.many import datasets

  try:
    return datasets.of_builder(builder, args.split)
  except DatasetError as error:
    raise command_line.CommandError(error) from error
