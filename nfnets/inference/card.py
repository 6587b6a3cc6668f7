"""The model card beside a network's weights: when one is written."""

from collections.abc import Mapping
import hashlib
import logging
import os
import re
from typing import Any

import tensorflow_datasets as tfds

from nfnets import paths
from nfnets.data import builders
from nfnets.inference import card_text, evaluation, measures
from nfnets.weights import fetching, files

NAME = 'README.md'
WEIGHTS = 'weights.safetensors'
# At the end of a card, so that one that was changed by hand is recognized.
_MARK = re.compile(r'\n<!-- nfnets.card ([0-9a-f]{16}) -->\n\Z')


class ChangedError(ValueError):
  """There is a file that no card may replace; the message says which."""


def write(
  folder: str | os.PathLike[str], text: str, overwrite: bool = False
) -> str:
  """Writes a card, in full or not at all, and returns the path of the file.

  Args:
    folder: where the weights are.
    text: what `card_text.make` returns.
    overwrite: whether to replace a file that is no card, or one that was
      changed since.

  Raises:
    ChangedError: if there is such a file.
    OSError: if it cannot be written.
  """
  path = paths.path(folder) / NAME
  if not overwrite and paths.is_file(path):
    if not _is_ours(paths.read_bytes(path)):
      raise ChangedError(
        f'{path} is no model card, or was changed by hand; it stays as it is.'
      )
  paths.write_bytes(path, _signed(text))
  return os.fspath(path)


def write_beside(
  weights: str | os.PathLike[str],
  info: Mapping[str, Any] | None = None,
  measured: card_text.Measured | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> str | None:
  """Writes the card of a network that has a folder to itself.

  That is so where the file is called weights.safetensors. A card that somebody
  has changed stays as it is.

  Args:
    weights: the file.
    info: what is in run.json, if training left one.
    measured: results on a dataset, if there are any.
    metadata: of the file; None reads them.

  Returns:
    The path of the card; None if there is none.

  Raises:
    OSError: if it cannot be written.
  """
  path = paths.path(weights)
  if path.name != WEIGHTS:
    return None
  if metadata is None:
    metadata = files.read_metadata(fetching.find(weights))
  try:
    return write(path.parent, card_text.make(metadata, info, measured))
  except ChangedError as error:
    logging.getLogger(__name__).info('%s', error)
    return None


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _signed(text: str) -> bytes:
  return f'{text}\n<!-- nfnets.card {_digest(text)} -->\n'.encode()


def _is_ours(content: bytes) -> bool:
  text = content.decode('utf-8', 'replace').replace('\r\n', '\n')
  mark = _MARK.search(text)
  return mark is not None and mark[1] == _digest(text[: mark.start()])


def summarize(
  found: evaluation.Predictions,
  builder: tfds.core.DatasetBuilder,
  chosen: bool = False,
) -> card_text.Measured:
  """Returns what the card shows of predictions for the test images."""
  names = builders.class_names(builder)
  return card_text.Measured(
    builders.title(builder),
    evaluation.split_name(builder, 'test'),
    names,
    measures.by_class(found.labels, found.predicted, len(names)),
    chosen,
  )
