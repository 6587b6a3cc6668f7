"""Draws the curves of one or several runs into a picture.

python experiments/tools/plot_runs.py RUN [RUN ...] --output=curves.png

Reads what training and evaluation wrote for TensorBoard: the loss and the top-1
accuracy on the training batches and, where there was one, on the test split.
Below these are, for runs with `log_layers`, pictures of depth and step.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from matplotlib import colors, figure
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nfnets import paths  # noqa: E402
from nfnets.inference import curves  # noqa: E402

_PANELS = (
  ('cross-entropy', ('train', 'train_loss'), ('eval', 'eval_loss')),
  ('top-1 accuracy', ('train', 'top_1_acc'), ('eval', 'eval_top_1_acc')),
)

# Quantities of each layer, in words, and how they are coloured.
_LAYERS = {
  'layers_max_ratio': ('largest ‖g‖/‖w‖ of its units', 'log'),
  'layers_median_ratio': ('median ‖g‖/‖w‖', 'log'),
  'layers_fraction_clipped': ('fraction of units clipped', 'linear'),
}
# Of the highest value, what is coloured as nothing.
_LEAST = 1e-5


def draw(folders: list[paths.Name], output: str) -> None:
  """Draws the curves of runs into a file.

  Args:
    folders: `checkpoint_dir` of each run.
    output: the name of a PNG, PDF or SVG file.
  """
  picture = make_picture(folders)
  with paths.writing(output) as temporary, open(temporary, 'wb') as file:
    kind = pathlib.PurePath(output).suffix[1:] or 'png'
    picture.savefig(file, dpi=120, format=kind)


def make_picture(folders: list[paths.Name]) -> figure.Figure:
  """Returns the curves of runs, and their layers below, a row for each run."""
  runs = {f: curves.read_run(f) for f in map(paths.path, folders)}
  with_layers = [f for f, run in runs.items() if _heat_maps(run['train'])]
  picture = figure.Figure(
    figsize=(10, 4 + 5 * len(with_layers)), layout='constrained'
  )
  parts = picture.subfigures(
    1 + len(with_layers),
    squeeze=False,
    height_ratios=[4, *(5 for _ in with_layers)],
  )[:, 0]
  _draw_curves(parts[0], runs)
  for part, folder in zip(parts[1:], with_layers, strict=True):
    part.suptitle(folder.name)
    _draw_layers(part, _heat_maps(runs[folder]['train']))
  return picture


def _draw_curves(part: Any, runs: dict[Any, dict[str, curves.Scalars]]) -> None:
  """Draws a line for each run and split, in a picture for each quantity."""
  axes = part.subplots(1, len(_PANELS))
  for i, (folder, scalars) in enumerate(runs.items()):
    for ax, (title, *series) in zip(axes, _PANELS, strict=True):
      for mode, name in series:
        if name not in scalars[mode]:
          continue
        steps, values = scalars[mode][name]
        is_train = mode == 'train'
        ax.plot(
          steps,
          values,
          color=f'C{i}',
          linewidth=1,
          linestyle='-' if is_train else '--',
          marker='' if is_train else 'o',
          label=f'{folder.name}, {"training" if is_train else "test"}',
        )
      ax.set_title(title)
      ax.set_xlabel('step')
      ax.grid(alpha=0.3)
  handles, labels = axes[-1].get_legend_handles_labels()
  part.legend(handles, labels, loc='outside lower center', ncols=4)


def _heat_maps(scalars: curves.Scalars) -> dict[str, curves.Scalars]:
  """Returns {quantity: {layer: (steps, values)}}, from the input on."""
  return {
    quantity: layers
    for quantity in _LAYERS
    if (
      layers := {
        name.partition('/')[2]: scalars[name]
        for name in sorted(scalars)
        if name.startswith(f'{quantity}/')
      }
    )
  }


def _draw_layers(part: Any, maps: dict[str, curves.Scalars]) -> None:
  """Draws a picture for each quantity: layers downwards, steps to the right."""
  axes = part.subplots(1, len(maps), sharey=True, squeeze=False)[0]
  for ax, (quantity, rows) in zip(axes, maps.items(), strict=True):
    title, norm = _LAYERS[quantity]
    steps = next(iter(rows.values()))[0]
    values = np.asarray([row for _, row in rows.values()])
    if norm == 'log':
      # Layers whose gradient vanishes should not take all of the colours.
      most = values.max() or 1
      least = values[values > most * _LEAST].min(initial=most / 10)
      norm = colors.LogNorm(least, most, clip=True)
    else:
      norm = colors.Normalize(0, 1)
    image = ax.pcolormesh(
      steps, range(len(rows)), values, norm=norm, shading='nearest'
    )
    part.colorbar(image, ax=ax, location='bottom', label=title)
    ax.set_xlabel('step')
    # Not more names than can be read.
    every = -(-len(rows) // 30)
    names = [name.partition(' ')[2] for name in rows]
    ax.set_yticks(range(0, len(rows), every), names[::every], fontsize=6)
  axes[0].invert_yaxis()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folders', nargs='+', metavar='RUN')
  parser.add_argument('--output', default='curves.png')
  args = parser.parse_args()
  try:
    paths.path(args.output)
    for folder in args.folders:
      if not paths.is_dir(paths.path(folder) / 'train'):
        return _fail(f'there is no training run in {folder}', 1)
    draw(args.folders, args.output)
  except paths.PathError as error:
    return _fail(error, 2)
  except OSError as error:
    return _fail(f'{error.filename}: {error.strerror or error}', 1)
  print(json.dumps({'output': args.output}))
  return 0


def _fail(error: Any, status: int) -> int:
  print(f'error: {error}', file=sys.stderr)
  return status


if __name__ == '__main__':
  sys.exit(main())
