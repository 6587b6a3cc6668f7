"""Evaluates embeddings with logistic regression and k-nearest neighbours.

python -m nfnets.probe --weights=F0_haiku.npz --data=flowers

Uses 1, 5, 10, 25 and all training images per class and prints the test accuracy
with 95 % intervals. Each number of images has 5 random draws. Cross-validation
chooses the regularization, which is fixed for one image per class. Embeddings
are cached. The last line of standard output is JSON. The exit status is 0 for
success, 1 for a failure and 2 for a wrong command.
"""

import sys

from nfnets import finite_json
from nfnets.errors import UserError
from nfnets.inference import command_line

_DRAWS = 5


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Run the command; return its exit status."""
  parser = command_line.make_parser('probe', __doc__)
  command_line.add_data_arguments(parser, required=True)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--shots',
    type=lambda text: sorted({*map(command_line.positive, text.split(','))}),
    default=(1, 5, 10, 25),
    metavar='N,N,...',
    help='training images per class (1,5,10,25), before all of them',
  )
  parser.add_argument(
    '--neighbors',
    type=command_line.positive,
    default=5,
    metavar='K',
    help='number of nearest neighbours (5)',
  )
  parser.add_argument(
    '--seed',
    type=command_line.whole_number(0),
    default=0,
    help='random seed (0)',
  )
  command_line.add_batch_size(parser, 32)
  parser.add_argument(
    '--output',
    metavar='FILE',
    help='write the network to a .safetensors or .npz file, with the '
    'regression on all training images as its last layer',
  )
  parser.add_argument(
    '--suspects',
    metavar='FILE',
    help='.csv to write: images with a higher probability for another class '
    'than for their label, the largest margin first; training images by '
    'cross-validation',
  )
  args = parser.parse_args(argv)
  command_line.check_images_can_be_read()
  command_line.check_installed('The probe', ('scipy', 'sklearn'), 'train')
  if args.output is not None:
    command_line.check_output(args.output)
    if not args.output.endswith(('.npz', '.safetensors')):
      raise UserError(
        f'--output={args.output} ends neither in .npz nor in .safetensors.',
        2,
      )
  if args.suspects is not None:
    command_line.check_output(args.suspects, '.csv', '--suspects')
  network = command_line.open_network(args, throughput=True)
  builder = command_line.open_data(args)
  from nfnets.data import builders
  from nfnets.inference import probing

  names = builders.class_names(builder)
  train, test = (
    probing.embed(*(network, builder, split), batch_size=args.batch_size)
    for split in ('train_and_valid', 'test')
  )
  print(
    f'{network.name}: {len(train.labels):,} training and '
    f'{len(test.labels):,} test images of {len(names)} classes\n\n'
    'images per class   logistic regression    nearest neighbours',
    flush=True,
  )
  rows = []
  for row, regression in probing.measure(
    train, test, args.shots, args.neighbors, _DRAWS, args.seed
  ):
    rows.append(row)
    head = regression
    shown = '    '.join(
      f'{x["accuracy"]:6.1%} ({x["low"]:.1%}-{x["high"]:.1%})'.ljust(22)
      for x in (row['logistic'], row['neighbors'])
    )
    print(f'{row["shots"] or "all":>16}   {shown}', flush=True)
  print()
  results = {
    'model': network.name,
    'train_images': len(train.labels),
    'test_images': len(test.labels),
    'num_classes': len(names),
    'results': rows,
  }
  if args.output is not None:
    probing.save(
      args.output,
      *(network, head, names),
      accuracy=row['logistic']['accuracy'],
      trained_on=builders.title(builder),
    )
    results['output'] = args.output
  if args.suspects is not None:
    from nfnets.inference import suspects

    rows = suspects.find(head.evaluate(test), builder, 'test')
    found = probing.cross_validate(train)
    rows += suspects.find(found, builder, 'train_and_valid')
    suspects.write(args.suspects, rows)
    results['suspects'] = args.suspects
  return finite_json.print_results(results)


if __name__ == '__main__':
  sys.exit(main())
