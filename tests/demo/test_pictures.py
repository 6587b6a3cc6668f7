"""What is taken of files that people send, and of what they draw."""

import json

import bad_files
import numpy as np
from PIL import Image, ImageFile
import pytest
from sklearn import datasets

from nfnets.errors import ImageError
from nfnets.inference import images
from nfnets.inference.demo import page, pictures


@pytest.mark.parametrize('name', bad_files.FILES)
def test_file_is_an_image_or_refused_in_a_sentence(tmp_path, name):
  content, reason = bad_files.FILES[name]
  path = str(tmp_path / name)
  (tmp_path / name).write_bytes(content)
  if reason is None:
    np.testing.assert_array_equal(pictures.read(path), images.read_image(path))
    return
  with pytest.raises(ImageError, match=reason) as caught:
    pictures.read(path)
  message = page.sentence(caught.value)
  assert message.startswith('This file ') and message.endswith('.')
  assert '\n' not in message and str(tmp_path) not in message


def test_pixels_of_a_huge_image_are_never_decoded(tmp_path, monkeypatch):
  def load(*_):
    raise AssertionError('its memory is taken')

  monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
  for side in (8_000, 13_000, 30_000):  # Pillow refuses the last by itself.
    path = tmp_path / 'huge.png'
    path.write_bytes(bad_files.png_header(side, side))
    with pytest.raises(ImageError, match='50 million pixels'):
      pictures.read(str(path))


def test_thumbnail_is_small_and_none_for_what_is_no_picture(tmp_path):
  Image.new('RGBA', (512, 128), (255, 0, 0, 255)).save(tmp_path / 'a.png')
  shown = pictures.thumbnail(str(tmp_path / 'a.png'))
  assert shown.shape == (64, 256, 3) and (shown == [255, 0, 0]).all()
  (tmp_path / 'b.png').write_bytes(b'no image')
  for name in ('b.png', 'none.png'):
    assert pictures.thumbnail(str(tmp_path / name)) is None


def test_drawing_of_a_digit_is_that_digit():
  # As a drawing, each of a digit's pixels is as large a square as it is bright.
  for digit in datasets.load_digits().images[:20]:
    sides = np.round(np.sqrt(digit / 16) * 20).astype(int)
    drawing = np.full((280, 280), 255, np.uint8)
    for (y, x), side in np.ndenumerate(sides):
      top, left = 50 + 20 * y + (20 - side) // 2, 60 + 20 * x + (20 - side) // 2
      drawing[top : top + side, left : left + side] = 0
    found = pictures.digit(drawing)
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    likeness = [
      np.corrcoef(found[..., 0].ravel(), np.roll(digit, (y, x), (0, 1)).ravel())
      for y in (-1, 0, 1)
      for x in (-1, 0, 1)
    ]
    assert max(x[0, 1] for x in likeness) > 0.8


def test_ink_is_counted_in_cells_in_the_middle():
  # A bar twice as high as wide fills the height, and half of the width.
  drawing = np.full((200, 300), 255, np.uint8)
  assert pictures.digit(drawing) is None
  drawing[20:84, 100:132] = 0
  want = np.zeros((8, 8, 3), np.uint8)
  want[:, 2:6] = 255
  np.testing.assert_array_equal(pictures.digit(drawing), want)


def test_only_networks_of_digits_get_a_sketch_pad():
  digits = tuple('0123456789')
  assert pictures.is_for_digits('nfnet_digits', digits)
  assert pictures.is_for_digits('nfnet_digits', None)
  assert not pictures.is_for_digits('nfnet_digits', ('cat', 'dog'))
  assert not pictures.is_for_digits('nfnet_f0', None)


def test_examples_are_test_images_of_as_many_classes_as_there_are(tmp_path):
  for split, name, color in (
    *(('train', 'a', 0), ('train', 'b', 0), ('test', 'a', 10)),
    *(('test', 'b', 20), ('test', 'b', 30)),
  ):
    folder = tmp_path / 'data' / split / name
    folder.mkdir(parents=True, exist_ok=True)
    Image.new('L', (9, 9), color).save(folder / f'{color}.png')
  (tmp_path / 'data' / 'test' / 'a' / 'text.png').write_bytes(b'no image')
  settings = {'which_dataset': str(tmp_path / 'data')}
  run = tmp_path / 'run'
  run.mkdir()
  assert pictures.examples(str(run), str(tmp_path / 'x')) == []
  (run / 'run.json').write_text(json.dumps({'settings': settings}))
  for most, want in ((2, 'a10 b20'), (9, 'a10 b20 b30')):
    folder = str(tmp_path / f'copies{most}')
    found = pictures.examples(f'{run}/weights', folder, most)
    shown = [f'{name}{np.asarray(Image.open(x))[0, 0, 0]}' for x, name in found]
    assert ' '.join(shown) == want
  assert pictures.examples('hf://me/net', '') == []
