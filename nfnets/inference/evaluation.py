"""A network's predictions for a whole split, and the pictures worth a look."""

import heapq
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from nfnets import zoo
from nfnets.data import builders, dataset, folders

_THUMBNAIL = 160  # Pixels.


class ClassesError(ValueError):
  """A network has other classes than a dataset; the message says which."""


class Picture(NamedTuple):
  """An image with what the network makes of it.

  Attributes:
    index: Of the example, in its split.
    pixels: uint8 [h, w, 3], preprocessed and at most 160 pixels high and wide.
    label: The class that it has.
    predicted: The most probable class.
    confidence: The probability of that.
    of_label: The probability of the class that it has.
  """

  index: int
  pixels: np.ndarray
  label: int
  predicted: int
  confidence: float
  of_label: float


class Predictions(NamedTuple):
  """Predictions for the examples of a split that can be read.

  Attributes:
    labels: int32 [N].
    predicted: int32 [N], the most probable class; -1 where the network's output
      is not finite.
    mistakes: The wrong ones, the most confident first.
    uncertain: Those with the least confidence, the least first.
    num_skipped: How many examples could not be read.
  """

  labels: np.ndarray
  predicted: np.ndarray
  mistakes: list[Picture]
  uncertain: list[Picture]
  num_skipped: int


def predict(
  model: zoo.Model,
  params: hk.Params,
  state: hk.State,
  builder: tfds.core.DatasetBuilder,
  split: str,
  batch_size: int = 32,
  most: int = 20,
) -> Predictions:
  """Runs a network on every example of a split, once.

  Args:
    model: gives the size, the preprocessing and the normalization.
    params: its parameters.
    state: its state.
    builder: a dataset from `load_builder`, with the classes of the model.
    split: one of `builders.SPLITS`.
    batch_size: how many images go through the network together.
    most: how many pictures of each kind to keep. No others stay in memory.

  Raises:
    DatasetError: if the split cannot be read.
  """
  params, state = jax.tree.map(jnp.asarray, (params, state))
  total = dataset.num_examples(builder, split)
  batch_size = max(1, min(batch_size, total))
  labels, predicted = [], []
  mistakes, uncertain = _Gallery(most), _Gallery(most)
  batches = dataset.eval_batches(
    builder,
    split,
    image_size=model.test_size,
    preprocessing=model.entry.eval_preproc,
    global_batch_size=batch_size,
    skip_corrupt=True,
  )
  bar = tqdm.tqdm(
    total=total,
    unit='image',
    dynamic_ncols=True,
    disable=None,  # Unless standard error is a terminal.
  )
  with batches, bar:
    for number, batch in enumerate(batches):
      images = np.asarray(model.normalize(batch['images']))
      probabilities = _softmax(model.logits(params, images, state))
      for row in np.flatnonzero(batch['mask']):
        index = number * batch_size + int(row)
        label, p = int(batch['labels'][row]), probabilities[row]
        best = int(np.argmax(p)) if np.isfinite(p).all() else -1
        labels.append(label)
        predicted.append(best)
        if best < 0:
          continue
        sure, of_label = float(p[best]), float(p[label])
        found = (index, batch['images'][row], label, best, sure, of_label)
        if best != label:
          mistakes.add(sure, found)
        uncertain.add(-sure, found)
      bar.update(min(batch_size, total - number * batch_size))
  return Predictions(
    np.array(labels, np.int32),
    np.array(predicted, np.int32),
    mistakes.pictures(),
    uncertain.pictures(),
    batches.num_skipped,
  )


def check_classes(
  model: zoo.Model, builder: tfds.core.DatasetBuilder
) -> list[str]:
  """Returns the names of the classes.

  Raises:
    ClassesError: if the network has others than the dataset.
  """
  names = builders.class_names(builder)
  where = builders.title(builder)
  if model.num_classes != len(names):
    has = f'{model.num_classes} classes' if model.num_classes else 'no classes'
    raise ClassesError(f'The network has {has}, and {where} has {len(names)}.')
  own = model.class_names
  if own and list(own) not in (names, builders.label_names(builder)):
    label = next(i for i, name in enumerate(own) if name != names[i])
    raise ClassesError(
      f'The classes of the network are not those of {where}: number {label} is '
      f'{own[label]!r}, and there {names[label]!r}.'
    )
  return names


def split_name(builder: tfds.core.DatasetBuilder, split: str) -> str:
  """Returns what a split is called: 'test' may be the validation images."""
  if isinstance(builder, folders.Folder) and split == 'test':
    return builder.test_split_name
  return {'valid': 'validation'}.get(split, split)


class _Gallery:
  """The pictures of the highest scores, the first of those that are equal."""

  def __init__(self, most: int):
    self._most = most
    self._heap: list[tuple[float, int, Picture]] = []

  def add(self, score: float, found: tuple) -> None:
    index, pixels, *rest = found
    key = (score, -index)
    if len(self._heap) == self._most and key < self._heap[0][:2]:
      return
    picture = Picture(index, _thumbnail(pixels), *rest)
    heapq.heappush(self._heap, (*key, picture))
    if len(self._heap) > self._most:
      heapq.heappop(self._heap)

  def pictures(self) -> list[Picture]:
    return [entry[2] for entry in sorted(self._heap, reverse=True)]


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
  # A copy: batches are views of memory that is used again.
  pixels = np.uint8(np.clip(np.rint(pixels), 0, 255))
  if max(pixels.shape[:2]) <= _THUMBNAIL:
    return pixels
  image = Image.fromarray(pixels)
  image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
  return np.asarray(image)


def _softmax(logits) -> np.ndarray:
  logits = np.asarray(logits, np.float64)
  with np.errstate(invalid='ignore'):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
