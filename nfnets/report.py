"""Writes an HTML report: accuracy, curves, confusion matrix and mistakes.

python -m nfnets.report runs/flowers
python -m nfnets.report --weights=flowers.safetensors --data=flowers

With RUN, it evaluates the run's weights on the run's data and writes
RUN/report.html, like training. Without RUN, the data must have the classes of
the weights, or some of them. Beside the page, suspects.csv lists the images
whose label the network contradicts, the most confident first. The last line of
standard output is JSON. Messages go to standard error. The exit status is 0 for
success, 1 for a failure and 2 for a wrong command.
"""

import sys

from nfnets import finite_json
from nfnets.inference import command_line


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Run the command; return its exit status."""
  parser = command_line.make_parser('report', __doc__, weights_required=False)
  command_line.add_run_or_data(parser)
  parser.add_argument(
    '--split',
    choices=('test', 'valid'),
    default='test',
    help='split to evaluate (test)',
  )
  parser.add_argument(
    '--output',
    default='report.html',
    metavar='FILE',
    help='the page to write if RUN is not given (report.html)',
  )
  command_line.add_batch_size(parser, 32)
  command_line.add_tta(parser)
  args = parser.parse_args(argv)
  command_line.check_run_or_data(parser, args, ('weights', 'data'))
  command_line.check_images_can_be_read()
  command_line.check_installed(
    'The report', ('jinja2', 'matplotlib', 'tensorboard'), 'train'
  )
  from nfnets.inference import report

  if args.run is not None:
    results = report.write(args.run, args.batch_size, args.tta)
  else:
    command_line.check_output(args.output)
    network = command_line.open_network(args)
    builder = command_line.open_data(args)
    html, found = report.make(
      *(network, builder, args.split),
      train_split='train' if args.split == 'valid' else 'train_and_valid',
      weights_name=args.weights,
      batch_size=args.batch_size,
    )
    results = report.save(args.output, html, found, builder, args.split)
  return finite_json.print_results(results)


if __name__ == '__main__':
  sys.exit(main())
