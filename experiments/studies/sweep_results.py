"""Writes the results of a sweep: tables and small multiples."""

from collections.abc import Callable, Mapping
import csv
import math
import pathlib
import statistics
import sys
from typing import Any

from matplotlib import axes as axes_lib
from matplotlib import figure
from optuna.trial import FrozenTrial, TrialState

from experiments.studies import sweep_file
from nfnets import paths


def write(
  sweep: sweep_file.Sweep, trials: list[FrozenTrial], folder: pathlib.Path
) -> dict[str, str]:
  """Write `trials.csv`, `sweep.csv` and `sweep.png`, and print the table.

  Args:
    sweep: the sweep.
    trials: the finished trials.
    folder: the folder of the files.

  Returns:
    Paths {'table': ..., 'picture': ...}; {} without finished trials.
  """
  if not trials:
    return {}
  table, picture = folder / 'sweep.csv', folder / 'sweep.png'
  points: dict[str, list[dict[str, Any]]] = {}
  for trial in trials:
    point = {name: trial.params[name] for name in sweep.axes}
    row = {
      **point,
      'seed': trial.user_attrs['seed'],
      sweep.metric: trial.value,
      'diverged': int(trial.state == TrialState.PRUNED),
      'folder': sweep.folder_of(folder, trial).name,
    }
    points.setdefault(repr(point), []).append(row)
  found = [row for rows in points.values() for row in rows]
  _write_csv(folder / 'trials.csv', sorted(found, key=lambda r: r['folder']))
  rows = []
  for found in points.values():
    values = [x for row in found if (x := row[sweep.metric]) is not None]
    rows.append(
      {
        **{name: found[0][name] for name in sweep.axes},
        'mean': statistics.mean(values) if values else math.nan,
        'spread': statistics.stdev(values) if len(values) > 1 else math.nan,
        'seeds': len(values),
        'diverged': sum(row['diverged'] for row in found),
      }
    )

  def order(row):  # The order of the file, or numerical for distributions.
    return [
      list(axis).index(row[name]) if isinstance(axis, Mapping) else row[name]
      for name, axis in sweep.axes.items()
    ]

  rows.sort(key=order)
  _write_csv(table, rows)
  for line in [map(_short, rows[0]), *map(_cells, rows)]:
    shown = (f'{x:.4g}' if isinstance(x, float) else str(x) for x in line)
    print(*(f'{text:>12}' for text in shown), file=sys.stderr)
  with paths.writing(str(picture)) as temporary:
    _draw(sweep, rows).savefig(temporary, dpi=100, format='png')
  return {'table': str(table), 'picture': str(picture)}


def _draw(sweep: sweep_file.Sweep, rows: list[dict[str, Any]]) -> figure.Figure:
  """Draw small multiples of the metric.

  The first axis of the sweep is horizontal. Each combination of the other axes
  has a panel, with the other curves in grey. For continuous axes,
  each axis has a panel with points.
  """
  first, *others = sweep.axes
  is_grid = all(isinstance(axis, Mapping) for axis in sweep.axes.values())
  # {title: (horizontal axis, rows)}.
  panels = {} if is_grid else {name: (name, rows) for name in sweep.axes}
  for row in rows if is_grid else ():
    title = ', '.join(f'{_short(name)} {row[name]}' for name in others)
    panels.setdefault(title, (first, []))[1].append(row)
  # Three columns if this fills all lines.
  columns = 3 if len(panels) % 4 and not len(panels) % 3 else 4
  columns = min(columns, len(panels))
  lines = -(-len(panels) // columns)
  width = max(2.6, 0.45 * len(sweep.axes[first])) if is_grid else 2.6
  picture = figure.Figure(
    figsize=(width * columns + 0.8, 2.4 * lines + 0.4), layout='constrained'
  )
  axes = list(picture.subplots(lines, columns, sharey=True, squeeze=False).flat)
  for ax in axes[len(panels) :]:
    ax.set_visible(False)
  for ax, (title, (name, shown)) in zip(axes, panels.items(), strict=False):
    place = _place(sweep.axes[name], ax)
    for _, curve in panels.values() if is_grid else ():
      xs, means = zip(
        *((place(x[name]), x['mean']) for x in curve), strict=True
      )
      ax.plot(xs, means, color='0.85', linewidth=1, zorder=1)
    xs = [place(row[name]) for row in shown]
    means, spreads = ([row[key] for row in shown] for key in ('mean', 'spread'))
    line = {'fmt': '-o' if is_grid else 'o', 'color': 'C0', 'zorder': 2}
    ax.errorbar(xs, means, spreads, markersize=3, capsize=2, **line)
    for row in shown:
      if row['diverged']:
        ax.annotate(
          f'{row["diverged"]} diverged',
          (place(row[name]), 0),
          xycoords=('data', 'axes fraction'),
          rotation=90,
          ha='center',
          va='bottom',
          fontsize=7,
          color='C3',
        )
    ax.grid(alpha=0.3)
    ax.tick_params(labelsize=8)
    ax.set_title(title if is_grid else '', fontsize=9)
    ax.set_xlabel(_short(name), fontsize=8)
  picture.supylabel(sweep.metric, fontsize=9)
  return picture


def _place(axis: Any, ax: axes_lib.Axes) -> Callable[[Any], Any]:
  """Set the ticks; return a function from a value to its position."""
  if not isinstance(axis, Mapping):
    ax.set_xscale('log' if getattr(axis, 'log', False) else 'linear')
    return lambda value: value
  # Equal distances, because most axes are geometric or categorical.
  names, labels = list(axis), [str(name) for name in axis]
  is_long = sum(map(len, labels)) > 24
  tilt = {'rotation': 40, 'ha': 'right'} if is_long else {}
  ax.set_xticks(range(len(names)), labels, **tilt)
  ax.set_xlim(-0.4, len(names) - 0.6)
  return names.index


def _short(name: str) -> str:
  return name.rpartition('.')[2].replace('_', ' ')


def _write_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  with (
    paths.writing(str(path)) as temporary,
    open(temporary, 'w', newline='') as file,
  ):
    writer = csv.writer(file)
    writer.writerow(rows[0])
    writer.writerows(map(_cells, rows))


def _cells(row: dict[str, Any]) -> list[Any]:
  """Return the values of a row, with '' for None and NaN."""
  return ['' if x is None or x != x else x for x in row.values()]
