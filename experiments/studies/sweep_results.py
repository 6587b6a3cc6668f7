"""What came out of a sweep: a table, and small multiples with error bars."""

from collections.abc import Iterable, Mapping
import csv
import dataclasses
import math
import pathlib
import statistics
import sys
from typing import Any

from matplotlib import figure

from experiments.studies import sweep_file, sweep_trials
from nfnets import paths


@dataclasses.dataclass(frozen=True)
class Row:
  """One point of a sweep, over its seeds.

  Attributes:
    point: {axis: name of its value}.
    values: the metric of the trials that ended well.
    diverged: the number of trials that came to numbers that are not finite.
  """

  point: Mapping[str, Any]
  values: tuple[float, ...]
  diverged: int

  @property
  def mean(self) -> float:
    """The mean of the values; NaN without any."""
    return statistics.mean(self.values) if self.values else math.nan

  @property
  def spread(self) -> float:
    """Their standard deviation, of a sample; NaN for less than two."""
    return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


def summarize(
  sweep: sweep_file.Sweep, trials: Iterable[sweep_trials.Trial]
) -> list[Row]:
  """Returns a row for each point that was tried, in the order of the axes."""
  points: dict[str, list[sweep_trials.Trial]] = {}
  for trial in trials:
    points.setdefault(repr(trial.point), []).append(trial)
  rows = [
    Row(
      point=found[0].point,
      values=tuple(t.value for t in found if t.value is not None),
      diverged=sum(t.diverged for t in found),
    )
    for found in points.values()
  ]
  # As in the file; what a sampler has chosen, by size.
  orders = [
    list(axis).index if isinstance(axis, Mapping) else lambda value: value
    for axis in sweep.axes.values()
  ]
  return sorted(
    rows,
    key=lambda row: [
      order(value)
      for order, value in zip(orders, row.point.values(), strict=True)
    ],
  )


def write(
  sweep: sweep_file.Sweep,
  trials: list[sweep_trials.Trial],
  folder: pathlib.Path,
) -> dict[str, str]:
  """Writes `trials.csv`, `sweep.csv` and `sweep.png`; shows the table.

  Args:
    sweep: what was tried.
    trials: those that have ended.
    folder: where the files go.

  Returns:
    {'table': ..., 'picture': ...}, their paths; {} if no trial has ended.
  """
  if not trials:
    return {}
  axes = list(sweep.axes)
  _write_csv(
    folder / 'trials.csv',
    [*axes, 'seed', sweep.metric, 'diverged', 'folder'],
    [
      [*t.point.values(), t.seed, t.value, int(t.diverged), t.folder.name]
      for t in sorted(trials, key=lambda t: t.folder.name)
    ],
  )
  rows = summarize(sweep, trials)
  table = folder / 'sweep.csv'
  header = [*axes, 'mean', 'spread', 'seeds', 'diverged']
  cells = [
    [*row.point.values(), row.mean, row.spread, len(row.values), row.diverged]
    for row in rows
  ]
  _write_csv(table, header, cells)
  print(_as_text(header, cells), file=sys.stderr)
  picture = folder / 'sweep.png'
  with paths.writing(str(picture)) as temporary:
    draw(sweep, rows).savefig(temporary, dpi=100, format='png')
  return {'table': str(table), 'picture': str(picture)}


def draw(sweep: sweep_file.Sweep, rows: list[Row]) -> figure.Figure:
  """Returns small multiples of the metric.

  The first axis of the sweep is from left to right, and each choice of the
  others is a picture, with the others' curves behind in grey. What a sampler
  has chosen from continuous axes is points, with a picture per axis.
  """
  is_grid = all(isinstance(axis, Mapping) for axis in sweep.axes.values())
  panels = _curves(sweep, rows) if is_grid else {a: rows for a in sweep.axes}
  # Full lines where three or four in a line make some.
  columns = min(
    len(panels), 3 if len(panels) % 4 and not len(panels) % 3 else 4
  )
  lines = -(-len(panels) // columns)
  first = next(iter(sweep.axes.values()))
  width = max(2.6, 0.45 * len(first)) if is_grid else 2.6
  picture = figure.Figure(
    figsize=(width * columns + 0.8, 2.4 * lines + 0.4), layout='constrained'
  )
  axes = list(picture.subplots(lines, columns, sharey=True, squeeze=False).flat)
  for ax in axes[len(panels) :]:
    ax.set_visible(False)
  for ax, (title, shown) in zip(axes, panels.items(), strict=False):
    name = next(iter(sweep.axes)) if is_grid else title
    x = _positions(sweep.axes[name], ax)
    if is_grid:
      for others in panels.values():
        ax.plot(
          [x(row.point[name]) for row in others],
          [row.mean for row in others],
          color='0.85',
          linewidth=1,
          zorder=1,
        )
      ax.set_title(title, fontsize=9)
    ax.errorbar(
      [x(row.point[name]) for row in shown],
      [row.mean for row in shown],
      [row.spread for row in shown],
      fmt='-o' if is_grid else 'o',
      markersize=3,
      capsize=2,
      color='C0',
      zorder=2,
    )
    for row in shown:
      if row.diverged:
        ax.annotate(
          f'{row.diverged} diverged',
          (x(row.point[name]), 0),
          xycoords=('data', 'axes fraction'),
          rotation=90,
          ha='center',
          va='bottom',
          fontsize=7,
          color='C3',
        )
    ax.grid(alpha=0.3)
    ax.tick_params(labelsize=8)
    ax.set_xlabel(_short(name), fontsize=8)
  picture.supylabel(sweep.metric, fontsize=9)
  return picture


def _curves(sweep: sweep_file.Sweep, rows: list[Row]) -> dict[str, list[Row]]:
  """Returns {what it is: its rows} of the curves along the first axis."""
  first = next(iter(sweep.axes))
  curves: dict[str, list[Row]] = {}
  for row in rows:
    title = ', '.join(
      f'{_short(name)} {value}'
      for name, value in row.point.items()
      if name != first
    )
    curves.setdefault(title, []).append(row)
  return curves


def _positions(axis: Any, ax: Any) -> Any:
  """Sets the ticks; returns a function from a value to where it is drawn."""
  if not isinstance(axis, Mapping):
    if getattr(axis, 'log', False):
      ax.set_xscale('log')
    return lambda value: value
  # Values of equal distance: most are factors, or no numbers.
  names = list(axis)
  labels = [str(name) for name in names]
  tilted = sum(map(len, labels)) > 24
  ax.set_xticks(
    range(len(names)),
    labels,
    rotation=40 if tilted else 0,
    ha='right' if tilted else 'center',
  )
  ax.set_xlim(-0.4, len(names) - 0.6)
  return names.index


def _short(name: str) -> str:
  return name.rpartition('.')[2].replace('_', ' ')


def _write_csv(
  path: pathlib.Path, header: list[str], rows: list[list[Any]]
) -> None:
  with (
    paths.writing(str(path)) as temporary,
    open(temporary, 'w', newline='') as file,
  ):
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(rows)


def _as_text(header: list[str], rows: list[list[Any]]) -> str:
  """Returns a table with aligned columns."""
  lines = [[_short(name) for name in header]] + [
    [f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row]
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) for cell, width in zip(line, widths, strict=True)
    )
    for line in lines
  )
