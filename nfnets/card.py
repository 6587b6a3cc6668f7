"""Evaluates a network and writes its model card for the Hugging Face Hub.

python -m nfnets.card RUN
python -m nfnets.card --weights=FILE --data=flowers --output=FOLDER

The card is README.md in the folder of the weights. --overwrite is needed to
replace a README.md that is not a model card of nfnets. Edits of a card are
lost. `hf upload OWNER/NAME FOLDER` uploads a folder made with --output, and
--weights=hf://OWNER/NAME reads it. The last line of standard output is JSON.
The exit status is 0 for success, 1 for a failure and 2 for a wrong command.
"""

import dataclasses
import sys

from nfnets import errors, finite_json
from nfnets.inference import command_line


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Run the command; return its exit status."""
  parser = command_line.make_parser('card', __doc__, weights_required=False)
  command_line.add_run_or_data(parser)
  parser.add_argument(
    '--output',
    metavar='FOLDER',
    help='folder to create, with the card and the weights',
  )
  parser.add_argument(
    '--recorded',
    action='store_true',
    help='do not evaluate: use the results of training',
  )
  parser.add_argument(
    '--overwrite',
    action='store_true',
    help='replace a README.md that is not a model card of nfnets',
  )
  command_line.add_batch_size(parser, 32)
  args = parser.parse_args(argv)
  command_line.check_run_or_data(parser, args, ('weights',))
  if args.recorded and args.data is not None:
    parser.error('--data is for an evaluation; omit --recorded')
  command_line.check_images_can_be_read()
  from nfnets import paths, weights
  from nfnets.inference import card, evaluation, runs

  info = builder = found = None
  chosen = False
  if args.run is not None:
    source = paths.path(args.run) / card.WEIGHTS
    info = runs.read_info(source.parent)
  else:
    with errors.prefix(args.weights):
      source = weights.find(args.weights)
  folder = source.parent
  if args.output is not None:
    folder = paths.path(args.output)
  elif source.name != card.WEIGHTS:
    raise errors.UserError(
      f'A card describes one network, and {folder} may have several. Use '
      f'--output=FOLDER for a folder with the card and {card.WEIGHTS}.',
      2,
    )
  if not args.overwrite and not card.may_write(folder):
    raise errors.UserError(
      f'{folder / card.NAME} is not a model card of nfnets. Use --overwrite '
      'to replace it.'
    )
  if args.run is None:
    network = command_line.open_network(args)
    if args.data is not None:
      builder = command_line.open_data(args)
  elif not args.recorded:
    run = runs.open_run(args.run)
    network, builder, chosen = run.network, run.builder, run.chose_by_test
  with errors.prefix(str(source)):
    metadata = weights.read_metadata(source)
  if args.run is None:  # The evaluated settings take precedence.
    metadata = {**metadata, **weights.describe(network.model)}
  if args.output is not None:
    with errors.prefix(f'--output={args.output}'):
      paths.make_folder(folder)
  if builder is not None:
    found = evaluation.evaluate(network, builder, 'test', args.batch_size)
    found = dataclasses.replace(found, chose_weights=chosen)
  output = card.write(folder, card.make(metadata, info, found))
  if folder != source.parent:
    with errors.prefix(str(source)):
      read = weights.read_weights(source)
    weights.save_weights(folder / card.WEIGHTS, *read, metadata=metadata)
  results = {'output': output}
  if found is not None:
    results |= {
      'dataset': found.dataset,
      'split': found.split,
      'images': found.accuracy['total'],
      'accuracy': found.accuracy['share'],
      **found.macro,
    }
  return finite_json.print_results(results)


if __name__ == '__main__':
  sys.exit(main())
