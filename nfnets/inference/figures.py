"""Pictures for a page: each is a data URI, so that the page is one file."""

import base64
import io
import math

import matplotlib
from matplotlib import colors, figure, ticker
import numpy as np
from PIL import Image

from nfnets.inference import curves

_INK, _GRID = '#33383f', '#d9dde3'
_BLUE = '#1d5fa8'
_TRAINING = ('train', 'training', {'color': '#8a94a3'})
_EVALUATION = ('eval', 'evaluation', {'color': _BLUE, 'marker': 'o'})
_AVERAGED = (
  *('eval', 'evaluation, averaged weights'),
  {'color': _BLUE, 'marker': 'o', 'linestyle': '--'},
)
# Title, and the names of its lines.
_PANELS = (
  (
    'loss',
    (_TRAINING, 'train_loss'),
    (_EVALUATION, 'eval_loss'),
    (_AVERAGED, 'eval_ema_loss'),
  ),
  (
    'top-1 accuracy',
    (_TRAINING, 'top_1_acc'),
    (_EVALUATION, 'eval_top_1_acc'),
    (_AVERAGED, 'eval_ema_top_1_acc'),
  ),
  ('learning rate', (_TRAINING, 'learning_rate')),
  ('fraction of gradients clipped', (_TRAINING, 'fraction_clipped')),
)
_SMALL = 64  # Pixels; smaller pictures keep every one of them.


def picture(pixels: np.ndarray) -> str:
  """Returns uint8 [H, W, 3] as a JPEG, or as a PNG if it is small."""
  file = io.BytesIO()
  if max(pixels.shape[:2]) <= _SMALL:
    Image.fromarray(pixels).save(file, 'PNG')
    return _uri('image/png', file)
  Image.fromarray(pixels).save(file, 'JPEG', quality=85)
  return _uri('image/jpeg', file)


def draw_curves(scalars: dict[str, curves.Scalars]) -> list[tuple[str, str]]:
  """Draws what `curves.read_run` returns.

  Returns:
    (title, SVG) of every panel that there are numbers for.
  """
  panels = []
  for title, *series in _PANELS:
    lines = [
      (label, style, *scalars[mode][name])
      for (mode, label, style), name in series
      if name in scalars.get(mode, {})
    ]
    if lines:
      panels.append((title, _draw_panel(lines)))
  return panels


def _draw_panel(lines: list[tuple[str, dict, list[int], list[float]]]) -> str:
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
  with matplotlib.rc_context({'svg.hashsalt': 'nfnets'}):
    canvas.savefig(
      file, format='svg', metadata={'Date': None}, transparent=True
    )
  return _uri('image/svg+xml', file)


def draw_confusion(matrix: np.ndarray) -> str:
  """Draws int [C, C], labels by predictions, as shares of each row; a PNG."""
  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  # Cells are whole pixels, about 800 of them in all.
  scale = max(1, math.ceil(800 / len(matrix)))
  shown = np.kron(shares, np.ones((scale, scale)))
  # Rare confusions are what one looks for.
  norm = colors.PowerNorm(0.4, 0, 1)
  palette = colors.LinearSegmentedColormap.from_list(
    'blue', ['#ffffff', '#9fc3ea', _BLUE, '#0b2c54']
  )
  pixels = np.uint8(np.rint(palette(norm(shown))[..., :3] * 255))
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG', optimize=True)
  return _uri('image/png', file)


def _uri(kind: str, file: io.BytesIO) -> str:
  return f'data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
