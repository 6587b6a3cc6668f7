"""A network's predictions for a split, and the numbers that follow."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import heapq
import logging
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from nfnets.data import builders, dataset, folders
from nfnets.errors import UserError
from nfnets.inference import classes, networks

_THUMBNAIL = 160  # Pixels.
_Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution.
_log = logging.getLogger(__name__)


def wilson(successes: Any, trials: Any) -> tuple[np.ndarray, np.ndarray]:
  """Return Wilson's 95 % interval for a share.

  Unlike the normal approximation, it stays within [0, 1] and holds for few
  trials and for shares near 0 and 1 (Wilson 1927; Brown, Cai and DasGupta
  2001).

  Args:
    successes: number of successes, [...].
    trials: number of trials, [...]; the interval is (0, 1) for 0 trials.

  Returns:
    (low, high), float64 [...] each.
  """
  successes, trials = np.float64(successes), np.float64(trials)
  n, z = np.maximum(trials, 1), _Z_95
  share = successes / n
  center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
  spread = np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  half = z / (1 + z**2 / n) * spread
  # Exact, where rounding would leave 1e-17.
  low = np.where(successes == 0, 0.0, np.clip(center - half, 0, 1))
  high = np.where(successes == trials, 1.0, np.clip(center + half, 0, 1))
  return low, high


def share(correct: int, total: int) -> dict[str, Any]:
  """Return correct, total, share (0 of none), and Wilson's low and high."""
  low, high = map(float, wilson(correct, total))
  found = {'correct': int(correct), 'total': int(total)}
  found['share'] = float(correct / total) if total else 0.0
  return {**found, 'low': low, 'high': high}


class Picture(NamedTuple):
  """An image with a prediction.

  Attributes:
    index: Number of the example in its split.
    pixels: uint8 [h, w, 3], preprocessed and at most 160 pixels high and wide.
    label: The true class.
    predicted: The most probable class.
    confidence: Its probability.
    of_label: The probability of the true class.
  """

  index: int
  pixels: np.ndarray
  label: int
  predicted: int
  confidence: float
  of_label: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Predictions for the readable examples of a split.

  Classes are numbered as in the dataset. Those that only the network has come
  after them.

  Attributes:
    labels: int32 [N].
    predicted: int32 [N], the most probable class; -1 where the network's output
      is not finite.
    num_classes: K, the number of classes of the dataset.
    names: Names of all classes.
    dataset: The name of the dataset.
    split: 'test', 'validation', ...
    note: How classes were matched, if the lists differ; see `classes.Match`.
    chose_weights: Whether these images decided which weights were kept.
    mistakes: The wrong ones, the most confident first.
    uncertain: Those with the least confidence, the least first.
    skipped: {example: error} of those that cannot be read.
    indices: int64 [N], numbers of the examples in their split.
    confidence: float64 [N], the probability of the predicted class.
    of_label: float64 [N], the probability of the true class.
  """

  labels: np.ndarray
  predicted: np.ndarray
  num_classes: int
  names: list[str]
  dataset: str = ''
  split: str = 'test'
  note: str = ''
  chose_weights: bool = False
  mistakes: tuple[Picture, ...] = ()
  uncertain: tuple[Picture, ...] = ()
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  indices: np.ndarray | None = None
  confidence: np.ndarray | None = None
  of_label: np.ndarray | None = None

  @functools.cached_property
  def accuracy(self) -> dict[str, Any]:
    """See `share`."""
    return share(np.sum(self.labels == self.predicted), len(self.labels))

  @functools.cached_property
  def classes(self) -> list[dict[str, Any]]:
    """Return a row for each class of the dataset.

    Each has label, name, predicted (how often), the keys of `share`, and
    precision (0 where the class is never predicted), recall and f1.
    """
    known = self.predicted[self.predicted >= 0]
    total, correct, predicted = (
      np.bincount(values, minlength=self.num_classes)
      for values in (
        self.labels,
        self.labels[self.labels == self.predicted],
        known,
      )
    )
    return [
      {
        **{'label': i, 'name': self.names[i], 'predicted': int(predicted[i])},
        **(found := share(correct[i], total[i])),
        'precision': float(correct[i] / max(predicted[i], 1)),
        'recall': found['share'],
        'f1': float(2 * correct[i] / max(total[i] + predicted[i], 1)),
      }
      for i in range(self.num_classes)
    ]

  @functools.cached_property
  def macro(self) -> dict[str, float]:
    """Means over the classes with test images: macro_precision, ..."""
    tested = [row for row in self.classes if row['total']]
    return {
      f'macro_{name}': float(np.mean([row[name] for row in tested]))
      for name in ('precision', 'recall', 'f1')
    }

  def worst_classes(self) -> list[dict[str, Any]]:
    """Return the classes, the least accurate first, the untested last."""
    # Ties in recall: the class with more images comes first.
    return sorted(
      self.classes,
      key=lambda row: (not row['total'], row['share'], row['high']),
    )

  def confused_pairs(self, most: int) -> list[dict[str, Any]]:
    """Return the most frequent mistakes: label, predicted, `share`'s keys."""
    wrong = (self.labels != self.predicted) & (self.predicted >= 0)
    pairs = np.stack([self.labels, self.predicted], axis=1)[wrong]
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    return [
      {
        **{
          'label': self.names[pairs[i][0]],
          'taken_for': self.names[pairs[i][1]],
        },
        **share(counts[i], np.sum(self.labels == pairs[i][0])),
      }
      for i in np.argsort(-counts, kind='stable')[:most]
    ]

  def confusion(self, cells: int) -> np.ndarray:
    """Return how often each class is taken for each, labels by predictions.

    Args:
      cells: the most rows and columns; more classes than that share them.

    Returns:
      int64 [C, C]. The network's other classes are one more, the last, if one
      is predicted. Outputs that are not finite are left out.
    """
    known = self.predicted >= 0
    pairs = np.stack([self.labels, self.predicted])[:, known].astype(np.int64)
    pairs = np.minimum(pairs, self.num_classes)
    number = max(self.num_classes, pairs.max(initial=0) + 1)
    size = min(number, cells)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, tuple(pairs * size // number), 1)
    return matrix


def evaluate(
  network: networks.Network,
  builder: tfds.core.DatasetBuilder,
  split: str,
  batch_size: int = 32,
  most: int = 20,
) -> Evaluation:
  """Run a network on every example of a split, once.

  Args:
    network: the network.
    builder: a dataset from `load_builder`.
    split: one of `builders.SPLITS`.
    batch_size: images per batch.
    most: number of pictures of each kind to keep in memory.

  Raises:
    UserError: if the split or none of its images can be read, if the dataset
      has classes that the network does not have, or if no output of the
      network is finite.
  """
  title, names = builders.title(builder), builders.class_names(builder)
  match = classes.match(
    *(builders.label_names(builder), network.class_names),
    *(network.num_classes, title),
  )
  if match.note:
    _log.info('%s', match.note)
  num_classes = len(names)
  known = classes.names(network.num_classes, network.class_names)
  names += [known[i] for i in match.logits[num_classes:]]
  rows, skipped, mistakes, uncertain = [], {}, [], []
  for index, image, label, logits in outputs(
    network.logits, network, builder, split, batch_size, skipped
  ):
    p = classes.softmax(logits[match.logits])
    best = int(np.argmax(p)) if np.isfinite(p).all() else -1
    rows.append((index, label, best, p[best], p[label]))
    if best >= 0:
      picture = index, image, label, best, float(p[best]), float(p[label])
      _keep(uncertain, most, -p[best], picture)
      if best != label:
        _keep(mistakes, most, p[best], picture)
  indices, labels, predicted, *probabilities = map(
    np.array, zip(*rows, strict=True)
  )
  if predicted.max() < 0:
    raise UserError(
      f"The network's output is not finite for any of {len(rows):,} "
      'images: its weights may hold such numbers, or too large ones.'
    )
  is_folder = isinstance(builder, folders.Folder)
  return Evaluation(
    *(np.int32(labels), np.int32(predicted), num_classes, names, title),
    split=builder.test_split_name
    if is_folder and split == 'test'
    else {'valid': 'validation'}.get(split, split),
    note=match.note,
    mistakes=tuple(entry[2] for entry in sorted(mistakes, reverse=True)),
    uncertain=tuple(entry[2] for entry in sorted(uncertain, reverse=True)),
    skipped=skipped,
    indices=indices,
    confidence=probabilities[0],
    of_label=probabilities[1],
  )


def outputs(
  function: Callable[[np.ndarray], np.ndarray],
  network: networks.Network,
  builder: tfds.core.DatasetBuilder,
  split: str,
  batch_size: int,
  skipped: dict[str, str],
) -> Iterator[tuple[int, np.ndarray, int, np.ndarray]]:
  """Yield (index, preprocessed image, label, output) of every example.

  A bar shows the progress.

  Args:
    function: the network's function from images [B, H, W, 3] to [B, ...].
    network: says how images are prepared.
    builder: a dataset from `load_builder`.
    split: one of `builders.SPLITS`.
    batch_size: images per batch.
    skipped: gets the examples that cannot be read.

  Raises:
    UserError: if the split or none of its images can be read.
  """
  total = dataset.num_examples(builder, split)
  batch_size = max(1, min(batch_size, total))
  options = dataset.Options(
    *(network.input_size, batch_size, network.preprocessing), skip_corrupt=True
  )
  batches = dataset.eval_batches(builder, split, options)
  # disable=None: unless standard error is a terminal.
  bar = tqdm.tqdm(total=total, unit='image', dynamic_ncols=True, disable=None)
  with batches, bar:
    for number, batch in enumerate(batches):
      found = np.asarray(function(network.normalize(batch['images'])))
      rows = np.flatnonzero(batch['mask'])
      for row in map(int, rows):
        label = int(batch['labels'][row])
        yield number * batch_size + row, batch['images'][row], label, found[row]
      bar.update(len(rows))
    skipped.update(batches.skipped)
  if len(skipped) == total:
    raise UserError(
      f'None of the {total:,} images of {builders.title(builder)}, split '
      f'{split!r}, can be read.'
    )


def _keep(heap: list, most: int, score: float, picture: tuple) -> None:
  """Keep the pictures of the highest scores, the first among equal ones."""
  index, pixels, *rest = picture
  key = float(score), -index
  if len(heap) == most and key < heap[0][:2]:
    return
  # A copy: batches are views of memory that is used again.
  pixels = np.uint8(np.clip(np.rint(pixels), 0, 255))
  if max(pixels.shape[:2]) > _THUMBNAIL:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
  heapq.heappush(heap, (*key, Picture(index, pixels, *rest)))
  if len(heap) > most:
    heapq.heappop(heap)
