"""Tests of what is kept of the pictures in a folder."""

import os

from folder_lib import SPLITS, TWO, draw
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from nfnets.data import builders, folders
from nfnets.errors import UserError

load = builders.load_builder


@pytest.fixture
def digested(monkeypatch):
  """The names of the files that have been digested so far."""
  names, digest = [], folders._digest

  def record(file, size):
    names.append(os.path.basename(file.name))
    return digest(file, size)

  monkeypatch.setattr(folders, '_digest', record)
  return names


@pytest.mark.parametrize('suffix', ['.bmp', '.png', '.tif'])
def test_large_pictures_differ_by_any_pixel(tmp_path, suffix):
  pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
  digests = []
  for value in (0, 0, 1):
    pixels[150, 150] = value
    path = tmp_path / f'{len(digests)}{suffix}'
    Image.fromarray(pixels).save(path)
    assert path.stat().st_size > 4 * folders._END_BYTES
    with open(path, 'rb') as file:
      digests.append(folders._digest(file, path.stat().st_size))
  assert digests[0] == digests[1] != digests[2]


def test_only_what_has_changed_is_read_again(make_folder, digested):
  root = make_folder(*TWO, 'dog/3.png')
  load(str(root))
  assert len(digested) == 5
  digested.clear()
  draw(root / 'cat' / '1.png', 99)
  os.utime(root / 'dog' / '3.png')
  draw(root / 'dog' / '5.png', 98)
  (root / 'dog' / '2.png').unlink()
  load(str(root))
  assert sorted(digested) == ['1.png', '3.png', '5.png']
  digested.clear()
  load(str(root))
  assert digested == []


def test_what_cannot_be_decoded_is_tried_again(
  make_folder, digested, monkeypatch
):
  root = make_folder(*TWO, 'dog/4.png')
  (root / 'dog' / '4.png').write_bytes(b'')
  load(str(root))
  digested.clear()
  assert load(str(root)).unreadable == {'dog/4.png': 'an empty file'}
  assert digested == ['4.png']
  monkeypatch.setattr(folders, 'MOST_DECODED', 3)
  assert load(str(root)).unreadable == {}


def test_what_tensorflow_would_not_decode_is_found_without_a_word(
  make_folder, capfd
):
  root = make_folder(*TWO)
  content = bytearray((root / 'cat' / '1.png').read_bytes())
  content[-14] ^= 255  # In the checksum of the pixels.
  (root / 'cat' / '1.png').write_bytes(content)
  capfd.readouterr()
  assert load(str(root)).unreadable == {'cat/1.png': 'its checksums are wrong'}
  assert not capfd.readouterr().err
  with pytest.raises(tf.errors.OpError):
    tf.io.decode_png(bytes(content))


@pytest.mark.parametrize('content', [b'', b'not an index', b'PK\3\4', None])
def test_index_that_is_damaged_or_cannot_be_kept_is_made_again(
  make_folder, digested, monkeypatch, tmp_path, content
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  root = make_folder(*TWO)
  if content is None:
    (tmp_path / 'cache').write_text('')  # Where a folder would have to be.
  before = set(root.rglob('*'))
  want = load(str(root)).paths('train')
  for index in (tmp_path / 'cache').rglob('*.json'):
    index.write_bytes(content)
  assert load(str(root)).paths('train') == want
  assert len(digested) == 8
  assert set(root.rglob('*')) == before


def test_a_file_that_may_not_be_read_is_named(make_folder, monkeypatch):
  root = make_folder(*TWO)

  def refuse(file, _):
    raise PermissionError(13, 'Permission denied', file.name)

  monkeypatch.setattr(folders, '_digest', refuse)
  message = 'cat/1.png cannot be read: Permission denied'
  with pytest.raises(UserError, match=message):
    load(str(root))


def test_a_changed_folder_is_told(make_folder, tmp_path):
  root = make_folder(*SPLITS)
  listing = str(tmp_path / 'pictures.json')
  load(str(root)).check_unchanged(listing)
  os.utime(root / 'train/cat/0.png')  # A copy of the folder is the same folder.
  load(str(root)).check_unchanged(listing)
  draw(root / 'train/cat/1.png', 99)
  draw(root / 'train/dog/7.png', 98)
  draw(root / 'train/dog/8.png', 97)
  (root / 'val/dog/2.png').unlink()
  with pytest.raises(UserError) as error:
    load(str(root)).check_unchanged(listing)
  for part in (
    f'{root} has other pictures than this run began with',
    '2 added (train/dog/7.png, train/dog/8.png)',
    '1 removed (val/dog/2.png)',
    '1 changed (train/cat/1.png)',
    listing,
  ):
    assert part in str(error.value)
