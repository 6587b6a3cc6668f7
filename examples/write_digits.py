"""Writes handwritten digits as PNG files, to classify them.

python examples/write_digits.py --folder=digits [--count=10]
"""

import argparse
import pathlib

from PIL import Image
import tensorflow_datasets as tfds

from nfnets.data import dataset


def main() -> None:
  """Writes the first digits that `--config=digits` tests on."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--count', type=int, default=10, help='how many')
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  builder = dataset.load_builder('digits')
  test = builder.as_dataset(split=f'test[:{args.count}]')
  for i, example in enumerate(tfds.as_numpy(test)):
    name = f'digit_{example["label"]}_{i}.png'
    Image.fromarray(example['image'][..., 0]).save(args.folder / name)


if __name__ == '__main__':
  main()
