"""Makes a page about a network: accuracy, curves, confusions and mistakes.

python -m nfnets.report runs/flowers

python -m nfnets.report --weights=flowers.safetensors --data=flowers

One HTML file that works offline.
"""

import argparse
import json
import sys

from nfnets.inference import command_line

_DESCRIPTION = """\
Writes a page about a trained network and the images that it is tested on:
accuracy with intervals, curves, the confusion matrix, mistakes as pictures.
"""
_EPILOG = """\
With RUN, the page is RUN/report.html, as training leaves it there, and the
weights and the data are the run's. Otherwise any weights and data with the same
classes will do. The last line of standard output is JSON; everything else goes
to standard error. The exit status is 0 if all went well, 1 for a failure and 2
for a wrong command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser(
    'report', _DESCRIPTION, _EPILOG, weights_required=False
  )
  command_line.add_run_or_data(parser)
  parser.add_argument(
    '--split',
    choices=('test', 'valid'),
    default='test',
    help='what to evaluate on (test)',
  )
  parser.add_argument(
    '--output',
    default='report.html',
    metavar='FILE',
    help='the page to write, without RUN (report.html)',
  )
  command_line.add_batch_size(parser, 32)
  args = parser.parse_args(argv)
  command_line.check_run_or_data(parser, args, ('weights', 'data'))
  return command_line.run(_report, args)


def _report(args: argparse.Namespace) -> int:
  command_line.check_images_can_be_read()
  command_line.check_installed(
    'The report', ('jinja2', 'matplotlib', 'tensorboard'), 'train'
  )
  from nfnets.inference import page, report

  if args.run is not None:
    try:
      output = report.write(args.run, args.batch_size)
    except ValueError as error:
      raise command_line.CommandError(error) from error
  else:
    command_line.check_output(args.output)
    output = args.output
    network = command_line.open_network(args)
    builder = command_line.open_data(args)
    try:
      html = report.make(
        *(network.model, network.params, network.state, builder, args.split),
        train_split='train' if args.split == 'valid' else 'train_and_valid',
        weights_name=args.weights,
        batch_size=args.batch_size,
      )
    except ValueError as error:
      raise command_line.CommandError(error) from error
    page.save(output, html)
  print(json.dumps({'output': output}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
