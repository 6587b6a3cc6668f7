"""Writes handwritten digits as PNG files, to classify them or to train on.

python examples/write_digits.py --folder=digits [--count=10]
python examples/write_digits.py --folder=digits --classes=56789 [--per_class=10]

The first writes test images side by side. With --classes there are folders
train and test, and a folder for each class in them.
"""

import argparse
import collections
import pathlib

from PIL import Image
import tensorflow_datasets as tfds

from nfnets.data import dataset


def main() -> None:
  """Write digits of the dataset that `--config=digits` trains and tests on."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--count', type=int, default=10, help='pictures (10)')
  parser.add_argument('--classes', help='the digits to write, such as 56789')
  parser.add_argument(
    '--per_class', type=int, help='training images per class (all)'
  )
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  builder = dataset.load_builder('digits')
  if not args.classes and args.per_class is None:
    test = builder.as_dataset(split=f'test[:{args.count}]')
    for i, example in enumerate(tfds.as_numpy(test)):
      name = f'digit_{example["label"]}_{i}.png'
      _write(args.folder / name, example)
    return
  for split in ('train', 'test'):
    written = collections.Counter()
    examples = tfds.as_numpy(builder.as_dataset(split=split))
    for i, example in enumerate(examples):
      label = str(example['label'])
      if label not in (args.classes or label) or (
        split == 'train' and written[label] == args.per_class
      ):
        continue
      written[label] += 1
      _write(args.folder / split / label / f'{i}.png', example)


def _write(path: pathlib.Path, example: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(example['image'][..., 0]).save(path)


if __name__ == '__main__':
  main()
