"""Writes the embeddings of images to a file: what a network's last layer sees.

python -m nfnets.embed --weights=F0_haiku.npz FOLDER --output=embeddings.npz

An .npz holds embeddings, float32 [N, C]; paths, [N], from the folder on if a
single one is given, else as they are given; labels, int32 [N], with --data; and
the model's name. Images that cannot be read are reported and left out. A
.parquet or .jsonl has a row for every image, and its error if there is one. The
last line of standard output is JSON; everything else goes to standard error.
The exit status is 0 if all went well, 1 for a failure, be it of a single image,
and 2 for a wrong command.
"""

import os
import sys
from typing import Any

from nfnets import finite_json
from nfnets import paths as paths_lib
from nfnets.inference import command_line
from nfnets.inference.many import sources

_SUFFIXES = ('.npz', '.parquet', '.jsonl')


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('embed', __doc__)
  sources.add_arguments(parser, _SUFFIXES, has_output=True)
  command_line.add_runtime_arguments(parser)
  args = parser.parse_args(argv)
  sources.check_arguments(parser, args, _SUFFIXES)
  command_line.check_images_can_be_read()
  from nfnets.inference.many import formats, running

  journal = formats.open_journal(args)
  if formats.is_finished(args, journal):
    return 0
  source = sources.open_source(args)
  network = command_line.open_network(args, sources.may_be_many(args))

  def row(output: Any, label: int | None) -> dict[str, Any]:
    row = {}
    if source.class_names is not None:
      row = {'true_label': label, 'true_name': source.class_names[label]}
    return {**row, 'embedding': formats.encode(output)}

  folder = args.paths[0] if len(args.paths) == 1 and not args.list else None
  is_folder = folder is not None and paths_lib.is_dir(folder)
  results = running.run(
    *(args, network, source, journal, network.embed, row),
    formats.Table(
      {
        **formats.label_columns(source.class_names is not None),
        'error': 'string',
      },
      dict,
      network.name,
      has_vectors=True,
      folder=os.path.join(folder, '') if is_folder else '',
    ),
  )
  finite_json.print_results(results)
  return 1 if results['failed'] else 0


if __name__ == '__main__':
  sys.exit(main())
