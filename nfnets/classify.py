"""Says what images show.

python -m nfnets.classify --weights=F0_haiku.npz IMAGE [IMAGE ...]
python -m nfnets.classify --weights=F0_haiku.npz FOLDER --output=classes.csv

The model is recognized from its weights and gets the images in its own test
size and preprocessing. Tells the most probable classes of each image.
"""

import argparse
from collections.abc import Sequence
import functools
import sys
from typing import Any

from nfnets.inference import classes, command_line, networks
from nfnets.inference.many import arguments

_SUFFIXES = ('.csv', '.jsonl', '.parquet')
_DESCRIPTION = """\
Tells the most probable classes of each image: probability, number and name.
"""
_EPILOG = """\
With --json, and in a .jsonl, there is a line for each image, {"image": ...,
"model": ..., "top": [{"label": ..., "name": ..., "probability": ...}, ...]}, or
{"image": ..., "error": ...}; in a .csv or .parquet the same as columns. With
--data there are "true_label", "true_name" and "correct", too. With --output or
--data the last line of standard output is JSON, with the number of images and
the accuracy. Everything but results goes to standard error. The exit status is
0 if all went well, 1 for a failure, be it of a single image, and 2 for a wrong
command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('classify', _DESCRIPTION, _EPILOG)
  arguments.add(parser)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--top',
    type=command_line.positive,
    default=5,
    metavar='K',
    help='how many classes to tell (5); all, if there are fewer',
  )
  parser.add_argument(
    '--threshold',
    type=_probability,
    default=0.0,
    metavar='P',
    help='leave out classes of less than this probability (0)',
  )
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='names of the classes: text with one per line or, in a .json, a list '
    'of names or of [id, name] (those in the file of weights or, for 1000 '
    "classes, ImageNet's)",
  )
  parser.add_argument('--json', action='store_true', help='print JSON lines')
  arguments.add_output(parser, _SUFFIXES, required=False)
  args = parser.parse_args(argv)
  arguments.check(parser, args, _SUFFIXES)
  if args.json and args.output is not None:
    parser.error('--json prints what --output would write')
  return command_line.run(_classify, args)


def _probability(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'{text} is no number from 0 to 1')
  return value


def _classify(args: argparse.Namespace) -> int:
  command_line.check_images_can_be_read()
  from nfnets.inference.many import running

  journal = running.open_journal(args, has_vectors=False)
  if journal is not None and running.is_finished(args, journal):
    return 0
  source = arguments.open_source(args)
  network = command_line.open_network(args, arguments.are_many(args))
  if not network.num_classes:
    raise command_line.CommandError(
      f'{args.weights} has no last layer, so there are no classes. python -m '
      'nfnets.embed computes embeddings.'
    )
  names = _names(args.labels, network)
  if source.class_names is not None:
    _check_classes(source.class_names, network)
  command = running.Command(args, network, source, journal)
  settings = None
  if journal is not None:
    settings = running.settings(
      args, network, top=args.top, threshold=args.threshold, names=[*names]
    )
  command.run(
    network.logits,
    functools.partial(_row, args, network.name, names, source.class_names),
    None if journal else functools.partial(_print, args, len(names)),
    settings,
  )
  if journal is not None:
    command.finish(_table(args, network, source))
  results = command.results()
  if journal is not None:
    results['output'] = args.output
  if journal is not None or source.class_names is not None:
    running.print_results(results)
  return 1 if command.tally.failed else 0


def _row(
  args: argparse.Namespace,
  model: str,
  names: Sequence[str],
  true_names: Sequence[str] | None,
  answer: Any,
) -> dict[str, Any]:
  """Returns what there is to tell of an image."""
  row = {'model': model}
  if true_names is not None:
    row['true_label'] = answer.label
    row['true_name'] = true_names[answer.label]
    row['correct'] = int(answer.output.argmax()) == answer.label
  row['top'] = [
    {'label': label, 'name': names[label], 'probability': probability}
    for label, probability in classes.top_classes(
      answer.output, args.top, args.threshold
    )
  ]
  return row


def _print(
  args: argparse.Namespace, num_classes: int, row: dict[str, Any]
) -> None:
  """Prints a row as JSON or as a few lines."""
  from nfnets.inference.many import running

  if args.json:
    running.print_results(row)
  elif 'error' not in row:
    width = len(str(num_classes - 1))
    title = row['image']
    if 'true_name' in row:
      title += f'  ({classes.on_one_line(row["true_name"])})'
    lines = [
      f'  {one["probability"]:7.2%}  {one["label"]:{width}}  '
      f'{classes.on_one_line(one["name"])}'
      for one in row['top']
    ]
    running.say('\n'.join([title, *lines, '']), sys.stdout)


def _table(
  args: argparse.Namespace, network: networks.Network, source: Any
) -> Any:
  """Returns how rows become columns."""
  from nfnets.inference.many import formats

  count = min(args.top, network.num_classes)
  columns = formats.first_columns(source.class_names is not None)
  if source.class_names is not None:
    columns['correct'] = bool
  kinds = {'label': int, 'name': str, 'probability': float}
  for i in range(1, count + 1):
    columns |= {f'{name}_{i}': kind for name, kind in kinds.items()}
  columns['error'] = str

  def cells(row: dict[str, Any]) -> list[Any]:
    flat = dict(row)
    for i, one in enumerate(row.get('top', ()), 1):
      flat |= {f'{name}_{i}': one[name] for name in kinds}
    return [flat.get(name) for name in columns]

  return formats.Table(columns, cells, '', network.name)


def _names(labels: str | None, network: networks.Network) -> Sequence[str]:
  """Returns the names of the classes."""
  number, own = network.num_classes, network.class_names
  if labels is None and not own and number != 1000:
    print(
      f'The {number} classes have no names here; --labels=FILE gives them.',
      file=sys.stderr,
    )
  try:
    return classes.names(number, own, labels)
  except OSError as error:
    message = f'{labels}: {error.strerror}'
    raise command_line.CommandError(message, 2) from error
  except ValueError as error:
    raise command_line.CommandError(error, 2) from error


def _check_classes(names: Sequence[str], network: networks.Network) -> None:
  """Raises CommandError unless labels of a dataset are those of a network."""
  if len(names) != network.num_classes:
    raise command_line.CommandError(
      f'the dataset has {len(names)} classes, and the network '
      f'{network.num_classes}.'
    )
  known = network.class_names
  if known and tuple(known) != tuple(names):
    i = next(i for i, name in enumerate(names) if name != known[i])
    print(
      f'The names of the classes differ: class {i} is {names[i]} in the '
      f'dataset, and {known[i]} for the network.',
      file=sys.stderr,
    )


if __name__ == '__main__':
  sys.exit(main())
