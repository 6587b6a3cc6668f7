"""Prints the most probable classes of each image.

python -m nfnets.classify --weights=F0_haiku.npz IMAGE [IMAGE ...]
python -m nfnets.classify --weights=F0_haiku.npz FOLDER --output=classes.csv

With --json and in a .jsonl file, each image has one line, {"image": ...,
"model": ..., "top": [{"label": ..., "name": ..., "probability": ...}, ...]} or
{"image": ..., "error": ...}. A .csv or .parquet file has the same as columns.
--data adds "true_label", "true_name" and "correct". With --output or --data,
the last line of standard output is JSON with the number of images and the
accuracy. Messages go to standard error. The exit status is 0 for success, 1 if
any image failed, and 2 for a wrong command.
"""

import sys
from typing import Any

from nfnets import finite_json, messages
from nfnets.errors import UserError
from nfnets.inference import classes, command_line
from nfnets.inference.many import sources

_SUFFIXES = ('.csv', '.jsonl', '.parquet')


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Run the command; return its exit status."""
  parser = command_line.make_parser('classify', __doc__)
  sources.add_arguments(parser, _SUFFIXES, has_output=False)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--top',
    type=command_line.positive,
    default=5,
    metavar='K',
    help='number of classes per image (5)',
  )
  parser.add_argument(
    '--threshold',
    type=float,
    default=0.0,
    metavar='P',
    help='omit classes with a lower probability (0)',
  )
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='class names: a text file with one name per line, or a .json with a '
    'list of names or of [id, name] (the names in the weights, or ImageNet for '
    '1000 classes)',
  )
  parser.add_argument('--json', action='store_true', help='print JSON lines')
  args = parser.parse_args(argv)
  sources.check_arguments(parser, args, _SUFFIXES)
  if args.json and args.output is not None:
    parser.error('--json prints the rows; omit --output')
  if not 0 <= args.threshold <= 1:
    parser.error(f'--threshold={args.threshold:g} is no number from 0 to 1')
  command_line.check_images_can_be_read()
  from nfnets.inference.many import formats, running

  journal = formats.open_journal(args)
  if formats.is_finished(args, journal):
    return 0
  source = sources.open_source(args)
  network = command_line.open_network(args, sources.may_be_many(args))
  if not network.num_classes:
    raise UserError(
      f'{args.weights} has no last layer and no classes. Use python -m '
      'nfnets.embed to compute embeddings.'
    )
  number, own = network.num_classes, network.class_names
  if not (args.labels or own or number == 1000):
    print(
      f'The {number} classes have no names here; --labels=FILE gives them.',
      file=sys.stderr,
    )
  names = classes.names(number, own, args.labels)
  has_labels = source.class_names is not None
  if source.label_names is not None:
    named = own if args.labels is None else names
    match = classes.match(source.label_names, named, number, args.data)
    if match.note:
      print(match.note, file=sys.stderr)

  def row(output: Any, label: int | None) -> dict[str, Any]:
    row = {'model': network.name}
    if has_labels:
      row['true_label'] = match.logits[label]
      row['true_name'] = source.class_names[label]
      row['correct'] = int(output.argmax()) == row['true_label']
    best = classes.top_classes(output, args.top, args.threshold)
    row['top'] = [
      {'label': label, 'name': names[label], 'probability': probability}
      for label, probability in best
    ]
    return row

  def print_row(row: dict[str, Any]) -> None:
    if args.json:
      running.say(finite_json.dumps(row), sys.stdout)
    elif 'error' not in row:
      title, width = row['image'], len(str(number - 1))
      if has_labels:
        title += f'  ({messages.printable(row["true_name"])})'
      lines = [
        f'  {one["probability"]:7.2%}  {one["label"]:{width}}  '
        f'{messages.printable(one["name"])}'
        for one in row['top']
      ]
      running.say('\n'.join([title, *lines, '']), sys.stdout)

  columns = formats.label_columns(has_labels)
  columns |= {'correct': 'bool'} if has_labels else {}
  kinds = {'label': 'int32', 'name': 'string', 'probability': 'double'}
  for i in range(1, min(args.top, number) + 1):
    columns |= {f'{name}_{i}': kind for name, kind in kinds.items()}

  def cells(row: dict[str, Any]) -> dict[str, Any]:
    flat = dict(row)
    for i, one in enumerate(row.get('top', ()), 1):
      flat |= {f'{name}_{i}': one[name] for name in kinds}
    return flat

  results = running.run(
    *(args, network, source, journal, network.logits, row),
    formats.Table({**columns, 'error': 'string'}, cells, network.name),
    print_row,
    top=args.top,
    threshold=args.threshold,
    names=[*names],
  )
  if journal is not None or has_labels:
    finite_json.print_results(results)
  return 1 if results['failed'] else 0


if __name__ == '__main__':
  sys.exit(main())
