"""Numbers that say how well a classifier does, and how sure that is."""

from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054  # Of a normal distribution, 95 % are within.


def wilson(
  successes: np.ndarray, trials: np.ndarray, z: float = Z_95
) -> tuple[np.ndarray, np.ndarray]:
  """Returns Wilson's interval for a share, 95 % by default.

  Unlike the normal approximation, it stays within [0, 1] and holds for few
  trials and for shares near 0 and 1 (Wilson 1927; Brown, Cai and DasGupta
  2001).

  Args:
    successes: how often it happened, [...].
    trials: of how many, [...]; the interval is (0, 1) for none.
    z: quantile of the normal distribution.

  Returns:
    (low, high), float64 [...] each.
  """
  successes, trials = np.float64(successes), np.float64(trials)
  n = np.maximum(trials, 1)
  share = successes / n
  center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
  spread = np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  half = z / (1 + z**2 / n) * spread
  low = np.where(trials > 0, np.clip(center - half, 0, 1), 0.0)
  high = np.where(trials > 0, np.clip(center + half, 0, 1), 1.0)
  # Exact, where rounding would leave 1e-17.
  return (
    np.where(successes == 0, 0.0, low),
    np.where((successes == trials), 1.0, high),
  )


class ByClass(NamedTuple):
  """What is counted for every class; int64 [K] each."""

  total: np.ndarray  # Examples of the class.
  correct: np.ndarray  # Those that are predicted to be of it.
  predicted: np.ndarray  # Examples that are predicted to be of it.


def by_class(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> ByClass:
  """Counts examples; a prediction of -1 is of no class."""

  def count(values):
    return np.bincount(values, minlength=num_classes)

  return ByClass(
    count(labels),
    count(labels[labels == predicted]),
    count(predicted[predicted >= 0]),
  )


def confused_pairs(
  labels: np.ndarray, predicted: np.ndarray, most: int
) -> list[tuple[int, int, int]]:
  """Returns (label, predicted, count) of mistakes, the most frequent first."""
  wrong = (labels != predicted) & (predicted >= 0)
  pairs = np.stack([labels[wrong], predicted[wrong]], axis=1)
  pairs, counts = np.unique(pairs, axis=0, return_counts=True)
  order = np.argsort(-counts, kind='stable')[:most]
  return [(*map(int, pairs[i]), int(counts[i])) for i in order]


def confusion(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int, cells: int
) -> np.ndarray:
  """Returns how often each class is taken for each.

  Args:
    labels: int [N].
    predicted: int [N]; -1, of no class, is left out.
    num_classes: K.
    cells: the most rows and columns; more classes than that share them.

  Returns:
    int64 [C, C] with C = min(K, cells), labels by predictions.
  """
  size = min(num_classes, cells)
  known = predicted >= 0
  matrix = np.zeros((size, size), np.int64)
  rows = labels[known].astype(np.int64) * size // num_classes
  columns = predicted[known].astype(np.int64) * size // num_classes
  np.add.at(matrix, (rows, columns), 1)
  return matrix
