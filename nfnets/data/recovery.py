"""Other examples instead of those whose image cannot be decoded."""

from collections.abc import Callable
from concurrent import futures
import os
import re
import threading
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf

from nfnets.data.errors import DatasetError
from nfnets.data.order import Place
from nfnets.data.source import Source

# Unreadable examples that may be left out, or 1 % if that is more.
_MAX_DAMAGED = 10

Load = Callable[[tf.Tensor, Place], Any]


class Recovery:
  """Finds unreadable examples and what stands in for them.

  Where the image of an example cannot be decoded, the next one of the split
  stands in for it, or the first that can be decoded after that. Whether it can
  be is found out again for every place, because that depends on the crop where
  an image is cut short: so what is where never depends on what was read before,
  and a run that is resumed goes on as it would have.

  Attributes:
    damaged: The indices of all examples that could not be decoded so far.
  """

  def __init__(self, source: Source, load: Load, skip_corrupt: bool):
    """Reads nothing yet.

    Args:
      source: The examples.
      load: From a record (string []) and its place (of int64 []) to what the
        record holds. An example that this fails for is unreadable.
      skip_corrupt: Whether others stand in for unreadable examples; if not, the
        first of them is an error.
    """
    self._source = source
    place = Place(*[tf.TensorSpec([], tf.int64)] * len(Place._fields))
    self._load = tf.function(
      load,
      input_signature=[tf.TensorSpec([], tf.string), place],
      autograph=False,
    )
    self._skip_corrupt = skip_corrupt
    self._lock = threading.Lock()
    self.damaged: set[int] = set()

  def indices(self, places: Place) -> np.ndarray:
    """Returns which examples to read at these places, int64 [n].

    Their own, where these are not known to be damaged; they may fail.

    Raises:
      DatasetError: An example must not be left out, or too many would be.
    """
    indices = places.index.copy()
    for i in np.flatnonzero(np.isin(indices, list(self.damaged))):
      indices[i] = self._readable(places.at(i))
    return indices

  def examine(self, places: Place) -> set[int]:
    """Tries the examples at these places, and leaves out those that fail.

    Returns:
      The indices of the examples that fail.

    Raises:
      DatasetError: An example must not be left out, or too many would be.
    """
    each = [places.at(i) for i in range(len(places.index))]
    found = set()
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      reasons = pool.map(lambda place: self._try(place.index, place), each)
      for place, reason in zip(each, reasons, strict=True):
        if reason is not None:
          self._leave_out(place.index, reason)
          found.add(int(place.index))
    return found

  def _readable(self, place: Place) -> int:
    """Returns the example that is at a place: its own, or the next readable."""
    index = int(place.index)
    while (reason := self._try(index, place)) is not None:
      self._leave_out(index, reason)  # Raises before all have been tried.
      index = (index + 1) % self._source.num_examples
    return index

  def _try(self, index: int, place: Place) -> str | None:
    """Loads an example; returns what went wrong, if anything did."""
    (record,) = self._source.read(np.array([index]))
    try:
      self._load(tf.constant(record), Place(*map(tf.constant, place)))
    except tf.errors.OpError as error:
      return first_line(error)
    return None

  def _leave_out(self, index: int, reason: str) -> None:
    """Takes note of an unreadable example; raises DatasetError if it must."""
    total = self._source.num_examples
    what = (
      f'{self._source.title}: {self._source.where(index)} does not hold a '
      f'readable image: {reason}'
    )
    if not self._skip_corrupt:
      raise DatasetError(
        f'{what}. skip_corrupt=True leaves such images out and counts them.'
      )
    with self._lock:
      if index in self.damaged:
        return
      self.damaged.add(int(index))
      count = len(self.damaged)
    logging.warning('%s. It is left out.', what)
    if count == total or count > max(_MAX_DAMAGED, total // 100):
      raise DatasetError(
        f'{what}. With it {count} of {total} images are unreadable, which is '
        'too many to leave out.'
      )


def first_line(error: tf.errors.OpError) -> str:
  """The message without the names of graph nodes and where they were made."""
  text = error.message.split('\n\n')[-1]
  text = re.sub(r'\{\{.*?\}\}|\[Op:.*', '', text).strip()
  text = text.split('\n')[0].strip().rstrip('.')
  # Of tf.Assert, with which our own functions fail.
  return re.sub(r'.*assertion failed: \[(.*)\]', r'\1', text)
