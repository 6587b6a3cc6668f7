"""A page about a network and a dataset: numbers, curves and pictures."""

from collections.abc import Mapping, Sequence
import json
import os
import shlex
from typing import Any

import haiku as hk
import numpy as np
import tensorflow_datasets as tfds

from nfnets import zoo
from nfnets.data import builders, dataset, facts, folders
from nfnets.inference import (
  advice,
  card,
  curves,
  evaluation,
  figures,
  measures,
  page,
  runs,
)

_MANY_CLASSES = 20  # More than that, and the confusion matrix is a picture.
_SHOWN_CLASSES = 20  # Of many; the others are folded up.
_PAIRS = 20
_CELLS = 400  # Rows of the picture; more classes than that share them.
_SHADES = 9  # Of the confusion matrix, as in the style sheet.
# Reading the labels of more records than that would take longer than the rest.
_MOST_RECORDS = 50_000


class ReportError(ValueError):
  """There cannot be a report; the message says why, in one line."""


def write(run: str, batch_size: int = 32) -> str:
  """Writes `report.html` into the folder of a run, and renews its card.

  Args:
    run: the folder, which has run.json and weights.safetensors.
    batch_size: how many images go through the network together.

  Returns:
    The path of the file. It appears whole or not at all.

  Raises:
    OSError: if a file cannot be read or written.
    ValueError: if this is no such folder, the run had no dataset, or the
      weights or the dataset cannot be read, or do not belong together.
  """
  opened = runs.open_run(run)
  network = opened.model, opened.params, opened.state, opened.builder, 'test'
  evaluation.check_classes(opened.model, opened.builder)
  found = evaluation.predict(*network, batch_size=batch_size)
  html = make(
    *network,
    # What decided on the way which weights are best is no test of them.
    train_split='train' if opened.validates else 'train_and_valid',
    run_info=opened.info,
    scalars=curves.read_run(opened.folder),
    weights_name=os.fspath(opened.weights),
    found=found,
  )
  output = os.fspath(opened.folder / 'report.html')
  page.save(output, html)
  measured = card.summarize(found, opened.builder, opened.chose_by_test)
  card.write_beside(opened.weights, opened.info, measured)
  return output


def make(
  model: zoo.Model,
  params: hk.Params,
  state: hk.State,
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  train_split: str = 'train_and_valid',
  run_info: Mapping[str, Any] | None = None,
  scalars: Mapping[str, curves.Scalars] | None = None,
  weights_name: str = '',
  batch_size: int = 32,
  found: evaluation.Predictions | None = None,
) -> str:
  """Returns the page as HTML.

  Args:
    model: the network; its size and preprocessing are used.
    params: its parameters.
    state: its state.
    builder: a dataset from `load_builder`.
    split: what to evaluate on, 'test' or 'valid'.
    train_split: what training sees, whose images are counted.
    run_info: what is in run.json, if there is a run.
    scalars: what `curves.read_run` returns of it.
    weights_name: where the weights are from, to be shown.
    batch_size: how many images go through the network together.
    found: the predictions, if they were made already.

  Raises:
    ClassesError: if network and dataset have different classes.
    ReportError: if no image can be read.
    DatasetError: if the split cannot be read.
  """
  names = evaluation.check_classes(model, builder)
  # Before the network runs, because it is quick to fail.
  train = _train_counts(builder, train_split)
  sizes = facts.image_sizes(builder, split)
  if found is None:
    found = evaluation.predict(
      model, params, state, builder, split, batch_size=batch_size
    )
  if not len(found.labels):
    raise ReportError(
      f'None of the {found.num_skipped} images of {builders.title(builder)}, '
      f'split {split!r}, can be read.'
    )
  counts = measures.by_class(found.labels, found.predicted, len(names))
  scalars = scalars or {}
  folder = builder if isinstance(builder, folders.Folder) else None
  _, train_loss = scalars.get('train', {}).get('train_loss', ([], []))
  warned = [
    *_on_skipped(found.num_skipped),
    *advice.on_curves(train_loss),
    *advice.on_predictions(names, counts, int(np.sum(found.predicted < 0))),
    *advice.on_duplicates(folder.duplicates() if folder else ()),
    *advice.on_split(evaluation.split_name(builder, split)),
    *advice.on_counts(names, train, counts.total),
    *advice.on_images(sizes, model.test_size),
  ]
  context = {
    'dataset': builders.title(builder),
    'split': evaluation.split_name(builder, split),
    'facts': _facts(model, weights_name, builder, split, train, found),
    'accuracy': _share(counts.correct.sum(), counts.total.sum()),
    'num_classes': len(names),
    'warned': warned,
    'curves': figures.draw_curves(scalars),
    'classes': _classes(names, counts, train),
    'shown_classes': _SHOWN_CLASSES,
    'has_train': train is not None,
    'confusion': _confusion(names, found),
    'galleries': _galleries(names, found, folder and folder.paths(split)),
    'run': _run(run_info),
  }
  return page.render(context)


def _share(correct: int, total: int) -> dict[str, Any]:
  low, high = measures.wilson(correct, total)
  return {
    'correct': int(correct),
    'total': int(total),
    'share': float(correct / total) if total else 0.0,
    'low': float(low),
    'high': float(high),
  }


def _train_counts(
  builder: tfds.core.DatasetBuilder, split: str
) -> np.ndarray | None:
  """Returns the training images per class; None if there are too many."""
  try:
    is_folder = isinstance(builder, folders.Folder)
    if not is_folder and dataset.num_examples(builder, split) > _MOST_RECORDS:
      return None
    return facts.class_counts(builder, split)
  except dataset.DatasetError:
    return None  # A dataset that is only there to be tested on.


def _on_skipped(number: int) -> list[advice.Warned]:
  if not number:
    return []
  text = f'{number:,} test images cannot be read; they are left out.'
  return [advice.Warned(text)]


def _facts(
  model: zoo.Model,
  weights_name: str,
  builder: tfds.core.DatasetBuilder,
  split: str,
  train: np.ndarray | None,
  found: evaluation.Predictions,
) -> list[tuple[str, str]]:
  number = f'{len(found.labels):,} ({evaluation.split_name(builder, split)})'
  rows = [
    ('Network', model.name),
    ('Weights', weights_name),
    ('Data', builders.title(builder)),
    ('Test images', number),
    ('Training images', '' if train is None else f'{train.sum():,}'),
    ('Image size', f'{model.test_size} × {model.test_size} pixels'),
    ('Preprocessing', model.entry.eval_preproc),
  ]
  return [row for row in rows if row[1]]


def _classes(
  names: Sequence[str], counts: measures.ByClass, train: np.ndarray | None
) -> list[dict[str, Any]]:
  """Returns the rows of the table, the least accurate first."""
  rows = []
  for label, name in enumerate(names):
    row = _share(counts.correct[label], counts.total[label])
    row |= {'label': label, 'name': name}
    row['predicted'] = int(counts.predicted[label])
    row['train'] = None if train is None else int(train[label])
    rows.append(row)
  # What is known to be bad comes before what few images say.
  return sorted(rows, key=lambda r: (not r['total'], r['share'], r['high']))


def _confusion(
  names: Sequence[str], found: evaluation.Predictions
) -> dict[str, Any]:
  """Returns the matrix as a table or as a picture, and the worst pairs."""
  labels, predicted = found.labels, found.predicted
  matrix = measures.confusion(labels, predicted, len(names), _CELLS)
  pairs = [
    {
      'label': names[label],
      'predicted': names[other],
      'count': count,
      **_share(count, np.sum(labels == label)),
    }
    for label, other, count in measures.confused_pairs(
      labels, predicted, _PAIRS
    )
  ]
  if len(names) > _MANY_CLASSES:
    return {'picture': figures.draw_confusion(matrix), 'pairs': pairs}
  totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  # Rounded up, so that a single mistake is not white.
  shades = np.ceil(matrix / totals * _SHADES).astype(int)
  rows = [
    {
      'label': label,
      'name': name,
      'cells': list(zip(matrix[label], shades[label], strict=True)),
    }
    for label, name in enumerate(names)
  ]
  return {'picture': None, 'rows': rows, 'pairs': pairs}


def _galleries(
  names: Sequence[str],
  found: evaluation.Predictions,
  paths: Sequence[str] | None,
) -> list[dict[str, Any]]:
  def show(picture: evaluation.Picture) -> dict[str, Any]:
    path = f'example {picture.index}' if paths is None else paths[picture.index]
    return {
      'uri': figures.picture(picture.pixels),
      'is_small': max(picture.pixels.shape[:2]) < 96,
      'path': path,
      'label': names[picture.label],
      'predicted': names[picture.predicted],
      'is_right': picture.label == picture.predicted,
      'confidence': picture.confidence,
      'of_label': picture.of_label,
    }

  return [
    {
      'title': 'The most confident mistakes',
      'note': 'Where the network is sure and wrong: often a wrong label, or '
      'two things in one picture.',
      'none': 'There are no mistakes.',
      'pictures': [show(picture) for picture in found.mistakes],
    },
    {
      'title': 'The least certain images',
      'note': 'Where its first choice gets the least probability, right or '
      'wrong: what to collect more of.',
      'none': 'There are none.',
      'pictures': [show(picture) for picture in found.uncertain],
    },
  ]


def _run(info: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns the command and all settings as text."""
  if info is None:
    return None
  command = info.get('command', '')
  if isinstance(command, list):
    command = shlex.join(command)
  tables = [
    (title, [(k, _as_text(v)) for k, v in sorted(info[key].items())])
    for title, key in (
      ('Results', 'results'),
      ('Settings', 'settings'),
      ('Run', 'run'),
      ('Versions', 'versions'),
    )
    if isinstance(info.get(key), dict)
  ]
  return {
    'command': str(command),
    'started': str(info.get('started', '')),
    'tables': tables,
  }


def _as_text(value: Any) -> str:
  if isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False)
