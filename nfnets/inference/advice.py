"""What a careful colleague would say of a dataset and a result."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nfnets.inference import measures

_IMBALANCE = (
  5  # Times as many examples in the largest class as in the smallest.
)
_FEW_PER_CLASS = 10
_WIDE = 0.1  # The width of an interval, as a share.
_SHOWN = 5  # Names in one warning.


class Warned(NamedTuple):
  """A warning.

  Attributes:
    text: One sentence or two; the names that it is about are not in it.
    names: Names of classes or files; the first few.
    more: How many names there are beyond these.
  """

  text: str
  names: tuple[str, ...] = ()
  more: int = 0


def _about(text: str, names: Sequence[str]) -> Warned:
  return Warned(text, tuple(names[:_SHOWN]), max(0, len(names) - _SHOWN))


def on_counts(
  names: Sequence[str], train: np.ndarray | None, test: np.ndarray
) -> list[Warned]:
  """Warns of too few examples, and of many more of one class than of another.

  Args:
    names: of the K classes.
    train: examples per class to train on, int [K]; None if they are not known.
    test: examples per class to test on, int [K].
  """
  warned = []
  if train is not None:
    empty = [names[i] for i in np.flatnonzero(train == 0)]
    if empty:
      warned.append(
        _about('There is nothing to learn these classes from:', empty)
      )
    some = np.flatnonzero(train)
    if len(some):
      least, most = some[train[some].argmin()], train.argmax()
      if train[most] >= _IMBALANCE * train[least]:
        warned.append(
          _about(
            f'The classes are unequal: {train[most]:,} training images of the '
            f'largest and {train[least]:,} of the smallest. The accuracy '
            'overall says little of the small ones; look at theirs. Largest '
            'and smallest:',
            [names[most], names[least]],
          )
        )
  empty = [names[i] for i in np.flatnonzero(test == 0)]
  if empty:
    warned.append(
      _about(
        'There is no test image of these classes, so nothing is known of them:',
        empty,
      )
    )
  few = [names[i] for i in np.flatnonzero((test > 0) & (test < _FEW_PER_CLASS))]
  if few:
    warned.append(
      _about(
        f'Fewer than {_FEW_PER_CLASS} test images are too few to tell how well '
        'a class is recognized. So it is with:',
        few,
      )
    )
  return warned


def on_predictions(
  names: Sequence[str], counts: measures.ByClass, num_failed: int
) -> list[Warned]:
  """Warns of numbers that say little, and of predictions that look wrong.

  Args:
    names: of the K classes.
    counts: of the predictions.
    num_failed: for how many images the network's output was not finite.
  """
  warned = []
  total, correct = int(counts.total.sum()), int(counts.correct.sum())
  if num_failed:
    warned.append(
      Warned(
        f"The network's output is not finite for {num_failed:,} of {total:,} "
        'images, which count as mistakes. Training has diverged: try a lower '
        'learning rate, or more clipping.'
      )
    )
  low, high = measures.wilson(correct, total)
  if high - low > _WIDE:
    warned.append(
      Warned(
        f'{total:,} test images are too few for a precise number: the accuracy '
        f'is somewhere between {low:.0%} and {high:.0%}.'
      )
    )
  largest = int(counts.total.max(initial=0))
  always, _ = measures.wilson(largest, total)
  if len(names) > 1 and total and high <= largest / total:
    warned.append(
      Warned(
        'The network does worse than one that always says the most frequent '
        f'class, which is right for {largest / total:.1%}.'
      )
    )
  elif len(names) > 1 and total and low <= largest / total:
    warned.append(
      Warned(
        'The network may be no better than one that always says the most '
        f'frequent class, which is right for {largest / total:.1%}.'
      )
    )
  never = [
    names[i]
    for i in np.flatnonzero((counts.predicted == 0) & (counts.total > 0))
  ]
  if never:
    warned.append(
      _about(
        'There are test images of these classes, but the network never '
        'says that it sees one:',
        never,
      )
    )
  return warned


def on_images(sizes: np.ndarray, image_size: int) -> list[Warned]:
  """Warns of images much smaller than what the network takes.

  Args:
    sizes: (height, width) of some, int [N, 2].
    image_size: the side of the network's images, in pixels.
  """
  if not len(sizes):
    return []
  side = int(np.median(sizes.min(axis=1)))
  if 2 * side > image_size:
    return []
  return [
    Warned(
      f'The images are small: half of them have a side of at most {side} '
      f'pixels, and are enlarged to the {image_size} of the network. A smaller '
      'size may be as accurate, and is faster.'
    )
  ]


def on_split(split: str) -> list[Warned]:
  """Warns of accuracies of images that training may have looked at."""
  if split != 'validation':
    return []
  return [
    Warned(
      'These are validation images. Where they decided which step is the best, '
      'or which settings are, the accuracy on new images is a little lower.'
    )
  ]


def on_duplicates(pairs: Sequence[tuple[str, str]]) -> list[Warned]:
  """Warns of files that are in two splits, given as pairs of paths."""
  if not pairs:
    return []
  files = 'One file has' if len(pairs) == 1 else f'{len(pairs):,} files have'
  return [
    _about(
      f'{files} the same content in two splits, so the network is asked what '
      'it was told:',
      [f'{first} = {second}' for first, second in pairs],
    )
  ]


def on_curves(train_loss: Sequence[float]) -> list[Warned]:
  """Warns of a training that went wrong, by the losses of its steps."""
  if not len(train_loss) or np.isfinite(train_loss[-1]):
    return []
  return [
    Warned(
      'The loss of training ended as a number that is not finite: training '
      'has diverged. Try a lower learning rate, or more clipping.'
    )
  ]
