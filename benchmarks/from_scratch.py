"""Compares a small network trained from scratch with HOG features.

python benchmarks/from_scratch.py [--fonts=/usr/share/fonts] [--output=FILE]

Renders the letters A to Z in the fonts of this machine with random shift,
rotation and scale. A fifth of the fonts is for the test only. Trains
`nfnet_tiny` with the defaults of --config=finetune, and logistic regression on
HOG features (Dalal and Triggs, 2005: cells of 8 pixels, 9 orientations, blocks
of 2 x 2 cells), for each number of training images. Prints a Markdown table.
The last line of standard output is JSON.
"""

import json
import pathlib
import string
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn import linear_model, pipeline, preprocessing
import timing

_SIDE, _TESTS = 32, 2000  # Pixels; number of test images.
_CELL, _BINS = 8, 9


def find_fonts(folder: str) -> list[pathlib.Path]:
  """Return the fonts with 26 different letters, without duplicate fonts."""
  found, seen = [], set()
  for file in sorted(pathlib.Path(folder).rglob('*.[to]tf')):
    try:
      font = ImageFont.truetype(str(file), 24)
      masks = [bytes(font.getmask(x)) for x in string.ascii_uppercase]
    except (OSError, ValueError):
      continue
    key = b''.join(masks)
    if len(set(masks)) == 26 and all(map(any, masks)) and key not in seen:
      seen.add(key)
      found.append(file)
  return found


def render(font: pathlib.Path, letter: str, rng) -> Image.Image:
  """Draw a letter in grey on grey."""
  dark, light = sorted(int(x) for x in rng.integers(0, 256, 2))
  if light - dark < 64:
    dark, light = 32, 224
  colours = (dark, light) if rng.random() < 0.5 else (light, dark)
  size = int(rng.integers(14, 25))
  picture = Image.new('L', (2 * _SIDE, 2 * _SIDE), colours[0])
  position = tuple(_SIDE + rng.uniform(-3, 3, 2))
  ImageDraw.Draw(picture).text(
    position,
    letter,
    colours[1],
    ImageFont.truetype(str(font), size),
    anchor='mm',
  )
  picture = picture.rotate(
    rng.uniform(-15, 15), Image.Resampling.BILINEAR, fillcolor=colours[0]
  )
  half = _SIDE // 2
  return picture.crop((half, half, half + _SIDE, half + _SIDE))


def write(folder: pathlib.Path, fonts: list[pathlib.Path], num: int, seed: int):
  """Write `num` images as folder/LETTER/NUMBER.png."""
  rng = np.random.default_rng(seed)
  for i in range(num):
    letter = string.ascii_uppercase[i % 26]
    font = fonts[int(rng.integers(len(fonts)))]
    (folder / letter).mkdir(parents=True, exist_ok=True)
    render(font, letter, rng).save(folder / letter / f'{i}.png')


def read(folder: pathlib.Path) -> tuple[np.ndarray, list[str]]:
  """Return HOG features [N, F] and labels."""
  files = sorted(folder.glob('*/*.png'))
  features = [hog(np.asarray(Image.open(file), np.float64)) for file in files]
  return np.stack(features), [file.parent.name for file in files]


def hog(image: np.ndarray) -> np.ndarray:
  """Return the histograms of oriented gradients of an image [H, W]."""
  dy, dx = np.gradient(image)
  angles = np.arctan2(dy, dx) % np.pi / np.pi * _BINS - 0.5
  low = np.floor(angles).astype(int)
  cells = np.zeros((_SIDE // _CELL, _SIDE // _CELL, _BINS))
  rows, columns = np.indices(image.shape) // _CELL
  for bins, part in ((low, 1 - (angles - low)), (low + 1, angles - low)):
    np.add.at(cells, (rows, columns, bins % _BINS), np.hypot(dx, dy) * part)
  blocks = np.lib.stride_tricks.sliding_window_view(cells, (2, 2), (0, 1))
  blocks = blocks.reshape(*blocks.shape[:2], -1)
  return (
    blocks / (np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3)
  ).ravel()


def train(folder: pathlib.Path, run: pathlib.Path) -> float:
  """Return the accuracy of `nfnet_tiny`."""
  command = [
    *(sys.executable, str(timing.ROOT / 'experiments/experiment.py')),
    '--config=finetune',
    *('--model=nfnet_tiny', f'--data={folder}', f'--checkpoint_dir={run}'),
    *(f'--image_size={_SIDE}', '--train_preproc=shift_3', '--report=False'),
  ]
  output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
  return json.loads(output.splitlines()[-1])['test_top_1_acc']


def main() -> None:
  args = timing.arguments(
    __doc__,
    fonts='/usr/share/fonts',
    pictures='100,1000,10000',
    output='from_scratch.json',
  )
  fonts = find_fonts(args.fonts)
  np.random.default_rng(0).shuffle(fonts)
  for_test = len(fonts) // 5
  rows = []
  print('| training images | nfnet_tiny | HOG | time |\n|---|---|---|---|')
  for num in map(int, args.pictures.split(',')):
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary) / 'letters'
      write(folder / 'train', fonts[for_test:], num, seed=1)
      write(folder / 'test', fonts[:for_test], _TESTS, seed=2)
      start = time.monotonic()
      accuracy = train(folder, pathlib.Path(temporary) / 'run')
      middle = time.monotonic()
      peer = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(C=0.1, max_iter=1000),
      )
      peer.fit(*read(folder / 'train'))
      hog_accuracy = peer.score(*read(folder / 'test'))
      seconds = middle - start, time.monotonic() - middle
    rows.append({'pictures': num, 'nfnet_tiny': accuracy, 'hog': hog_accuracy})
    print(
      f'| {num:,} | {accuracy:.1%} | {hog_accuracy:.1%} | '
      f'{seconds[0]:.0f} s, {seconds[1]:.0f} s |',
      flush=True,
    )
  results = {'fonts': len(fonts), 'for_test': for_test, 'rows': rows}
  pathlib.Path(args.output).write_text(json.dumps(results))
  timing.emit(**results)


if __name__ == '__main__':
  main()
