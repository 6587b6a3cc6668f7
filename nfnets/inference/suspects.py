"""Labels that may be wrong, as a table.

A label is suspect where a classifier that has not learned from the picture
gives another class more probability. The larger the difference, the more
suspect: the normalized margin of Northcutt, Jiang and Chuang 2021, Confident
Learning, https://arxiv.org/abs/1911.00068.
"""

import csv
import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nfnets import paths
from nfnets.data import builders
from nfnets.inference import evaluation

NAME = 'suspects.csv'
_COLUMNS = ('path', 'label', 'predicted', 'p_label', 'p_predicted', 'split')
_FORMULAS = tuple('=+-@\t\r')


def find(
  found: evaluation.Evaluation, builder: tfds.core.DatasetBuilder, split: str
) -> list[tuple[Any, ...]]:
  """Return a row for each label that is contradicted; see `_COLUMNS`.

  Args:
    found: predictions for examples that were not trained on.
    builder: the dataset.
    split: which split of it the examples are of; one of `builders.SPLITS`.
  """
  name = builders.example_names(builder, split)
  wrong = (found.predicted >= 0) & (found.predicted != found.labels)
  return [
    (
      name(found.indices[i]),
      found.names[found.labels[i]],
      found.names[found.predicted[i]],
      *(float(found.of_label[i]), float(found.confidence[i])),
      split.partition('_')[0],  # 'train' for 'train_and_valid'.
    )
    for i in np.flatnonzero(wrong)
  ]


def write(path: str, rows: list[tuple[Any, ...]]) -> None:
  """Write rows as CSV, the most suspect first, in full or not at all."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(_COLUMNS)
  for *texts, of_label, confidence, split in sorted(
    rows, key=lambda row: (row[3] - row[4], row[0])
  ):
    # Spreadsheets would run such names as formulas.
    safe = [f"'{x}" if x.startswith(_FORMULAS) else x for x in texts]
    writer.writerow([*safe, f'{of_label:.6f}', f'{confidence:.6f}', split])
  # Names of files can hold what UTF-8 has not.
  paths.write_bytes(path, file.getvalue().encode('utf-8', 'backslashreplace'))
