"""Says what images show.

python -m nfnets.classify --weights=F0_haiku.npz IMAGE [IMAGE ...]

The model is recognized from its weights and gets the images in its own test
size and preprocessing. Prints the most probable classes of each image.
"""

import argparse
from collections.abc import Sequence
import json
import sys

import nfnets
from nfnets import imagenet
from nfnets.inference import classes, command_line

_DESCRIPTION = """\
Prints the most probable classes of each image: probability, number and name.
"""
_EPILOG = """\
With --json there is a line for each image, {"image": ..., "model": ..., "top":
[{"label": ..., "name": ..., "probability": ...}, ...]}, or {"image": ...,
"error": ...}. Results go to standard output and everything else to standard
error. The exit status is 0 if all went well, 1 for a failure, be it of a single
image, and 2 for a wrong command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('classify', _DESCRIPTION, _EPILOG)
  command_line.add_image_arguments(parser)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--top',
    type=command_line.positive,
    default=5,
    metavar='K',
    help='how many classes to print (5); all, if there are fewer',
  )
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='names of the classes: text with one per line or, in a .json, a list '
    'of names or of [id, name] (those in the file of weights or, for 1000 '
    "classes, ImageNet's)",
  )
  parser.add_argument('--json', action='store_true', help='print JSON lines')
  return command_line.run(_classify, parser.parse_args(argv))


def _classify(args: argparse.Namespace) -> int:
  command_line.check_images_can_be_read()
  from nfnets.inference import images, predict

  paths = images.find_images(*args.paths)
  network = command_line.open_network(args)
  model = network.model
  if not model.num_classes:
    raise command_line.CommandError(
      f'{args.weights} has no last layer, so there are no classes. python -m '
      'nfnets.embed computes embeddings.'
    )
  names = _names(args.labels, model)
  status = 0
  for path, logits in predict.outputs(
    network.logits, model, paths, args.batch_size
  ):
    if isinstance(logits, str):
      status = 1
      predict.say(f'{path}: {logits}', sys.stderr)
      if args.json:
        predict.say(json.dumps({'image': path, 'error': logits}), sys.stdout)
      continue
    top = classes.top_classes(logits, args.top)
    if args.json:
      result = {
        'image': path,
        'model': model.name,
        'top': [
          {'label': label, 'name': names[label], 'probability': probability}
          for label, probability in top
        ],
      }
      predict.say(json.dumps(result), sys.stdout)
    else:
      width = len(str(model.num_classes - 1))
      lines = [
        f'  {probability:7.2%}  {label:{width}}  '
        f'{classes.on_one_line(names[label])}'
        for label, probability in top
      ]
      predict.say('\n'.join([path, *lines, '']), sys.stdout)
  return status


def _names(labels: str | None, model: nfnets.Model) -> Sequence[str]:
  """Returns the names of the classes."""
  num_classes = model.num_classes
  if labels is not None:
    try:
      names = classes.read_labels(labels)
    except OSError as error:
      message = f'{labels}: {error.strerror}'
      raise command_line.CommandError(message, 2) from error
    except ValueError as error:
      raise command_line.CommandError(error, 2) from error
    if len(names) != num_classes:
      raise command_line.CommandError(
        f'{labels} has {len(names)} names, and the network has {num_classes} '
        'classes.',
        2,
      )
    return names
  if model.class_names:
    return model.class_names
  if num_classes == 1000:
    return list(imagenet.classes().values())
  print(
    f'The {num_classes} classes have no names here; --labels=FILE gives them.',
    file=sys.stderr,
  )
  return [f'class {label}' for label in range(num_classes)]


if __name__ == '__main__':
  sys.exit(main())
