"""Pictures for a page: each is a data URI, so that the page is one file."""

import base64
from collections.abc import Mapping
import io

import matplotlib
from matplotlib import colors, figure, ticker
import numpy as np
from PIL import Image

from nfnets.inference.curves import Scalars

_INK, _GRID = '#33383f', '#d9dde3'
_BLUE, _RED = '#1d5fa8', '#d45338'
_TRAINING = ('train', 'training', {'color': '#8a94a3'})
_EVALUATION = ('eval', 'evaluation', {'color': _BLUE, 'marker': 'o'})
_FIT = (
  *('eval', 'training images, evaluated'),
  {'color': '#8a94a3', 'marker': 'o'},
)
_AVERAGED = (
  *('eval', 'evaluation, averaged weights'),
  {'color': _BLUE, 'marker': 'o', 'linestyle': '--'},
)
# Titles, and the names of their lines.
_PANELS = {
  'loss': (
    (_TRAINING, 'train_loss'),
    (_FIT, 'train_sample_loss'),
    (_EVALUATION, 'eval_loss'),
    (_AVERAGED, 'eval_ema_loss'),
  ),
  'top-1 accuracy': (
    (_TRAINING, 'top_1_acc'),
    (_FIT, 'train_sample_top_1_acc'),
    (_EVALUATION, 'eval_top_1_acc'),
    (_AVERAGED, 'eval_ema_top_1_acc'),
  ),
  'learning rate': ((_TRAINING, 'learning_rate'),),
  'fraction of gradients clipped': ((_TRAINING, 'fraction_clipped'),),
}
_SMALL = 64  # Pixels; smaller pictures keep every one of them.


def picture(pixels: np.ndarray, kind: str | None = None) -> str:
  """Return uint8 [H, W, 3] as 'jpeg' or 'png'; None: as a PNG if small."""
  file = io.BytesIO()
  kind = kind or ('png' if max(pixels.shape[:2]) <= _SMALL else 'jpeg')
  Image.fromarray(pixels).save(file, kind, quality=85, optimize=True)
  return _uri(f'image/{kind}', file)


def draw_curves(scalars: Mapping[str, Scalars]) -> list[tuple[str, str]]:
  """Return (title, SVG) of every panel that a run has numbers for.

  Args:
    scalars: what `curves.read_run` returns.
  """
  found = {
    title: [
      (label, style, *scalars[mode][name])
      for (mode, label, style), name in series
      if name in scalars.get(mode, {})
    ]
    for title, series in _PANELS.items()
  }
  return [(title, _panel(lines)) for title, lines in found.items() if lines]


def _panel(lines: list[tuple[str, dict, list[int], list[float]]]) -> str:
  canvas = figure.Figure(figsize=(4.6, 2.7), layout='constrained')
  ax = canvas.subplots()
  for label, style, steps, values in lines:
    # A single point is invisible as a line.
    style = {'marker': 'o', **style} if len(steps) == 1 else style
    ax.plot(steps, values, label=label, linewidth=1.4, markersize=4, **style)
  ax.set_xlabel('step', fontsize=9, color=_INK)
  ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  ax.tick_params(labelsize=8, colors=_INK, length=0)
  ax.grid(color=_GRID, linewidth=0.7)
  ax.spines[:].set_visible(False)
  if len(lines) > 1:
    ax.legend(fontsize=8, frameon=False, labelcolor=_INK)
  file = io.BytesIO()
  # Without a date and random names, so that the same page comes out twice.
  options = {'metadata': {'Date': None}, 'transparent': True}
  with matplotlib.rc_context({'svg.hashsalt': 'nfnets'}):
    canvas.savefig(file, format='svg', **options)
  return _uri('image/svg+xml', file)


def draw_confusion(matrix: np.ndarray, cell: int) -> str:
  """Draw int [C, C], labels by predictions, as a PNG.

  The diagonal is blue, by the share of its row. Mistakes are red, by the
  logarithm of their number, so that rare ones are seen beside frequent ones.

  Args:
    matrix: how often each class is taken for each.
    cell: the side of a cell in pixels; those of 5 and more have a grid.
  """
  right, wrong = (
    colors.LinearSegmentedColormap.from_list('', palette)
    for palette in (['#ffffff', '#9fc3ea', _BLUE], ['#f6c4b9', _RED, '#4a0d04'])
  )
  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  is_right = np.eye(len(matrix), dtype=bool)
  logs = np.log(np.maximum(matrix, 1))
  most = logs[~is_right].max(initial=1e-9)
  pixels = np.where(is_right[..., None], right(shares), wrong(logs / most))
  pixels[matrix == 0] = 1
  pixels = np.uint8(np.rint(pixels[..., :3] * 255))
  pixels = pixels.repeat(cell, axis=0).repeat(cell, axis=1)
  if cell >= 5:
    # Every tenth line is darker, to follow a row to its name.
    for step, grey in ((1, 236), (10, 176)):
      lines = slice(step * cell - 1, None, step * cell)
      pixels[lines] = pixels[:, lines] = grey
  return picture(pixels, 'png')


def _uri(kind: str, file: io.BytesIO) -> str:
  return f'data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
