"""The images whose embeddings are the most like that of another."""

import os
import pathlib
from typing import NamedTuple
import zipfile

import numpy as np

_ROWS = 10_000  # Whose lengths are computed together.


class Neighbour(NamedTuple):
  """An image of the collection.

  Attributes:
    path: as the file of embeddings has it.
    similarity: the cosine of the angle between the embeddings, -1 to 1.
  """

  path: str
  similarity: float


class Index:
  """Embeddings of a collection of images."""

  def __init__(self, embeddings: np.ndarray, paths: np.ndarray):
    """Computes the lengths.

    Args:
      embeddings: float32 [N, C].
      paths: str [N].
    """
    self.paths = paths
    self._embeddings = embeddings
    lengths = [
      np.linalg.norm(embeddings[i : i + _ROWS], axis=1)
      for i in range(0, len(embeddings), _ROWS)
    ]
    # Of what has no direction, the similarity is 0.
    self._lengths = np.maximum(np.concatenate(lengths), 1e-15)

  def nearest(self, embedding: np.ndarray, k: int) -> list[Neighbour]:
    """Returns the k most similar images, the most similar first.

    Args:
      embedding: float32 [C].
      k: how many; all, if there are fewer.

    Raises:
      ValueError: if C differs.
    """
    own = self._embeddings.shape[1]
    if embedding.shape != (own,):
      raise ValueError(
        f'The embeddings have {own} numbers, and the network makes '
        f'{len(embedding)}.'
      )
    length = max(float(np.linalg.norm(embedding)), 1e-15)
    similarity = self._embeddings @ embedding / (self._lengths * length)
    k = min(k, len(similarity))
    found = np.argpartition(-similarity, k - 1)[:k]
    found = found[np.argsort(-similarity[found], kind='stable')]
    return [Neighbour(str(self.paths[i]), float(similarity[i])) for i in found]


def load(path: str, model: str) -> Index:
  """Reads what `python -m nfnets.embed` has written.

  Args:
    path: an .npz, or a folder of some.
    model: the network's name, which has to be the file's.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is something else, or of another network.
  """
  files = [pathlib.Path(path)]
  if os.path.isdir(path):
    files = sorted(pathlib.Path(path).glob('*.npz'))
    if not files:
      raise ValueError(f'{path}: there is no .npz in this folder.')
  loaded = [_load(file, model) for file in files]
  embeddings, paths = zip(*loaded, strict=True)
  if len({x.shape[1] for x in embeddings}) > 1:
    raise ValueError(f'{path}: these embeddings have different lengths.')
  return Index(np.concatenate(embeddings), np.concatenate(paths))


def _load(path: pathlib.Path, model: str) -> tuple[np.ndarray, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      embeddings, paths = file['embeddings'], file['paths']
      own = str(file['model'])
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{path}: these are no embeddings of python -m nfnets.embed.'
    ) from error
  if (
    embeddings.ndim != 2
    or not len(embeddings)
    or not np.issubdtype(embeddings.dtype, np.floating)
    or paths.shape != embeddings.shape[:1]
  ):
    raise ValueError(f'{path}: its embeddings and paths do not fit together.')
  if own != model:
    raise ValueError(
      f'{path} has embeddings of {own}, and the network is {model}.'
    )
  return np.asarray(embeddings, np.float32), paths
