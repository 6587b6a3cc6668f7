"""Tests of reading folders: decoding, order, files that are unreadable."""

import io
import itertools
import threading
import time

import conftest
from conftest import assert_same
from folder_lib import draw
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from nfnets.data import batches as batches_lib
from nfnets.data import builders, dataset, folders, picture_files, preprocess
from nfnets.errors import UserError
from nfnets.inference import images, preprocessing

load = builders.load_builder

HEIGHT, WIDTH = 20, 14
SETTINGS = {'image_size': 16, 'batch_size': 6, 'seed': 3}
PIXELS = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
EXIF = Image.Exif()
EXIF[0x112] = 6


def picture(mode, size=(WIDTH, HEIGHT)):
  image = Image.fromarray(PIXELS).resize(size)
  if mode.startswith('I;16'):
    return Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
  if mode in ('RGBA', 'LA'):
    image.putalpha(Image.fromarray(PIXELS[..., 1]))
  return image.convert(mode)


# Keyword arguments of Image.save, by the name of the file.
FILES = {
  'plain.jpg': ('RGB', {}),
  'grey.jpeg': ('L', {}),
  'cmyk.jpg': ('CMYK', {}),
  'turned.jpg': ('RGB', {'exif': EXIF}),
  'plain.png': ('RGB', {}),
  'grey.png': ('L', {}),
  'bits.png': ('1', {}),
  'palette.png': ('P', {}),
  'clear.png': ('RGBA', {}),
  'grey clear.png': ('LA', {}),
  'key.png': ('RGB', {'transparency': tuple(PIXELS[0, 0].tolist())}),
  'deep.png': ('I;16', {}),
  'turned.png': ('RGB', {'exif': EXIF}),
  'a.webp': ('RGBA', {'lossless': True}),
  'a.gif': ('P', {'save_all': True, 'append_images': [picture('P')]}),
  'a.bmp': ('RGB', {}),
  'a.tiff': ('CMYK', {}),
  'a.ppm': ('RGB', {}),
}
if 'HEIF' in Image.OPEN:
  FILES['a.heic'] = ('RGB', {'quality': -1})
PLAIN = {'plain.jpg', 'grey.jpeg', 'plain.png', 'grey.png'}


def take(count, root, split='train_and_valid', **kwargs):
  return conftest.take(count, load(str(root)), split, **SETTINGS | kwargs)


def test_every_kind_is_decoded_as_the_commands_do(tmp_path):
  for i, (name, (mode, kwargs)) in enumerate(FILES.items()):
    # Those that EXIF turns are stored lying.
    size = (HEIGHT, WIDTH) if 'exif' in kwargs else (WIDTH, HEIGHT)
    (tmp_path / 'ab'[i % 2]).mkdir(exist_ok=True)
    picture(mode, size).save(tmp_path / 'ab'[i % 2] / name, **kwargs)
  builder = load(str(tmp_path))
  options = {'batch_size': 1, 'preprocessing': 'resize_crop_1'}
  options['image_size'] = (HEIGHT, WIDTH)
  found = set()
  for split in ('train', 'valid'):
    files = builders.SplitReader(builder, split)
    batches = conftest.evaluate(builder, split, **options)
    for i, batch in enumerate(batches):
      path, image = files.where(i), batch['images'][0]
      label, name = path.split('/')[-2:]
      found.add(name)
      assert batch['labels'] == 'ab'.index(label)
      expected = images.read_image(path)
      same = preprocessing.preprocess_eval(
        expected, (HEIGHT, WIDTH), 'resize_crop_1'
      )
      np.testing.assert_allclose(same, image, atol=1e-3, err_msg=name)
      if not isinstance(expected, bytes):
        np.testing.assert_array_equal(image, expected, err_msg=name)
      # Only what TensorFlow decodes alike is left to it.
      [record] = files.read(np.array([i]))
      assert (picture_files._FOR_PILLOW not in record) == (name in PLAIN)
    files.close()
  assert found == FILES.keys()


def test_exif_data_behind_the_pixels_of_a_png_count():
  file = io.BytesIO()
  Image.fromarray(PIXELS).save(file, 'PNG', exif=EXIF)
  content = file.getvalue()
  start = content.index(b'eXIf') - 4
  end = start + 12 + int.from_bytes(content[start : start + 4], 'big')
  last = content.index(b'IEND') - 4
  moved = content[:start] + content[end:last] + content[start:end]
  moved += content[last:]
  assert images.decode(io.BytesIO(moved)).shape == (WIDTH, HEIGHT, 3)
  assert not images.is_plain(moved)
  assert images.is_plain(content[:start] + content[end:])


@pytest.fixture
def thirty(make_folder):
  """Thirty pictures in two classes."""
  return make_folder(*(f'{x}/{i}.png' for x in ('a', 'b') for i in range(15)))


@pytest.mark.slow
def test_neither_processes_nor_resuming_nor_reading_change_a_pixel(
  thirty, monkeypatch
):
  # 8 steps of 6 images, each of two: three epochs.
  whole = take(8, thirty, augment_name='cutmix')
  parts = conftest.take_in_parts(
    *(8, load(str(thirty)), 'train_and_valid', 2),
    augment_name='cutmix',
    **SETTINGS,
  )
  assert_same(whole, parts)
  # Large pictures are read in smaller blocks.
  monkeypatch.setattr(batches_lib, '_BYTES_PER_READ', 1)
  assert_same(whole[3:], take(5, thirty, augment_name='cutmix', first_step=3))


def test_unreadable_pictures_are_named_or_left_out(thirty):
  whole = load(str(thirty)).paths('train_and_valid')
  damaged = {whole[3]: 'an empty file', whole[8]: 'not an image that Pillow'}
  (thirty / whole[3]).write_bytes(b'')
  (thirty / whole[8]).write_text('<html>')
  file = io.BytesIO()
  Image.fromarray(PIXELS).save(file, 'TIFF')
  (thirty / 'a/short.tiff').write_bytes(file.getvalue()[:-200])
  draw(thirty / 'a' / 'tiny.png', size=(1, 1))
  damaged['a/short.tiff'] = 'image file is truncated'
  with pytest.raises(UserError) as error:
    take(6, thirty, 'train')
  first, *listed, last = str(error.value).split('\n')
  assert first == f'{thirty}: 3 of 32 pictures cannot be decoded:'
  assert '--skip_corrupt' in last
  listed = dict(line.strip().split(': ', 1) for line in listed)
  assert listed.keys() == damaged.keys()
  assert all(listed[path].startswith(why) for path, why in damaged.items())
  straight = take(8, thirty, 'train', skip_corrupt=True)
  resumed = take(3, thirty, 'train', skip_corrupt=True, first_step=5)
  assert_same(straight[5:], resumed)


def test_too_many_pixels_are_an_error(thirty, monkeypatch):
  draw(thirty / 'a' / '0.png', size=(60, 60))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1500)
  assert '3600 pixels' in load(str(thirty)).unreadable['a/0.png']
  monkeypatch.setattr(folders, 'MOST_DECODED', 10)
  with pytest.raises(UserError, match=r'/a/0.png .*\(3600 pixels'):
    take(8, thirty)


@pytest.mark.parametrize(
  ('content', 'what'), [(None, 'cannot be read'), (b' ', 'has changed')]
)
def test_a_file_that_changes_while_training_is_named(thirty, content, what):
  builder = load(str(thirty))
  path = thirty / builder.paths('train')[0]
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=f'{path} {what}'):
    conftest.take(6, builder, 'train', skip_corrupt=True)


def test_damaged_pictures_of_a_large_folder_are_found_when_read(
  thirty, monkeypatch, caplog
):
  monkeypatch.setattr(folders, 'MOST_DECODED', 10)
  path = thirty / load(str(thirty)).paths('train')[4]
  path.write_bytes(b'')
  builder = load(str(thirty))
  assert builder.unreadable == {}
  options = dataset.Options(**SETTINGS, skip_corrupt=True)
  with dataset.train_batches(builder, 'train', options) as batches:
    list(itertools.islice(batches, 8))
    assert batches.skipped == {str(path): 'an empty file'}
  assert f'{path} does not hold a readable image' in caplog.text


def test_those_left_out_are_named_once_in_the_log(thirty, monkeypatch, caplog):
  monkeypatch.setattr(batches_lib, '_MAX_DAMAGED', 12)
  names = [f'a/broken{i:02}.png' for i in range(12)]
  for name in names:
    (thirty / name).write_bytes(b'')
  builder = load(str(thirty))
  options = dataset.Options(**SETTINGS, skip_corrupt=True)
  for _ in range(2):
    with dataset.train_batches(builder, 'train_and_valid', options) as batches:
      assert batches.num_skipped == len(builder.unreadable)
  (line,) = [x for x in caplog.messages if 'left out' in x]
  assert [name in line for name in names] == [True] * 10 + [False] * 2
  assert 'and 2 more' in line


# Large pictures.


@pytest.fixture
def large(make_folder, monkeypatch):
  """A folder with four large pictures: of more than 10,000 pixels."""
  names = [f'{x}/{i}.png' for x in 'ab' for i in range(2)]
  root = make_folder(*(f'{s}/{x}' for s in ('train', 'val') for x in names))
  for split in ('train', 'val'):
    image = Image.fromarray(PIXELS).resize((150, 100))
    image.save(root / split / 'a' / 'large.jpg')
    image.save(root / split / 'b' / 'large.tif')
  monkeypatch.setattr(images, 'LARGE_PIXELS', 10_000)
  monkeypatch.setattr(picture_files, 'REDUCED_PIXELS', 600)
  return root


def evaluate(root):
  options = {'image_size': 40, 'preprocessing': 'resize_crop_1'}
  [batch] = conftest.evaluate(load(str(root)), **options)
  return batch['images']


def test_large_pictures_are_named_with_their_share(large, caplog):
  load(str(large))
  (line,) = [x for x in caplog.messages if 'megapixels' in x]
  assert f'{large}: 4 of 12 pictures have more than 0.01 megapixels' in line
  share = 4 * 15_000 / (4 * 15_000 + 8 * 30)
  assert f' {100 * share:.0f} % of all pixels' in line
  assert 'train/a/large.jpg (0.015 megapixels)' in line


def test_training_reads_smaller_copies_that_are_kept_if_they_can(
  large, monkeypatch, tmp_path, caplog
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  first = take(4, large, 'train')
  copies = [*(tmp_path / 'cache/nfnets/reduced-600').iterdir()]
  sizes = [Image.open(copy).size for copy in copies]
  assert sizes == [(30, 20)] * 2
  with monkeypatch.context() as patch:
    patch.setattr(images, 'read_image', None)  # Nothing is made again.
    assert_same(first, take(4, large, 'train'))
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert_same(first, take(4, large, 'train'))
  assert 'cannot be kept' in caplog.text


def test_evaluation_reads_large_pictures_themselves(large, monkeypatch):
  found = evaluate(large)
  monkeypatch.setattr(images, 'LARGE_PIXELS', 10**9)
  np.testing.assert_array_equal(found, evaluate(large))


def test_large_pictures_are_decoded_one_at_a_time(large, monkeypatch):
  at_once, most, lock = 0, [], threading.Lock()
  resize = preprocess._resize

  def watched(image, size):
    nonlocal at_once
    if not tf.executing_eagerly():  # Small ones are in graphs.
      return resize(image, size)
    with lock:
      at_once += 1
      most.append(at_once)
    time.sleep(0.1)
    with lock:
      at_once -= 1
    return resize(image, size)

  monkeypatch.setattr(preprocess, '_resize', watched)
  evaluate(large)
  assert most == [1, 1]
