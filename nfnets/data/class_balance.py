"""How many examples each class has, and what makes up for unequal numbers.

Either the loss weights each example by the inverse frequency of its class, or
the order of examples draws each class equally often.
"""

import contextlib
import functools

from absl import logging
import numpy as np
import tensorflow as tf

from nfnets import paths
from nfnets.data import batches, builders
from nfnets.data.folders import Folder

_EXAMPLES_PER_READ = 1024
# The labels of larger splits are kept in the cache: reading all of ImageNet's
# records takes minutes.
_MANY_BYTES = 1e9


def read_labels(builder: builders.Dataset, split: str) -> np.ndarray:
  """Return the label of each example of a split, int64 [N].

  Of a dataset of TFDS, all records are read for that; no image is decoded.

  Raises:
    UserError: The split is unknown, empty or damaged.
  """
  if isinstance(builder, Folder):
    return np.array(builder.labels(split), np.int64)
  with contextlib.closing(builders.SplitReader(builder, split)) as source:
    size, file = source.num_examples * source.mean_bytes, None
    if size > _MANY_BYTES:
      digest = builders.fingerprint(builder, split)[:16]
      file = paths.cache_folder() / f'labels-{digest}.npz'
      with contextlib.suppress(OSError), np.load(file) as arrays:
        return arrays['labels']
      logging.info(
        'Reading the labels of %s: %d records, %.1f GB, once.',
        *(source.title, source.num_examples, size / 1e9),
      )
    read = tf.autograph.experimental.do_not_convert(
      lambda record: source.parse(record)[1]
    )
    labels, indices = [], np.arange(source.num_examples)
    for start in indices[::_EXAMPLES_PER_READ]:
      records = source.read(indices[start : start + _EXAMPLES_PER_READ])
      found = tf.data.Dataset.from_tensor_slices(records).map(read)
      labels.extend(found.as_numpy_iterator())
  labels = np.array(labels, np.int64)
  if file:
    with contextlib.suppress(OSError):  # Then it takes as long again.
      paths.save_arrays(file, labels=labels)
  return labels


def class_counts(builder: builders.Dataset, split: str) -> np.ndarray:
  """Count the examples of each class, int64 [K]; see `read_labels`."""
  labels = read_labels(builder, split)
  return np.bincount(labels, minlength=builders.num_classes(builder))


def class_weights(counts: np.ndarray) -> np.ndarray:
  """Return the weight of each class in the loss, float32 [K].

  As scikit-learn's 'balanced': n / (K n_k) for n_k of n examples, where K is
  the number of classes that have examples. So their mean over the examples is
  1, and the scale of loss and learning rate stays. Other classes get 0.
  """
  weights = counts.sum() / np.count_nonzero(counts) / np.maximum(counts, 1)
  return np.where(counts > 0, weights, 0).astype(np.float32)


class BalancedOrder:
  """The classes equally often, in an endless sequence of shuffled rounds.

  Each class that has examples is once in every round, so that their numbers
  differ by at most two in any part of the sequence. The n examples of a class
  come in shuffled passes: in round r, it is number r % n of its pass r // n.
  """

  def __init__(self, labels: np.ndarray, seed: int):
    counts = np.bincount(labels)
    by_class = np.argsort(labels, kind='stable')
    self._classes = np.split(by_class, np.cumsum(counts[counts > 0])[:-1])
    self._seed = seed
    # Reading ahead touches some rounds, and two passes of a class.
    most = 2 * len(self._classes) + 64
    self._shuffle = functools.lru_cache(most)(batches.shuffle)

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (passes, indices), of which no pair comes twice.

    Both are int64 [n], for positions int64 [n], as those of `EpochOrder`.
    """
    found = np.empty((2, len(positions)), np.int64)
    for i, position in enumerate(positions.tolist()):
      number, turn = divmod(position, len(self._classes))
      label = self._shuffle(len(self._classes), self._seed, number)[turn]
      examples = self._classes[label]
      which, place = divmod(number, len(examples))
      # Seeds of rounds are below 2**32.
      seed = self._seed + (int(label) + 1 << 32)
      order = self._shuffle(len(examples), seed, which)
      found[:, i] = which, examples[order[place]]
    return found[0], found[1]
