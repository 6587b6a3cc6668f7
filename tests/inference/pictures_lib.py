"""A small folder of pictures whose classes have odd names."""

import numpy as np
from PIL import Image
import pytest

from nfnets.data import dataset

NAMES = (
  '<img src=x onerror=alert(1)>',
  '" onload="alert(1)',
  "it's & <b>bold<",
  '{{ 7 * 7 }}',
  'two  words',
  'שלום',
  '\u202egnp.exe',
  '🦊 fox',
  '&lt;b&gt;',
  'plain',
)
NUM_TRAIN, NUM_TEST = 4, 3  # Of each class; and one more to test on.


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """Returns the dataset of a folder of 10 classes, 40 and 31 pictures."""
  root = tmp_path_factory.mktemp('pictures')
  rng = np.random.default_rng(0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(root / '.cache'))
    for split, count in (('train', NUM_TRAIN), ('test', NUM_TEST)):
      for label, name in enumerate(NAMES):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count + (split == 'test' and name == 'plain')):
          pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
          pixels[: label + 1] //= 4
          Image.fromarray(pixels).resize((40, 36)).save(folder / f'{i}.png')
    yield dataset.load_builder(str(root))
