"""Which example is where, and in which order."""

import functools
import threading
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Place(NamedTuple):
  """A place among the examples that a process loads, or several of them.

  Attributes:
    epoch_seed: The seed of all that is random in this epoch; 0 if nothing is.
    index: Of the example, in its split.
    position: Of the image that it becomes, or is mixed into, among those of all
      processes since the first step.

  Each is int64 [] or int64 [n], an array or a tensor.
  """

  epoch_seed: np.ndarray | tf.Tensor
  index: np.ndarray | tf.Tensor
  position: np.ndarray | tf.Tensor

  def at(self, i: int) -> 'Place':
    """Returns the i-th of several places."""
    return Place(*(field[i] for field in self))


class EpochOrder:
  """Which example is where in an endless sequence of shuffled epochs."""

  def __init__(self, num_examples: int, seed: int):
    self._num_examples = num_examples
    self._seed = seed
    self._lock = threading.Lock()
    # Reading ahead touches one epoch and the next.
    self._cached = functools.lru_cache(maxsize=2)(self._permutation)

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs, indices), both int64 [n], for positions int64 [n]."""
    epochs, places = np.divmod(positions, self._num_examples)
    indices = np.empty_like(positions)
    with self._lock:
      for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = self._cached(int(epoch))[places[here]]
    return epochs, indices

  def _permutation(self, epoch: int) -> np.ndarray:
    # Sorting raw bits: NumPy promises never to change these, but not what
    # Generator.permutation makes of them.
    philox = np.random.Philox(key=np.array([self._seed, epoch], np.uint64))
    return np.argsort(philox.random_raw(self._num_examples), kind='stable')
