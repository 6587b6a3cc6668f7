"""Draws the curves of one or more runs.

python experiments/tools/plot_runs.py RUN [RUN ...] --output=curves.png

Reads the TensorBoard files of the runs: loss and top-1 accuracy on the training
batches and, if evaluated, on the test split. Runs with `log_layers` also get
heat maps of depth and step.
"""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nfnets import finite_json, paths  # noqa: E402
from nfnets.errors import UserError  # noqa: E402
from nfnets.inference import command_line  # noqa: E402

if TYPE_CHECKING:
  from matplotlib import figure

# {title: (name in training, name in evaluation)}.
_PANELS = {
  'cross-entropy': ('train_loss', 'eval_loss'),
  'top-1 accuracy': ('top_1_acc', 'eval_top_1_acc'),
}
# {quantity of a layer: (title, colour scale)}.
_LAYERS = {
  'layers_max_ratio': ('largest ‖g‖/‖w‖ of its units', 'log'),
  'layers_median_ratio': ('median ‖g‖/‖w‖', 'log'),
  'layers_fraction_clipped': ('fraction of units clipped', 'linear'),
}
# Smaller fractions of the maximum get the lowest colour.
_LEAST = 1e-5


def make_picture(folders: list[pathlib.Path]) -> 'figure.Figure':
  """Draw the curves of runs, and below a row with the layers of each run."""
  from matplotlib import figure

  from nfnets.inference import curves

  runs = {folder: curves.read_run(folder) for folder in folders}
  # {folder: {quantity: {layer, input first: (steps, values)}}}.
  maps: dict[Any, dict[str, dict]] = {}
  for folder, run in runs.items():
    for name in sorted(run['train']):
      quantity, _, layer = name.partition('/')
      if quantity in _LAYERS:
        rows = maps.setdefault(folder, {}).setdefault(quantity, {})
        rows[layer] = run['train'][name]
  heights = [4] + [5] * len(maps)
  picture = figure.Figure(figsize=(10, sum(heights)), layout='constrained')
  parts = picture.subfigures(len(heights), squeeze=False, height_ratios=heights)
  top, *below = parts[:, 0]
  axes = top.subplots(1, len(_PANELS))
  for ax, (title, names) in zip(axes, _PANELS.items(), strict=True):
    for i, (folder, run) in enumerate(runs.items()):
      for mode, split, style, name in (
        ('train', 'training', '-', names[0]),
        ('eval', 'test', '--o', names[1]),
      ):
        if name in run[mode]:
          label = f'{folder.name}, {split}'
          ax.plot(*run[mode][name], style, c=f'C{i}', lw=1, label=label)
    ax.set(title=title, xlabel='step')
    ax.grid(alpha=0.3)
  handles, labels = axes[-1].get_legend_handles_labels()
  top.legend(handles, labels, loc='outside lower center', ncols=4)
  for part, (folder, layers) in zip(below, maps.items(), strict=True):
    part.suptitle(folder.name)
    _draw_layers(part, layers)
  return picture


def _draw_layers(part: Any, maps: dict[str, dict]) -> None:
  """Draw a heat map for each quantity: layers over steps."""
  from matplotlib import colors

  axes = part.subplots(1, len(maps), sharey=True, squeeze=False)[0]
  for ax, (quantity, rows) in zip(axes, maps.items(), strict=True):
    title, scale = _LAYERS[quantity]
    steps = next(iter(rows.values()))[0]
    values = np.asarray([row for _, row in rows.values()])
    norm = colors.Normalize(0, 1)
    if scale == 'log':
      # A vanishing gradient must not stretch the colour scale.
      most = values.max() or 1
      least = values[values > most * _LEAST].min(initial=most / 10)
      norm = colors.LogNorm(least, most, clip=True)
    image = ax.pcolormesh(
      steps, range(len(rows)), values, norm=norm, shading='nearest'
    )
    part.colorbar(image, ax=ax, location='bottom', label=title)
    ax.set_xlabel('step')
    # At most 30 labels.
    every = -(-len(rows) // 30)
    names = [name.partition(' ')[2] for name in rows]
    ax.set_yticks(range(0, len(rows), every), names[::every], fontsize=6)
  axes[0].invert_yaxis()


def main() -> int:
  parser = command_line.Parser(description=__doc__.split('\n')[0])
  parser.add_argument('folders', nargs='+', metavar='RUN')
  parser.add_argument('--output', default='curves.png')
  return command_line.run(_plot, parser.parse_args())


def _plot(args: argparse.Namespace) -> int:
  output = paths.path(args.output)
  folders = [paths.path(folder) for folder in args.folders]
  for folder in folders:
    if not paths.is_dir(folder / 'train'):
      raise UserError(f'there is no training run in {folder}')
  picture = make_picture(folders)
  with paths.writing(args.output) as temporary, open(temporary, 'wb') as file:
    picture.savefig(file, dpi=120, format=output.suffix[1:] or 'png')
  return finite_json.print_results({'output': args.output})


if __name__ == '__main__':
  sys.exit(main())
