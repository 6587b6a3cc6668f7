"""Computes embeddings of images: what the last layer of a network sees.

python -m nfnets.embed --weights=F0_haiku.npz FOLDER --output=embeddings.npz

The model is recognized from its weights and gets the images in its own test
size and preprocessing.
"""

import argparse
import os
import sys
from typing import Any

from nfnets import paths as paths_lib
from nfnets.inference import command_line
from nfnets.inference.many import arguments

_SUFFIXES = ('.npz', '.parquet', '.csv', '.jsonl')
_DESCRIPTION = """\
Writes the embeddings of images, the features that the network's last layer
sees, to a file.
"""
_EPILOG = """\
An .npz holds embeddings, float32 [N, C]; paths, [N], from the folder on if a
single one is given, else as they are given; labels, int32 [N], with --data; and
the model's name. Images that cannot be read are reported and left out. A
.parquet, .csv or .jsonl has a row for every image, and its error if there is
one. The last line of standard output is JSON; everything else goes to standard
error. The exit status is 0 if all went well, 1 for a failure, be it of a single
image, and 2 for a wrong command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('embed', _DESCRIPTION, _EPILOG)
  arguments.add(parser)
  command_line.add_runtime_arguments(parser)
  arguments.add_output(parser, _SUFFIXES, required=True)
  args = parser.parse_args(argv)
  arguments.check(parser, args, _SUFFIXES)
  return command_line.run(_embed, args)


def _embed(args: argparse.Namespace) -> int:
  command_line.check_images_can_be_read()
  from nfnets.inference.many import formats, running

  journal = running.open_journal(args, has_vectors=True)
  if running.is_finished(args, journal):
    return 0
  source = arguments.open_source(args)
  network = command_line.open_network(args, arguments.are_many(args))
  command = running.Command(args, network, source, journal)

  def row(answer: Any) -> dict[str, Any]:
    if source.class_names is None:
      return {}
    name = source.class_names[answer.label]
    return {'true_label': answer.label, 'true_name': name}

  command.run(network.embed, row, settings=running.settings(args, network))
  results = command.results()
  dimension = journal.dimension
  if not results['images']:
    journal.remove()
    raise command_line.CommandError('no image to embed; nothing is written.')
  columns = formats.first_columns(source.class_names is not None)
  columns['error'] = str
  folder = args.paths[0] if len(args.paths) == 1 and not args.list else None
  is_folder = folder is not None and paths_lib.is_dir(folder)
  command.finish(
    formats.Table(
      columns,
      lambda row: [row.get(name) for name in columns],
      os.path.join(folder, '') if is_folder else '',
      network.name,
    )
  )
  running.print_results(
    {**results, 'output': args.output, 'dimension': dimension}
  )
  return 1 if command.tally.failed else 0


if __name__ == '__main__':
  sys.exit(main())
