"""Says what images show.

python -m nfnets.classify --weights=F0_haiku.npz IMAGE [IMAGE ...]

The model is recognized from its weights and gets the images in its own test
size and preprocessing. Prints the most probable classes of each image.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from nfnets import predict, utils

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
  parser = argparse.ArgumentParser(
    prog='python -m nfnets.classify',
    description=_DESCRIPTION,
    epilog=_EPILOG,
    allow_abbrev=False,
  )
  predict.add_arguments(parser)
  parser.add_argument(
    '--top',
    type=predict.positive,
    default=5,
    metavar='K',
    help='how many classes to print (5); all, if there are fewer',
  )
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='names of the classes: text with one per line or, in a .json, a list '
    'of names or of [id, name] (those of ImageNet, for 1000 classes)',
  )
  parser.add_argument('--json', action='store_true', help='print JSON lines')
  return predict.run(_classify, parser.parse_args(argv))


def top_classes(logits: np.ndarray, k: int) -> list[tuple[int, float]]:
  """Returns the most probable classes.

  Args:
    logits: float [num_classes].
    k: how many; all, if there are fewer.

  Returns:
    (label, probability) from the most to the least probable.
  """
  logits = np.float64(logits)
  exp = np.exp(logits - logits.max())
  probabilities = exp / exp.sum()
  order = np.argsort(-logits, kind='stable')[:k]
  return [(int(label), float(probabilities[label])) for label in order]


def read_labels(path: str | pathlib.Path) -> list[str]:
  """Reads names of classes, in the order of the labels.

  Args:
    path: UTF-8 text with one name per line or, if it ends in .json, a list of
      names or of [id, name].

  Raises:
    OSError: if it cannot be read.
    ValueError: if it holds something else.
  """
  path = pathlib.Path(path)
  try:
    text = path.read_text(encoding='utf-8-sig')
    if path.suffix.lower() != '.json':
      return [line.strip() for line in text.rstrip().split('\n')]
    names = json.loads(text)
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: this is no text in UTF-8') from error
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: this is no JSON: {error}') from error
  if isinstance(names, list):
    names = [
      name[1] if isinstance(name, list) and len(name) == 2 else name
      for name in names
    ]
    if all(isinstance(name, str) for name in names):
      return names
  raise ValueError(f'{path}: this is no list of names or of [id, name]')


def _classify(args: argparse.Namespace) -> int:
  paths = predict.find_images(args.paths)
  network = predict.open_network(args)
  model = network.model
  if not model.num_classes:
    raise predict.CommandError(
      f'{args.weights} has no last layer, so there are no classes. python -m '
      'nfnets.embed computes embeddings.'
    )
  names = _names(args.labels, model.num_classes)
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
    top = top_classes(logits, args.top)
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
        f'  {probability:7.2%}  {label:{width}}  {names[label]}'
        for label, probability in top
      ]
      predict.say('\n'.join([path, *lines, '']), sys.stdout)
  return status


def _names(labels: str | None, num_classes: int) -> list[str]:
  """Returns the names of the classes."""
  if labels is not None:
    try:
      names = read_labels(labels)
    except OSError as error:
      raise predict.CommandError(f'{labels}: {error.strerror}', 2) from error
    except ValueError as error:
      raise predict.CommandError(error, 2) from error
    if len(names) != num_classes:
      raise predict.CommandError(
        f'{labels} has {len(names)} names, and the network has {num_classes} '
        'classes.',
        2,
      )
    return names
  if num_classes == 1000:
    return list(utils.imagenet_classes().values())
  print(
    f'The {num_classes} classes have no names here; --labels=FILE gives them.',
    file=sys.stderr,
  )
  return [f'class {label}' for label in range(num_classes)]


if __name__ == '__main__':
  sys.exit(main())
