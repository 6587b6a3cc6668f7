"""Folders of drawn pictures, for tests."""

import numpy as np
from PIL import Image

TWO = ('cat/1.png', 'cat/2.png', 'dog/1.png', 'dog/2.png')
SPLITS = tuple(
  f'{split}/{name}/{i}.png'
  for split in ('train', 'val', 'test')
  for name in ('cat', 'dog')
  for i in range(3)
)


def draw(path, seed=0, size=(6, 5)):
  """Saves a picture whose pixels follow from the seed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path)
