"""Writes a model card: what a network is, how good, and how to use it.

python -m nfnets.card RUN
python -m nfnets.card --weights=FILE --data=flowers --output=FOLDER
"""

import argparse
import json
import sys
from typing import Any

from nfnets.inference import command_line

_DESCRIPTION = """\
Evaluates a network on test images and writes its model card, README.md with the
metadata of the Hugging Face Hub, beside its weights. For the folder of a run it
is the run's own dataset.
"""
_EPILOG = """\
A README.md that is no model card, or was changed by hand, is replaced with
--overwrite only. A folder made with --output can be uploaded as it is:
`hf upload OWNER/NAME FOLDER`; then --weights=hf://OWNER/NAME reads it. The last
line of standard output is JSON. The exit status is 0 if all went well, 1 for a
failure and 2 for a wrong command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser(
    'card', _DESCRIPTION, _EPILOG, weights_required=False
  )
  command_line.add_run_or_data(parser)
  parser.add_argument(
    '--output',
    metavar='FOLDER',
    help='a folder to make, with the card and the weights',
  )
  parser.add_argument(
    '--recorded',
    action='store_true',
    help='evaluate nothing: what training has measured must do',
  )
  parser.add_argument(
    '--overwrite',
    action='store_true',
    help='replace a README.md that is something else',
  )
  command_line.add_batch_size(parser, 32)
  args = parser.parse_args(argv)
  command_line.check_run_or_data(parser, args, ('weights',))
  if args.recorded and args.data is not None:
    parser.error('--data is for an evaluation, and --recorded makes none')
  return command_line.run(_card, args)


def _card(args: argparse.Namespace) -> int:
  command_line.check_images_can_be_read()
  from nfnets import paths, weights
  from nfnets.inference import card, card_text

  try:
    if args.run is not None:
      source = paths.path(args.run) / card.WEIGHTS
      metadata, info, measured = _of_run(args)
    else:
      source = weights.find(args.weights)
      metadata, info, measured = _of_weights(args)
    folder = source.parent
    if args.output is not None:
      folder = paths.path(args.output)
      paths.make_folder(folder)
    elif source.name != card.WEIGHTS:
      raise command_line.CommandError(
        f'A card is of one network, and {folder} may have several: '
        f'--output=FOLDER makes a folder with the card and {card.WEIGHTS}.',
        2,
      )
    # First, since it refuses what must not be replaced.
    text = card_text.make(metadata, info, measured)
    output = card.write(folder, text, args.overwrite)
    if folder != source.parent:
      read = weights.read_weights(source)
      weights.save_weights(folder / card.WEIGHTS, *read, metadata=metadata)
  except paths.PathError:
    raise
  except card.ChangedError as error:
    raise command_line.CommandError(
      f'{error} --overwrite replaces it.'
    ) from error
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise command_line.CommandError(reason) from error
  results: dict[str, Any] = {'output': output}
  if measured is not None:
    total = int(measured.counts.total.sum())
    results |= {
      'dataset': measured.dataset,
      'split': measured.split,
      'images': total,
      'accuracy': float(measured.counts.correct.sum() / max(total, 1)),
    }
  print(json.dumps(results))
  return 0


def _of_run(args: argparse.Namespace) -> tuple[dict, dict, Any]:
  """Returns what is known of a run's network: metadata, run.json, results."""
  from nfnets import paths, weights
  from nfnets.inference import card, runs

  if args.recorded:
    folder = paths.path(args.run)
    info = runs.read_info(folder)
    return weights.read_metadata(folder / card.WEIGHTS), info, None
  run = runs.open_run(args.run)
  measured = _measure(
    *(run.model, run.params, run.state, run.builder, args.batch_size),
    chosen=run.chose_by_test,
  )
  return weights.read_metadata(run.weights), run.info, measured


def _of_weights(args: argparse.Namespace) -> tuple[dict, None, Any]:
  """Returns what is known of weights: metadata, None, results."""
  from nfnets import weights

  network = command_line.open_network(args)
  metadata = weights.read_metadata(args.weights)
  metadata = weights.describe(network.model, **metadata)
  if args.data is None:
    return metadata, None, None
  builder = command_line.open_data(args)
  model, params, state = network.model, network.params, network.state
  measured = _measure(model, params, state, builder, args.batch_size)
  return metadata, None, measured


def _measure(
  model: Any,
  params: Any,
  state: Any,
  builder: Any,
  batch_size: int,
  chosen: bool = False,
) -> Any:
  """Evaluates a network on the test images; returns what the card shows."""
  from nfnets.inference import card, evaluation

  evaluation.check_classes(model, builder)
  found = evaluation.predict(
    *(model, params, state, builder, 'test'), batch_size
  )
  return card.summarize(found, builder, chosen)


if __name__ == '__main__':
  sys.exit(main())
