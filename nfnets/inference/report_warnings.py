"""Warnings about a dataset and a result, for the report and the card."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nfnets.inference import curves, evaluation

# Times as many examples in the largest class as in the smallest.
_IMBALANCE = 5
_FEW_PER_CLASS = 10
_WIDE = 0.1  # The width of an interval, as a share.
_SHOWN = 5  # Names in one warning.
# Of training: a loss differs from a smaller one if it is larger by this factor
# and by so many nats.
_LARGER, _MARGIN = 1.1, 0.02
# The loss of validation says that the network overfits if it is larger than
# that of training by this factor and by so many nats.
_OVERFIT, _OVERFIT_MARGIN = 2.0, 0.2
# The best step is long before the end if it is in this part of all steps, and
# the end of training is what comes after this part.
_LONG_BEFORE, _BEFORE_END = 2 / 3, 3 / 4
_FEW_ROWS = 4  # With fewer there is no trend.


class Warned(NamedTuple):
  """A warning.

  Attributes:
    text: One sentence or two, without the names that it is about.
    names: Names of classes or files; the first few.
    more: Number of other names.
  """

  text: str
  names: tuple[str, ...] = ()
  more: int = 0


def _select(*candidates: tuple[object, str, Sequence[str]]) -> list[Warned]:
  """Return the candidates whose first value is true."""
  return [
    Warned(text, tuple(names[:_SHOWN]), max(0, len(names) - _SHOWN))
    for is_so, text, names in candidates
    if is_so
  ]


def check_class_counts(
  found: evaluation.Evaluation, train: np.ndarray | None = None
) -> list[Warned]:
  """Warn of classes with few examples, and of unequal ones.

  Args:
    found: the evaluation.
    train: examples per class to train on, int [K]; None if they are not known.
  """
  names = found.names[: found.num_classes]
  train = np.ones(len(names), int) if train is None else train
  test = np.array([row['total'] for row in found.classes])
  least = int(np.where(train > 0, train, train.max()).argmin())
  most = int(train.argmax())

  def where(mask: np.ndarray) -> list[str]:
    return [names[i] for i in np.flatnonzero(mask)]

  return _select(
    (
      empty := where(train == 0),
      'There is nothing to learn these classes from:',
      empty,
    ),
    (
      train[most] >= _IMBALANCE * train[least] > 0,
      f'The classes are unequal: {train[most]:,} training images of the '
      f'largest and {train[least]:,} of the smallest. The accuracy overall '
      'says little of the small ones; look at theirs. In training, '
      '--class_weights=balanced or --balance_classes make up for that. Largest '
      'and smallest:',
      [names[most], names[least]],
    ),
    (
      untested := where(test == 0),
      'There is no test image of these classes, so nothing is known of them:',
      untested,
    ),
    (
      few := where((test > 0) & (test < _FEW_PER_CLASS)),
      f'Fewer than {_FEW_PER_CLASS} test images are too few to tell how well '
      'a class is recognized. So it is with:',
      few,
    ),
  )


def check_predictions(found: evaluation.Evaluation) -> list[Warned]:
  """Warn of imprecise numbers, and of predictions that look wrong."""
  total, accuracy = found.accuracy['total'], found.accuracy
  largest = max(row['total'] for row in found.classes) / max(total, 1)
  has_choice = found.num_classes > 1 and total
  num_failed = int(np.sum(found.predicted < 0))
  never = [
    row['name']
    for row in found.classes
    if row['total'] and not row['predicted']
  ]
  return _select(
    (
      num_failed,
      f"The network's output is not finite for {num_failed:,} of {total:,} "
      'images, which count as mistakes. Training has diverged: try a lower '
      'learning rate, or more clipping.',
      (),
    ),
    (
      accuracy['high'] - accuracy['low'] > _WIDE,
      f'{total:,} test images are too few for a precise number: the accuracy '
      f'is somewhere between {accuracy["low"]:.0%} and {accuracy["high"]:.0%}.',
      (),
    ),
    (
      has_choice and accuracy['high'] <= largest,
      'The network does worse than one that always says the most frequent '
      f'class, which is right for {largest:.1%}.',
      (),
    ),
    (
      has_choice and accuracy['low'] <= largest < accuracy['high'],
      'The network may be no better than one that always says the most '
      f'frequent class, which is right for {largest:.1%}.',
      (),
    ),
    (
      never,
      'There are test images of these classes, but the network never says '
      'that it sees one:',
      never,
    ),
  )


def check_files(
  unreadable: Mapping[str, str],
  duplicates: Sequence[tuple[str, str]] = (),
  contradictions: Sequence[tuple[str, str]] = (),
) -> list[Warned]:
  """Warn of files that cannot be read, and of copies of a file.

  Args:
    unreadable: {path: why}; all are named.
    duplicates: pairs of equal files in two splits.
    contradictions: pairs of equal files in two classes.
  """
  number = len(unreadable)
  images = 'One image' if number == 1 else f'{number:,} images'
  paths = tuple(f'{path} ({why})' for path, why in unreadable.items())
  warned = [Warned(f'{images} cannot be read, and are left out:', paths)]

  def copies(pairs: Sequence[tuple[str, str]], where: str) -> tuple:
    files = 'One file has' if len(pairs) == 1 else f'{len(pairs):,} files have'
    names = [f'{first} = {second}' for first, second in pairs]
    return names, f'{files} the same content in two {where}', names

  return warned * bool(number) + _select(
    copies(duplicates, 'splits, so it is in training as well as in the test:'),
    copies(
      contradictions,
      'classes, so that one of the labels is wrong, or a picture shows both:',
    ),
  )


def check_training(
  rows: Sequence[curves.Row], stopped_early: bool = False
) -> list[Warned]:
  """Warn of overfitting, and of training that was too long or too short.

  Args:
    rows: the evaluations during training, the best one marked.
    stopped_early: whether training ended because none was better for long.
  """
  best = next((row for row in rows if row.is_best), None)
  if best is None:
    return []
  last, has_trend = rows[-1], len(rows) >= _FEW_ROWS

  def is_worse(row: curves.Row, other: curves.Row) -> bool:
    loss = other.valid_loss
    return row.valid_loss > max(_LARGER * loss, loss + _MARGIN)

  # The last evaluation before the end of training.
  before = [x for x in rows if x.step <= _BEFORE_END * last.step]
  before = before[-1] if before else rows[0]
  return _select(
    (
      best.valid_loss
      > max(_OVERFIT * best.train_loss, best.train_loss + _OVERFIT_MARGIN),
      'The network fits its training images much better than others: at step '
      f'{best.step:,} the loss is {best.train_loss:.3f} in training and '
      f'{best.valid_loss:.3f} in validation. More augmentation, such as '
      '--augment_name=cutmix_mixup, or more images may help.',
      (),
    ),
    (
      has_trend
      and not stopped_early
      and best.step <= _LONG_BEFORE * last.step
      and is_worse(last, best),
      'Validation got worse long before the end: the best step was '
      f'{best.step:,} of {last.step:,}, and the loss of validation has risen '
      f'from {best.valid_loss:.3f} to {last.valid_loss:.3f} since then. Fewer '
      'steps (--training_steps), or --patience=3, save that time.',
      (),
    ),
    (
      has_trend and best is last and is_worse(before, last),
      'Validation was still improving at the end: its loss has fallen from '
      f'{before.valid_loss:.3f} to {last.valid_loss:.3f} since step '
      f'{before.step:,}. More steps (--training_steps) may help.',
      (),
    ),
  )


def check_setup(
  split: str,
  sizes: np.ndarray,
  image_size: int,
  train_loss: Sequence[float] = (),
) -> list[Warned]:
  """Warn of small images, of validation images and of a failed training.

  Args:
    split: the name of the split that was tested.
    sizes: (height, width) of some images, int [N, 2].
    image_size: the side of the network's images, in pixels.
    train_loss: training loss of each logged step.
  """
  side = int(np.median(sizes.min(axis=1))) if len(sizes) else image_size
  return _select(
    (
      len(train_loss) and not np.isfinite(train_loss[-1]),
      'The loss of training ended as a number that is not finite: training '
      'has diverged. Try a lower learning rate, or more clipping.',
      (),
    ),
    (
      split == 'validation',
      'These are validation images. Where they decided which step is the best, '
      'or which settings are, the accuracy on new images is a little lower.',
      (),
    ),
    (
      2 * side <= image_size,
      f'The images are small: half of them have a side of at most {side} '
      f'pixels, and are enlarged to the {image_size} of the network. A smaller '
      'size may be as accurate, and is faster.',
      (),
    ),
  )
