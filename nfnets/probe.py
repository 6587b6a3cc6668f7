"""Says what a network's features are worth for images of your own, in seconds.

python -m nfnets.probe --weights=F0_haiku.npz --data=flowers

Nothing is trained but a last layer.
"""

import argparse
import json
import sys
from typing import Any

from nfnets.inference import command_line, networks

_DRAWS = 5
_DESCRIPTION = """\
Computes the embeddings of the images once, then fits logistic regression and
asks the nearest neighbours, with a few images per class and with all of them.
Prints the accuracy on the test images, with 95 % intervals.
"""
_EPILOG = f"""\
For each number of images per class there are {_DRAWS} random draws. The
strength of the regression is chosen by cross-validation, or fixed where a class
has one image. Embeddings are kept in the user's cache. The last line of
standard output is JSON. The exit status is 0 if all went well, 1 for a failure
and 2 for a wrong command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('probe', _DESCRIPTION, _EPILOG)
  command_line.add_data_arguments(parser, required=True)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--shots',
    type=_shots,
    default=(1, 5, 10, 25),
    metavar='N,N,...',
    help='how many training images per class (1,5,10,25); then all of them',
  )
  parser.add_argument(
    '--neighbors',
    type=command_line.positive,
    default=5,
    metavar='K',
    help='how many nearest neighbours vote (5)',
  )
  parser.add_argument(
    '--seed', type=_seed, default=0, help='decides on the draws (0)'
  )
  command_line.add_batch_size(parser, 32)
  parser.add_argument(
    '--output',
    metavar='FILE',
    help='.safetensors or .npz to write: the network, with the regression on '
    'all training images as its last layer',
  )
  return command_line.run(_probe, parser.parse_args(argv))


def _shots(text: str) -> tuple[int, ...]:
  return tuple(sorted({command_line.positive(n) for n in text.split(',')}))


def _seed(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f'{text} is no whole number from 0 on')
  return int(text)


def _probe(args: argparse.Namespace) -> int:
  command_line.check_images_can_be_read()
  command_line.check_installed('The probe', ('scipy', 'sklearn'), 'train')
  if args.output is not None:
    command_line.check_output(args.output)
    if not args.output.endswith(('.npz', '.safetensors')):
      raise command_line.CommandError(
        f'--output={args.output} ends neither in .npz nor in .safetensors.', 2
      )
  network = command_line.open_network(args, throughput=True)
  builder = command_line.open_data(args)
  try:
    results = _measure(args, network, builder)
  except ValueError as error:
    raise command_line.CommandError(error) from error
  print(json.dumps(results))
  return 0


def _measure(
  args: argparse.Namespace, network: networks.Network, builder: Any
) -> dict[str, Any]:
  """Prints the table; returns what the command ends with."""
  from nfnets.data import builders
  from nfnets.inference import embeddings, probing

  model = network.model
  names = builders.class_names(builder)
  train, test = (
    embeddings.embed(
      *(network, builder, split),
      batch_size=args.batch_size,
    )
    for split in ('train_and_valid', 'test')
  )
  print(
    f'{model.name}: {len(train.labels):,} training and '
    f'{len(test.labels):,} test images of {len(names)} classes\n\n'
    'images per class   logistic regression    nearest neighbours',
    flush=True,
  )
  rows = []
  for row in probing.measure(
    train, test, len(names), args.shots, args.neighbors, _DRAWS, args.seed
  ):
    rows.append(
      {
        'shots': row.shots,
        'draws': row.draws,
        'logistic': row.logistic._asdict(),
        'neighbors': row.neighbors._asdict(),
      }
    )
    shown = '    '.join(_show(x) for x in (row.logistic, row.neighbors))
    print(f'{row.shots or "all":>16}   {shown}', flush=True)
  print()
  results = {
    'model': model.name,
    'train_images': len(train.labels),
    'test_images': len(test.labels),
    'num_classes': len(names),
    'results': rows,
  }
  if args.output is not None:
    probing.save(
      args.output,
      *(model, network.params, network.state, row.head, names),
      accuracy=row.logistic.accuracy,
      trained_on=builders.title(builder),
    )
    results['output'] = args.output
  return results


def _show(one: Any) -> str:
  return f'{one.accuracy:6.1%} ({one.low:.1%}-{one.high:.1%})'.ljust(22)


if __name__ == '__main__':
  sys.exit(main())
