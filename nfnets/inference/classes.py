"""The classes of a network: their names, and which are the most probable."""

import json
import os
import unicodedata

import numpy as np

from nfnets import paths


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
