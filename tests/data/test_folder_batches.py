"""Tests of reading folders: decoding, order, and files that are unreadable."""

import io
import itertools

from conftest import assert_same, joined_processes
from folder_lib import draw
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from nfnets.data import builders, dataset, image_files, records, stream
from nfnets.inference import images

HEIGHT, WIDTH = 20, 14
SETTINGS = {'image_size': 16, 'global_batch_size': 6, 'seed': 3}
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


def take(count, builder, split='train_and_valid', **kwargs):
  with dataset.train_batches(builder, split, **SETTINGS | kwargs) as batches:
    return list(itertools.islice(batches, count))


@pytest.fixture
def all_kinds(make_folder):
  """Pictures of every kind, of 20 x 14 pixels, in two classes."""
  root = make_folder('a/drawn.png')
  (root / 'b').mkdir()
  for i, (name, (mode, kwargs)) in enumerate(FILES.items()):
    # Those that EXIF turns are stored lying.
    size = (HEIGHT, WIDTH) if 'exif' in kwargs else (WIDTH, HEIGHT)
    picture(mode, size).save(root / 'ab'[i % 2] / name, **kwargs)
  (root / 'a' / 'drawn.png').unlink()
  return root


def test_every_kind_is_decoded_as_the_commands_do(all_kinds):
  builder = builders.load_builder(str(all_kinds))
  found = {}
  for split in ('train', 'valid'):
    with dataset.eval_batches(
      builder,
      split,
      image_size=(HEIGHT, WIDTH),
      global_batch_size=1,
      preprocessing='resize_crop_1',
    ) as batches:
      for path, batch in zip(builder.paths(split), batches, strict=True):
        found[path] = batch['images'][0]
        assert batch['labels'] == 'ab'.index(path[0])
  assert len(found) == len(FILES)
  for path, image in found.items():
    expected = images.read_image(str(all_kinds / path))
    if isinstance(expected, bytes):  # Which TensorFlow decodes.
      pillow = np.asarray(Image.open(all_kinds / path).convert('RGB'))
      assert np.abs(pillow - image).mean() < 4
    else:
      np.testing.assert_array_equal(image, expected, err_msg=path)


def test_only_what_tensorflow_decodes_alike_is_left_to_it(all_kinds):
  builder = builders.load_builder(str(all_kinds))
  plain = set()
  for split in ('train', 'validation'):
    files = records.open_records(builder, split)
    for i, example in enumerate(files.read(range(len(files)))):
      path = files.where(i)
      with open(path, 'rb') as file:
        content = file.read()
      assert content in example
      if image_files._FOR_PILLOW not in example:
        plain.add(path.removeprefix(f'{all_kinds}/')[2:])
    files.close()
  assert plain == {'plain.jpg', 'grey.jpeg', 'plain.png', 'grey.png'}


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
  load = lambda: builders.load_builder(str(thirty))  # noqa: E731
  whole = take(8, load(), augment_name='cutmix')
  assert len({batch['images'].tobytes() for batch in whole}) == 8
  parts = [
    take(8, load(), augment_name='cutmix', process_index=i, process_count=2)
    for i in range(2)
  ]
  assert_same(whole, joined_processes(parts))
  # Large pictures are read in smaller blocks.
  monkeypatch.setattr(stream, '_BYTES_PER_READ', 1)
  resumed = take(5, load(), augment_name='cutmix', first_step=3)
  assert_same(whole[3:], resumed)


def test_unreadable_pictures_are_named_or_left_out(thirty):
  whole = builders.load_builder(str(thirty)).paths('train_and_valid')
  damaged = {whole[3]: 'an empty file', whole[8]: 'not an image that Pillow'}
  (thirty / whole[3]).write_bytes(b'')
  (thirty / whole[8]).write_text('<html>')
  file = io.BytesIO()
  Image.fromarray(PIXELS).save(file, 'TIFF')
  (thirty / 'a/short.tiff').write_bytes(file.getvalue()[:-200])
  draw(thirty / 'a' / 'tiny.png', size=(1, 1))
  damaged['a/short.tiff'] = 'cannot be decoded: image file is truncated'
  builder = builders.load_builder(str(thirty))
  paths = builder.paths('train')
  damaged = {p: reason for p, reason in damaged.items() if p in paths}
  assert damaged
  with pytest.raises(dataset.DatasetError) as error:
    take(6, builder, 'train')
  assert f"{thirty}, split 'train': {thirty}/" in str(error.value)
  assert any(
    f'{thirty}/{path} does not hold a readable image: {reason}'
    in str(error.value)
    for path, reason in damaged.items()
  )
  straight = take(8, builder, 'train', skip_corrupt=True)
  resumed = take(3, builder, 'train', skip_corrupt=True, first_step=5)
  assert_same(straight[5:], resumed)


def test_too_many_pixels_are_an_error(thirty, monkeypatch):
  draw(thirty / 'a' / '0.png', size=(60, 60))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1500)
  builder = builders.load_builder(str(thirty))
  split = 'validation' if 'a/0.png' in builder.paths('valid') else 'train'
  files = records.open_records(builder, split)
  failed = {}
  for i, example in enumerate(files.read(range(len(files)))):
    image = tf.train.Example.FromString(example).features.feature['image']
    try:
      image_files.decode(tf.constant(image.bytes_list.value[0]))
    except tf.errors.OpError as error:
      failed[files.where(i)] = error.message
  files.close()
  assert list(failed) == [f'{thirty}/a/0.png']
  assert '3600 pixels' in failed[f'{thirty}/a/0.png']


@pytest.mark.parametrize('gone', [True, False])
def test_a_file_that_changes_while_training_is_named(thirty, gone):
  builder = builders.load_builder(str(thirty))
  path = thirty / builder.paths('train')[0]
  if gone:
    path.unlink()
  else:
    path.write_bytes(path.read_bytes() + b' ')
  what = 'cannot be read' if gone else 'has changed'
  with pytest.raises(dataset.DatasetError, match=f'{path} {what}'):
    take(6, builder, 'train', skip_corrupt=True)
