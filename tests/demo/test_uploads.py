"""What is taken of a file that somebody has sent."""

import os

import bad_files
import numpy as np
from PIL import ImageFile
import pytest

from nfnets.inference import images
from nfnets.inference.demo import uploads


@pytest.mark.parametrize('name', bad_files.FILES)
def test_file_is_an_image_or_refused_in_a_sentence(tmp_path, name):
  content, reason = bad_files.FILES[name]
  path = tmp_path / name
  path.write_bytes(content)
  if reason is None:
    np.testing.assert_array_equal(
      uploads.read(path), images.read_image(str(path))
    )
    return
  with pytest.raises(uploads.UploadError, match=reason) as caught:
    uploads.read(path)
  message = str(caught.value)
  assert message[0].isupper() and message.endswith('.')
  assert '\n' not in message and str(tmp_path) not in message


def test_pixels_of_a_huge_image_are_never_decoded(tmp_path, monkeypatch):
  def load(*_):
    raise AssertionError('its memory is taken')

  monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
  for side in (8_000, 13_000, 30_000):  # Pillow refuses the last by itself.
    path = tmp_path / 'huge.png'
    path.write_bytes(bad_files.png_header(side, side))
    with pytest.raises(uploads.UploadError, match='50 million pixels'):
      uploads.read(path)


def test_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(uploads, 'MAX_BYTES', len(bad_files.JPEG) - 1)
  path = tmp_path / 'a.jpg'
  path.write_bytes(bad_files.JPEG)
  with pytest.raises(uploads.UploadError, match='at most'):
    uploads.read(path)


@pytest.mark.parametrize(
  'path',
  ['/etc/passwd', 'FOLDER/../secret', 'FOLDER/link', 'FOLDER', 'FOLDER/none']
  + ['https://example.com/a.png', 'a\0b', '', None, 3, ['a']],
)
def test_only_files_inside_of_the_folder_are_found(tmp_path, path):
  folder = tmp_path / 'uploads'
  folder.mkdir()
  (tmp_path / 'secret').write_bytes(bad_files.JPEG)
  os.symlink(tmp_path / 'secret', folder / 'link')
  if isinstance(path, str):
    path = path.replace('FOLDER', str(folder))
  with pytest.raises(uploads.UploadError):
    uploads.find({'path': path}, folder)
  with pytest.raises(uploads.UploadError):
    uploads.find(path, folder)


def test_file_inside_of_the_folder_is_found(tmp_path):
  path = tmp_path / 'a' / 'b.jpg'
  path.parent.mkdir()
  path.write_bytes(b'')
  assert uploads.find({'path': str(path)}, tmp_path) == path
