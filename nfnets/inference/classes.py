"""The classes of a network: their names, and which are the most probable."""

from collections.abc import Sequence
import json
import os
import unicodedata

import numpy as np

from nfnets import imagenet, paths


def top_classes(
  logits: np.ndarray, k: int, threshold: float = 0.0
) -> list[tuple[int, float]]:
  """Returns the most probable classes.

  Args:
    logits: float [num_classes].
    k: how many; all, if there are fewer.
    threshold: the least probability that a class must have.

  Returns:
    (label, probability) from the most to the least probable.
  """
  logits = np.float64(logits)
  exp = np.exp(logits - logits.max())
  probabilities = exp / exp.sum()
  order = np.argsort(-logits, kind='stable')[:k]
  return [
    (int(label), float(probabilities[label]))
    for label in order
    if probabilities[label] >= threshold
  ]


def names(
  num_classes: int,
  own: Sequence[str] | None = None,
  labels: str | os.PathLike[str] | None = None,
) -> Sequence[str]:
  """Returns what the classes of a network are called.

  Args:
    num_classes: how many there are.
    own: the names in its file of weights, if there are any.
    labels: a file for `read_labels`, which is asked first.

  Returns:
    The names in the file, or else its own, or ImageNet's if there are 1000
    classes; else 'class 0' and so on.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it has something else, or not as many names.
  """
  if labels is not None:
    found = read_labels(labels)
    if len(found) != num_classes:
      raise ValueError(
        f'{labels} has {len(found)} names, and the network has {num_classes} '
        'classes.'
      )
    return found
  if own:
    return own
  if num_classes == 1000:
    return list(imagenet.classes().values())
  return [f'class {label}' for label in range(num_classes)]


def on_one_line(name: str) -> str:
  """Returns a name with its control characters, line breaks too, spelled out.

  Names of folders and in files of weights may have any.
  """
  return ''.join(
    ascii(c)[1:-1] if unicodedata.category(c) == 'Cc' else c for c in name
  )


def read_labels(path: str | os.PathLike[str]) -> list[str]:
  """Reads names of classes, in the order of the labels.

  Args:
    path: UTF-8 text with one name per line or, if it ends in .json, a list of
      names or of [id, name].

  Raises:
    OSError: if it cannot be read.
    ValueError: if it holds something else.
  """
  path = paths.path(path)
  try:
    text = paths.read_bytes(path).decode('utf-8-sig')
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
