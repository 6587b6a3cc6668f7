"""The classes of a network: their names, a dataset's, the most probable."""

import collections
from collections.abc import Sequence
import json
import os
from typing import NamedTuple
import unicodedata

import numpy as np

from nfnets import errors, imagenet, paths


def softmax(logits: np.ndarray) -> np.ndarray:
  """Return float64 probabilities; NaN for logits that are not finite.

  Args:
    logits: float [..., num_classes].
  """
  logits = np.float64(logits)
  with np.errstate(invalid='ignore'):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def top_classes(
  logits: np.ndarray, k: int, threshold: float = 0.0
) -> list[tuple[int, float]]:
  """Return (label, probability) of the k most probable classes, in order.

  Args:
    logits: float [num_classes].
    k: their number; all, if there are fewer.
    threshold: the smallest probability to return.
  """
  probabilities = softmax(logits)
  order = np.argsort(-np.float64(logits), kind='stable')[:k]
  found = [(int(label), float(probabilities[label])) for label in order]
  return [entry for entry in found if entry[1] >= threshold]


def names(
  num_classes: int,
  own: Sequence[str] | None = None,
  labels: str | os.PathLike[str] | None = None,
) -> Sequence[str]:
  """Return what the classes of a network are called.

  Args:
    num_classes: number of classes.
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
      raise errors.UserError(
        f'{labels} has {len(found)} names, and the network has {num_classes} '
        'classes.',
        2,
      )
    return found
  is_imagenets = num_classes == 1000
  known = imagenet.classes().values() if is_imagenets else ()
  return own or [*known] or [f'class {i}' for i in range(num_classes)]


class Match(NamedTuple):
  """The classes of a dataset among those of a network.

  Attributes:
    logits: Numbers of all logits: first those of the dataset's classes, in its
      order, then those of the network's other classes.
    note: What a user should know of it, in one line; '' if both have the same
      classes in the same order.
  """

  logits: list[int]
  note: str


def match(
  dataset: Sequence[str],
  network: Sequence[str] | None,
  num_classes: int,
  title: str,
) -> Match:
  """Find the classes of a dataset among those of a network, by name.

  Names are compared in Unicode NFC. ImageNet's WordNet ids are as good as the
  names. Where the network has no names, or the dataset has only numbers, and
  there are as many classes, they are matched by number.

  Args:
    dataset: names of the labels, as `nfnets.data.builders.label_names` returns
      them.
    network: names of the classes, in the order of the logits; None if they are
      not known. Then 1000 classes may be ImageNet's.
    num_classes: size of the logits.
    title: name of the dataset in messages.

  Raises:
    UserError: if the dataset has other classes; the message has the first ones
      that differ.
  """
  if not num_classes:
    raise errors.UserError('The network has no last layer, and so no classes.')
  ours, theirs = (
    [unicodedata.normalize('NFC', name) for name in names]
    for names in (dataset, network or ())
  )
  words = imagenet.classes()
  are_imagenets = [x.partition(',')[0] for x in theirs] == [*words.values()]
  if are_imagenets or (not theirs and num_classes == len(words)):
    theirs = [*words]
  # Ids first: two of ImageNet's classes are called crane.
  our_words, their_words = (
    [words.get(name, name) for name in names] for names in (ours, theirs)
  )
  found = _find(ours, theirs) or _find(our_words, their_words)
  everything = [*range(num_classes)]
  if found:
    what = f'{len(found):,} of the {num_classes:,} classes of the network'
    if len(found) == num_classes:
      what = 'the classes of the network in another order'
    others = sorted({*everything} - {*found})
    note = (
      f'{title} has {what}: labels are matched by name, and all classes of the '
      'network compete.'
    )
    return Match(found + others, '' if found == everything else note)
  is_numbered = ours == [str(i) for i in range(len(ours))]
  if len(ours) == num_classes and (
    not network or (is_numbered and not any(x.isdecimal() for x in theirs))
  ):
    return Match(
      everything,
      f'The classes of {title if network else "the network"} have no names, so '
      'that they could not be compared: labels are matched by number.',
    )
  if not theirs:
    raise errors.UserError(
      f'{title} has {len(ours):,} classes, and the network {num_classes:,} '
      'without names: class_names in the metadata of its weights would tell '
      'which these are.'
    )
  counts = collections.Counter(their_words)
  differ = [
    f'{name!r} (number {i})'
    for i, name in enumerate(our_words)
    if counts[name] != 1
  ]
  unused = [repr(name) for name in counts if name not in {*our_words}]
  raise errors.UserError(
    f'{title} has classes that the network does not have: {_some(differ)}. '
    + (f'The network has instead: {_some(unused)}. ' if unused else '')
    + f'Give both the same names, or fine-tune the network on {title}.'
  )


def _find(names: list[str], among: list[str]) -> list[int]:
  """Return the index of each name; nothing if one is missing or ambiguous."""
  if names == among:
    return [*range(len(names))]
  counts = collections.Counter(among)
  if len(set(names)) < len(names) or any(counts[x] != 1 for x in names):
    return []
  index = {name: i for i, name in enumerate(among)}
  return [index[name] for name in names]


def _some(names: list[str]) -> str:
  more = f' and {len(names) - 3:,} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more


def read_labels(path: str | os.PathLike[str]) -> list[str]:
  """Read names of classes, in the order of the labels.

  Args:
    path: UTF-8 text with one name per line or, if it ends in .json, a list of
      names or of [id, name].

  Raises:
    UserError: if it cannot be read, or holds something else.
  """
  path = paths.path(path)
  with errors.prefix(str(path), status=2):
    content = paths.read_bytes(path)
  with errors.prefix(f'{path} is no text in UTF-8', status=2):
    text = content.decode('utf-8-sig')
  if path.suffix.lower() != '.json':
    return [line.strip() for line in text.rstrip().split('\n')]
  with errors.prefix(f'{path} is no JSON', status=2):
    names = json.loads(text)
  if isinstance(names, list):
    names = [
      name[1] if isinstance(name, list) and len(name) == 2 else name
      for name in names
    ]
    if all(isinstance(name, str) for name in names):
      return names
  raise errors.UserError(
    f'{path}: this is no list of names or of [id, name]',
    2,
  )
