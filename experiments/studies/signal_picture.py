"""The picture of how signals propagate: three measures by depth."""

from collections.abc import Sequence
import itertools
import math
import pathlib

from matplotlib import axes, figure, lines, ticker

from experiments.studies.signal_measure import Row
from nfnets import paths

# Okabe and Ito's colours, distinguishable for colour-blind people.
_COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00')
_DASHES = ('-', (0, (6, 1)), (0, (1, 1)))  # For more networks than colours.
_EXPECTED = {'color': 'black', 'linewidth': 1, 'linestyle': (0, (3, 2))}
_TRANSITION = {'color': '0.75', 'linewidth': 0.8}
# Measured field, expected field, label.
_PANELS = (
  ('avg_sq_mean', None, 'squared channel mean'),
  ('avg_var', 'expected_var', 'channel variance'),
  ('res_avg_var', 'expected_res_var', "branch's channel variance"),
)
_SPAN = 200  # An axis is logarithmic if max / min is larger.
_LEAST = 1e-8  # Smaller fractions of the maximum are below float32 precision.


def draw(networks: Sequence[Sequence[Row]], output: str) -> None:
  """Draw the results of `signal_measure.measure`.

  Networks with the same depths share a column.

  Args:
    networks: the rows of each network.
    output: a .png, .pdf or .svg file.
  """
  columns: dict[tuple[int, ...], list] = {}
  handles, styles = [], itertools.product(_DASHES, _COLORS)
  for rows, (dash, color) in zip(networks, itertools.cycle(styles)):
    style = {'color': color, 'linestyle': dash, 'linewidth': 1.8}
    key = tuple(row.stage for row in rows)
    columns.setdefault(key, []).append((rows, style))
    handles.append(lines.Line2D([], [], label=rows[0].network, **style))
  for label, style in (
    ('expected', _EXPECTED),
    ('transition blocks', _TRANSITION),
  ):
    handles.append(lines.Line2D([], [], label=label, **style))
  picture = figure.Figure(
    figsize=(max(8, 1 + 2.3 * len(columns)), 6.2 + 0.2 * len(networks)),
    layout='constrained',
  )
  grid = picture.subplots(
    len(_PANELS), len(columns), sharex='col', squeeze=False
  )
  for panels, (name, expected, title) in zip(grid, _PANELS, strict=True):
    panels[0].set_ylabel(title, fontsize=9)
    for ax, members in zip(panels, columns.values(), strict=True):
      _draw_panel(ax, members, name, expected)
  for ax in grid[-1]:
    ax.set_xlabel('block', fontsize=9)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  picture.legend(
    handles=handles, loc='outside lower left', fontsize=8.5, frameon=False
  )
  with paths.writing(output) as temporary, open(temporary, 'wb') as file:
    suffix = pathlib.PurePath(output).suffix[1:]
    picture.savefig(file, dpi=100, format=suffix)


def _draw_panel(
  ax: axes.Axes, members: list, name: str, expected: str | None
) -> None:
  """Draw a measured field by depth, with the expected values."""
  for row in members[0][0]:
    if row.transition:
      ax.axvline(row.block, zorder=0, **_TRANSITION)
  curves = [(rows, name, style) for rows, style in members]
  if expected:
    curves += [(rows, expected, _EXPECTED) for rows, _ in members]
  shown = []
  for rows, key, style in curves:
    points = [(row.block, getattr(row, key)) for row in rows]
    points = [(x, y) for x, y in points if y is not None]
    ax.plot([x for x, _ in points], [y for _, y in points], **style)
    shown += [y for _, y in points if 0 < y < math.inf]
  ax.tick_params(labelsize=8)
  ax.margins(x=0.02)
  if shown and max(shown) > _SPAN * min(shown):
    ax.set_yscale('log')
    ax.set_ylim(bottom=0.7 * max(min(shown), _LEAST * max(shown)))
  else:
    ax.set_ylim(bottom=0)
