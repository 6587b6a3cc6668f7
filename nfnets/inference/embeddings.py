"""Embeddings of a dataset: computed once, and kept in the user's cache."""

import contextlib
import hashlib
import pathlib
from typing import NamedTuple
import zipfile

import jax
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from nfnets import zoo
from nfnets.data import cache, dataset, facts
from nfnets.inference import networks

_FORMAT = 1  # Of what is kept; part of the key.


class EmbeddingError(ValueError):
  """There are no embeddings; the message says why, in one line."""


class Embeddings(NamedTuple):
  """The embeddings of the examples of a split that can be read.

  Attributes:
    features: float32 [N, C].
    labels: int32 [N].
  """

  features: np.ndarray
  labels: np.ndarray


def embed(
  network: networks.Network,
  builder: tfds.core.DatasetBuilder,
  split: str,
  batch_size: int = 32,
) -> Embeddings:
  """Returns the embeddings of a split; kept in the user's cache.

  They are found there again for the same images, weights (but for the last
  layer), size and preprocessing. What is damaged is made again.

  Args:
    network: with its size, preprocessing and normalization.
    builder: a dataset from `load_builder`.
    split: one of `builders.SPLITS`.
    batch_size: how many images go through the network together.

  Raises:
    DatasetError: if the split cannot be read.
    EmbeddingError: if the embeddings are not finite.
  """
  key = _key(network, facts.fingerprint(builder, split))
  path = cache.folder() / 'embeddings' / f'{key}.npz'
  found = _load(path, key)
  if found is None:
    found = _compute(network, builder, split, batch_size)
    with contextlib.suppress(OSError):  # Computed again the next time.
      cache.save_arrays(path, key=np.array(key), **found._asdict())
  return found


def _key(network: networks.Network, images: str) -> str:
  model, params, state = network.model, network.params, network.state
  entry = model.entry
  digest = hashlib.sha256()
  digest.update(
    repr(
      (
        *(_FORMAT, images, model.name, entry.test_size, entry.eval_preproc),
        *(np.asarray(x, np.float64).tolist() for x in (entry.mean, entry.std)),
        sorted((name, repr(value)) for name, value in model.overrides.items()),
        # In float32 all runtimes agree.
        *([network.precision] if network.precision != 'float32' else []),
      )
    ).encode()
  )
  body = {
    name: leaves for name, leaves in params.items() if name != head(model)
  }
  for path, leaf in jax.tree_util.tree_leaves_with_path((body, state)):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f'{path}{leaf.dtype}{leaf.shape}'.encode())
    digest.update(leaf.data)
  return digest.hexdigest()


def _load(path: pathlib.Path, key: str) -> Embeddings | None:
  try:
    with np.load(path, allow_pickle=False) as file:
      if file['key'] != key:
        return None
      found = Embeddings(file['features'], file['labels'])
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None  # Not there, or damaged: zip files have checksums.
  return found


def _compute(
  network: networks.Network,
  builder: tfds.core.DatasetBuilder,
  split: str,
  batch_size: int,
) -> Embeddings:
  total = dataset.num_examples(builder, split)
  batches = dataset.eval_batches(
    builder,
    split,
    image_size=network.image_size,
    preprocessing=network.preprocessing,
    global_batch_size=min(batch_size, total),
    skip_corrupt=True,
  )
  bar = tqdm.tqdm(
    total=total,
    unit='image',
    dynamic_ncols=True,
    disable=None,  # Unless standard error is a terminal.
  )
  features, labels = [], []
  with batches, bar:
    for batch in batches:
      images = network.normalize(batch['images'])
      own = batch['mask'] > 0
      features.append(network.embed(images)[own])
      labels.append(batch['labels'][own])
      bar.update(int(own.sum()))
  found = Embeddings(np.concatenate(features), np.concatenate(labels))
  if not np.isfinite(found.features).all():
    raise EmbeddingError("The network's output is not finite.")
  return found


def head(model: zoo.Model) -> str:
  """Returns the name of a network's last layer among its parameters."""
  return f'{model.entry.module.__name__}/~/linear'
