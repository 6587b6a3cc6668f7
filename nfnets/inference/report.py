"""A page about a network and a dataset: numbers, curves and pictures.

It works offline and runs nothing: all pictures are inside, there is no script,
names are escaped, and a Content-Security-Policy forbids whatever else a name
could bring in.
"""

import base64
from collections.abc import Mapping
import dataclasses
import hashlib
import os
from typing import Any

import markupsafe
import numpy as np
import tensorflow_datasets as tfds

from nfnets import messages, paths
from nfnets.data import builders, class_balance, dataset, folders
from nfnets.errors import UserError
from nfnets.inference import (
  card,
  curves,
  drawing,
  evaluation,
  networks,
  report_warnings,
  runs,
  suspects,
  templates,
)

_MANY_CLASSES = 20  # More than that, and the confusion matrix is a picture.
# The side of its cells in pixels by the most classes that have it: about 900
# pixels in all. Beside smaller cells there is no room for names.
_CELL_SIDES = {50: 16, 80: 12, 150: 9}
_PAIRS = 20
_CELLS = 400  # Rows of the picture; more classes than that share them.
# Reading the labels of more records than that would take longer than the rest.
_MOST_RECORDS = 50_000


def write(
  run: str, batch_size: int = 32, tta: str | None = None
) -> dict[str, Any]:
  """Write `report.html` into the folder of a run, and renew its card.

  Args:
    run: the folder, which has run.json and weights.safetensors.
    batch_size: images per batch.
    tta: see `networks.Network`. The card, which is of the network alone, stays
      as it is then.

  Returns:
    What `save` returns.

  Raises:
    OSError: if a file cannot be read or written.
    ValueError: if this is no such folder, the run had no dataset, or the
      weights or the dataset cannot be read, or do not belong together.
  """
  opened = runs.open_run(run)
  html, found = make(
    dataclasses.replace(opened.network, tta=tta),
    *(opened.builder, 'test'),
    # The images that decided which weights are best are no test of them.
    train_split='train' if opened.validates else 'train_and_valid',
    run_info=opened.info,
    weights_name=os.fspath(opened.weights),
    scalars=curves.read_run(opened.folder),
    best_step=opened.best_step,
    batch_size=batch_size,
  )
  output = os.fspath(opened.folder / 'report.html')
  results = save(output, html, found, opened.builder, 'test')
  if not tta:
    found = dataclasses.replace(found, chose_weights=opened.chose_by_test)
    card.write_beside(opened.weights, opened.info, found)
  return results


def save(
  path: str,
  html: str,
  found: evaluation.Evaluation,
  builder: tfds.core.DatasetBuilder,
  split: str,
) -> dict[str, Any]:
  """Write a page, and beside it the suspect labels; each whole or not at all.

  Returns:
    What a command prints as its last line.
  """
  # Names of files can hold what UTF-8 has not.
  paths.write_bytes(path, html.encode('utf-8', 'backslashreplace'))
  table = os.fspath(paths.path(path).parent / suspects.NAME)
  suspects.write(table, suspects.find(found, builder, split))
  results = {'output': path, 'suspects': table}
  return {**results, 'accuracy': found.accuracy['share'], **found.macro}


def make(
  network: networks.Network,
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  train_split: str = 'train_and_valid',
  run_info: Mapping[str, Any] | None = None,
  weights_name: str = '',
  scalars: Mapping[str, curves.Scalars] | None = None,
  best_step: int | None = None,
  batch_size: int = 32,
) -> tuple[str, evaluation.Evaluation]:
  """Evaluate a network; return the page, as HTML, and the predictions.

  Args:
    network: the network.
    builder: a dataset from `load_builder`.
    split: the split to evaluate, 'test' or 'valid'.
    train_split: the training split, whose images are counted.
    run_info: the content of run.json, if there is a run.
    weights_name: the source of the weights, for the page.
    scalars: what `curves.read_run` returns for the run.
    best_step: the step of training that was found to be best.
    batch_size: images per batch.

  Raises:
    UserError: see `evaluation.evaluate`.
  """
  # Before the network runs, because it is quick to fail.
  sizes = builders.image_sizes(builder, split)
  train = _train_counts(builder, train_split)
  found = evaluation.evaluate(network, builder, split, batch_size)
  scalars = scalars or {}
  folder = builder if isinstance(builder, folders.Folder) else None
  files, unreadable, copies = None, {}, ([], [])
  if folder is not None:
    files = folder.paths(split)
    copies = folder.duplicates(), folder.contradictions()
    unreadable = {
      os.path.join(folder.root, path): error
      for path, error in folder.unreadable.items()
    }
  _, loss = scalars.get('train', {}).get('train_loss', ((), ()))
  rows = curves.rows(scalars.get('eval', {}), best_step)
  stopped_early = (run_info or {}).get('results', {}).get('stopped_early')
  matrix = found.confusion(_CELLS)
  is_table = found.num_classes <= _MANY_CLASSES
  cell = next((v for k, v in _CELL_SIDES.items() if len(matrix) <= k), 2)
  style = (templates.FOLDER / 'report.css').read_text(encoding='utf-8')
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  html = templates.render(
    'report.html.jinja',
    _visible,
    network=network,
    found=found,
    weights_name=weights_name,
    train=None if train is None else [int(x) for x in train],
    warned=[
      *([report_warnings.Warned(found.note)] if found.note else []),
      *report_warnings.check_files(unreadable | found.skipped, *copies),
      *report_warnings.check_predictions(found),
      *report_warnings.check_class_counts(found, train),
      *report_warnings.check_setup(
        found.split, sizes, network.image_size, loss
      ),
      *report_warnings.check_training(rows, bool(stopped_early)),
    ],
    rows=rows,
    stopped_early=stopped_early,
    curves=drawing.draw_curves(scalars),
    matrix=matrix.tolist() if is_table else None,
    heat_map=None if is_table else drawing.draw_confusion(matrix, cell),
    cell=cell,
    has_others=found.num_classes < found.predicted.max() + 1,
    pairs=found.confused_pairs(_PAIRS),
    draw=drawing.picture,
    files=files,
    run=run_info,
    commands=card.commands(run_info or {}),
    # The style is the project's own, and not a user's.
    style=markupsafe.Markup(style),
    style_digest=digest,
  )
  return html, found


def _visible(value: Any) -> Any:
  """Show marks that would turn or hide the text around them as escapes."""
  if not isinstance(value, str) or isinstance(value, markupsafe.Markup):
    return value
  return messages.printable(value)


def _train_counts(
  builder: tfds.core.DatasetBuilder, split: str
) -> np.ndarray | None:
  """Return the training images per class; None if there are too many."""
  try:
    is_folder = isinstance(builder, folders.Folder)
    if not is_folder and dataset.num_examples(builder, split) > _MOST_RECORDS:
      return None
    return class_balance.class_counts(builder, split)
  except UserError:
    return None  # A dataset that is only there to be tested on.
