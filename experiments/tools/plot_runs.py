"""Draws the curves of one or several runs into a picture.

python experiments/tools/plot_runs.py RUN [RUN ...] --output=curves.png

Reads what training and evaluation wrote for TensorBoard: the loss and the top-1
accuracy on the training batches and, where there was one, on the test split.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from matplotlib import figure

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nfnets import paths  # noqa: E402
from nfnets.inference import curves  # noqa: E402

_PANELS = (
  ('cross-entropy', ('train', 'train_loss'), ('eval', 'eval_loss')),
  ('top-1 accuracy', ('train', 'top_1_acc'), ('eval', 'eval_top_1_acc')),
)


def draw(folders: list[paths.Name], output: str) -> None:
  """Draws the curves of runs.

  Args:
    folders: `checkpoint_dir` of each run.
    output: the name of a PNG, PDF or SVG file.
  """
  picture = figure.Figure(figsize=(10, 4), layout='constrained')
  axes = picture.subplots(1, len(_PANELS))
  for i, folder in enumerate(map(paths.path, folders)):
    scalars = curves.read_run(folder)
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
  picture.legend(handles, labels, loc='outside lower center', ncols=4)
  with paths.writing(output) as temporary, open(temporary, 'wb') as file:
    kind = pathlib.PurePath(output).suffix[1:] or 'png'
    picture.savefig(file, dpi=120, format=kind)


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
