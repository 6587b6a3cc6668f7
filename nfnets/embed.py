"""Computes embeddings of images: what the last layer of a network sees.

python -m nfnets.embed --weights=F0_haiku.npz FOLDER --output=embeddings.npz

The model is recognized from its weights and gets the images in its own test
size and preprocessing.
"""

import argparse
import json
import os
import sys

import numpy as np

from nfnets import paths as paths_lib
from nfnets.inference import command_line

_DESCRIPTION = """\
Writes the embeddings of images, the features that the network's last layer
sees, to a NumPy file.
"""
_EPILOG = """\
The file holds embeddings, float32 [N, C]; paths, [N], from the folder on if a
single one is given, else as they are given; and the model's name. Images that
cannot be read are reported and left out. The last line of standard output is
JSON; everything else goes to standard error. The exit status is 0 if all went
well, 1 for a failure, be it of a single image, and 2 for a wrong command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('embed', _DESCRIPTION, _EPILOG)
  command_line.add_image_arguments(parser)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--output', required=True, metavar='FILE', help='the .npz to write'
  )
  return command_line.run(_embed, parser.parse_args(argv))


def _embed(args: argparse.Namespace) -> int:
  command_line.check_images_can_be_read()
  from nfnets.inference import images, predict

  command_line.check_output(args.output)
  paths = images.find_images(*args.paths)
  network = command_line.open_network(args)
  done, embeddings = [], []
  for path, embedding in predict.outputs(
    network.embed, network.model, paths, args.batch_size
  ):
    if isinstance(embedding, str):
      predict.say(f'{path}: {embedding}', sys.stderr)
    else:
      done.append(path)
      embeddings.append(embedding)
  if not done:
    raise command_line.CommandError('no image to embed; nothing is written.')
  folder = args.paths[0]
  if len(args.paths) == 1 and paths_lib.is_dir(folder):
    done = [os.path.relpath(path, folder) for path in done]
  _write(
    args.output,
    embeddings=np.stack(embeddings),
    paths=np.array(done),
    model=np.array(network.model.name),
  )
  failed = len(paths) - len(done)
  results = {
    'model': network.model.name,
    'output': args.output,
    'images': len(done),
    'failed': failed,
    'dimension': len(embeddings[0]),
  }
  predict.say(json.dumps(results), sys.stdout)
  return 1 if failed else 0


def _write(path: str, **arrays: np.ndarray) -> None:
  """Writes an .npz, in full or not at all."""
  # Nothing is being computed any more.
  command_line.let_interrupts_raise()
  try:
    with paths_lib.writing(path) as partial, open(partial, 'xb') as file:
      np.savez(file, **arrays)
  except OSError as error:
    raise command_line.CommandError(f'{path}: {error.strerror}') from error


if __name__ == '__main__':
  sys.exit(main())
