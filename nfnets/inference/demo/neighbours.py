"""The images whose embeddings are the most like that of another."""

import os
import pathlib
import zipfile

import numpy as np

from nfnets.errors import UserError

_ROWS = 10_000  # Rows per computation of lengths.


class Index:
  """Embeddings of a collection of images, float32 [N, C], and paths, [N]."""

  def __init__(self, embeddings: np.ndarray, paths: np.ndarray):
    self._embeddings, self._paths = embeddings, paths
    # At once, all of them would be copied.
    lengths = [
      np.linalg.norm(embeddings[i : i + _ROWS], axis=1)
      for i in range(0, len(embeddings), _ROWS)
    ]
    # An embedding of length 0 has similarity 0.
    self._lengths = np.maximum(np.concatenate(lengths), 1e-15)

  def nearest(self, embedding: np.ndarray, k: int) -> list[tuple[str, float]]:
    """Return paths and cosines of the k most similar images, best first.

    Args:
      embedding: float32 [C].
      k: their number; all, if there are fewer.
    """
    length = max(float(np.linalg.norm(embedding)), 1e-15)
    similarity = self._embeddings @ embedding / (self._lengths * length)
    found = np.argsort(-similarity, kind='stable')[:k]
    return [(str(self._paths[i]), float(similarity[i])) for i in found]


def load(path: str, model: str) -> Index:
  """Read what `python -m nfnets.embed` has written.

  Args:
    path: an .npz, or a folder of some.
    model: the network's name, which has to be the file's.

  Raises:
    OSError: if it cannot be read.
    UserError: if it is something else, or of another network.
  """
  files = [pathlib.Path(path)]
  if os.path.isdir(path):
    files = sorted(pathlib.Path(path).glob('*.npz'))
    if not files:
      raise UserError(f'{path}: there is no .npz in this folder.')
  loaded = [_load(file, model) for file in files]
  embeddings, paths = zip(*loaded, strict=True)
  if len({x.shape[1] for x in embeddings}) > 1:
    raise UserError(f'{path}: these embeddings have different lengths.')
  return Index(np.concatenate(embeddings), np.concatenate(paths))


def _load(path: pathlib.Path, model: str) -> tuple[np.ndarray, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      embeddings, paths = np.float32(file['embeddings']), file['paths']
      name = str(file['model'])
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path}: these are no embeddings of python -m nfnets.embed.'
    ) from error
  if embeddings.ndim != 2 or not len(paths) or len(paths) != len(embeddings):
    raise UserError(f'{path}: its embeddings and paths do not fit together.')
  if name != model:
    raise UserError(
      f'{path} has embeddings of {name}, and the network is {model}.'
    )
  return embeddings, paths
