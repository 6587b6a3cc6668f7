"""Writes the embeddings of images, the input of the last layer, to a file.

python -m nfnets.embed --weights=F0_haiku.npz FOLDER --output=embeddings.npz

An .npz contains `embeddings`, float32 [N, C], `paths` [N], `model` and, with
--data, `labels`, int32 [N]. Paths are relative to FOLDER if it is the only
argument. Unreadable images are reported and omitted. A .parquet or .jsonl has a
row for each image, with an error if it is unreadable. The last line of standard
output is JSON. Messages go to standard error. The exit status is 0 for success,
1 if any image failed, and 2 for a wrong command.
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
  """Run the command; return its exit status."""
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
