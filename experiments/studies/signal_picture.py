"""The picture of how signals propagate: three measures by depth."""

from collections.abc import Iterable, Sequence
import math
import pathlib
from typing import Any

from matplotlib import axes, figure, lines, ticker

from experiments.studies.signal_measure import Row
from nfnets import paths

FORMATS = ('png', 'pdf', 'svg')
# Okabe and Ito's, which the colour-blind tell apart, too.
_COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00')
_DASHES = ('-', (0, (6, 1)), (0, (1, 1)))  # For more networks than colours.
_EXPECTED = {'color': 'black', 'linewidth': 1, 'linestyle': (0, (3, 2))}
_TRANSITION = {'color': '0.75', 'linewidth': 0.8}
# What is drawn, what is expected of it, and how it is called.
_PANELS = (
  ('avg_sq_mean', None, 'squared channel mean'),
  ('avg_var', 'expected_var', 'channel variance'),
  ('res_avg_var', 'expected_res_var', "branch's channel variance"),
)
# An axis is logarithmic if what is drawn spans more than this.
_SPAN = 200
_LEAST = 1e-8  # Of the largest value; what is less is beyond float32.
_DPI = 100


def draw(networks: Sequence[Sequence[Row]], output: paths.Name) -> None:
  """Draws the rows of networks, which `signal_measure.measure` returns.

  Those with as many blocks in each stage share a column.

  Args:
    networks: the rows of each network.
    output: the name of a file that ends in one of FORMATS.

  Raises:
    OSError: if it cannot be written.
  """
  columns: dict[tuple[int, ...], list[int]] = {}
  for i, rows in enumerate(networks):
    columns.setdefault(tuple(row.stage for row in rows), []).append(i)
  styles = [
    {
      'color': _COLORS[i % len(_COLORS)],
      'linestyle': _DASHES[i // len(_COLORS) % len(_DASHES)],
    }
    for i in range(len(networks))
  ]
  picture = figure.Figure(
    figsize=(max(8, 1 + 2.3 * len(columns)), 6.2 + 0.2 * len(networks)),
    layout='constrained',
  )
  grid = picture.subplots(
    len(_PANELS), len(columns), sharex='col', squeeze=False
  )
  for panels, (name, expected, title) in zip(grid, _PANELS, strict=True):
    for ax, members in zip(panels, columns.values(), strict=True):
      for row in networks[members[0]]:
        if row.transition:
          ax.axvline(row.block, zorder=0, **_TRANSITION)
      shown = []
      for i in members:
        shown += _plot(ax, networks[i], name, linewidth=1.8, **styles[i])
      for i in members if expected else ():
        shown += _plot(ax, networks[i], expected, **_EXPECTED)
      ax.tick_params(labelsize=8)
      ax.margins(x=0.02)
      _set_scale(ax, shown)
    panels[0].set_ylabel(title, fontsize=9)
  for ax in grid[-1]:
    ax.set_xlabel('block', fontsize=9)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  picture.legend(
    handles=[
      *(
        lines.Line2D([], [], linewidth=1.8, label=rows[0].network, **style)
        for rows, style in zip(networks, styles, strict=True)
      ),
      lines.Line2D([], [], label='what the analysis expects', **_EXPECTED),
      lines.Line2D([], [], label='transition blocks', **_TRANSITION),
    ],
    loc='outside lower left',
    fontsize=8.5,
    frameon=False,
  )
  with paths.writing(output) as temporary, open(temporary, 'wb') as file:
    suffix = pathlib.PurePath(output).suffix[1:]
    picture.savefig(file, dpi=_DPI, format=suffix)


def _plot(
  ax: axes.Axes, rows: Sequence[Row], name: str, **style: Any
) -> list[float]:
  """Draws one measure by depth; returns the values that there are."""
  points = [(row.block, getattr(row, name)) for row in rows]
  points = [(x, y) for x, y in points if y is not None]
  blocks, values = [x for x, _ in points], [y for _, y in points]
  ax.plot(blocks, values, **style)
  return values


def _set_scale(ax: axes.Axes, values: Iterable[float]) -> None:
  """Starts an axis at 0, or makes it logarithmic if its values span much."""
  shown = [y for y in values if 0 < y < math.inf]
  if shown and max(shown) > _SPAN * min(shown):
    ax.set_yscale('log')
    ax.set_ylim(bottom=0.7 * max(min(shown), _LEAST * max(shown)))
  else:
    ax.set_ylim(bottom=0)
