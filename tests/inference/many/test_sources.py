"""Which images files, folders, patterns and lists stand for."""

import os
import re

import pytest

from nfnets.inference import images
from nfnets.inference.many import sources


def find(*names):
  """Returns all at once."""
  return [*sources.find(*names)]


def test_folders_are_searched_to_the_bottom(tmp_path):
  for name in (
    'b.jpg',
    'a.PNG',
    'sub.jpg/deep/c.webp',
    '.hidden.jpg',
    '.git/d.jpg',
    'notes.txt',
    'paper.pdf',
    'data.h5',
    'film.mpg',
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  (tmp_path / 'sub.jpg' / 'up').symlink_to(tmp_path)
  (tmp_path / 'z.gif').symlink_to('b.jpg')
  os.mkfifo(tmp_path / 'pipe.jpg')
  found = find(str(tmp_path))
  assert [os.path.relpath(path, tmp_path) for path in found] == [
    'a.PNG',
    'b.jpg',
    'pipe.jpg',
    'sub.jpg/deep/c.webp',
    'z.gif',
  ]


def test_what_is_no_folder_stands_for_itself(tmp_path):
  for name in ('none.jpg', '.hidden', 'notes.txt'):
    assert find(str(tmp_path / name)) == [str(tmp_path / name)]
  # Its reading will say that it is empty.
  assert find(str(tmp_path)) == [str(tmp_path)]


def test_folders_that_cannot_be_listed_are_not_passed_over(
  tmp_path, monkeypatch
):
  (tmp_path / 'secret').mkdir()
  (tmp_path / 'a.jpg').touch()

  def forbid(function):
    def checked(path='.'):
      if os.fspath(path).endswith('secret'):
        raise PermissionError(13, 'Permission denied', path)
      return function(path)

    return checked

  monkeypatch.setattr(os, 'scandir', forbid(os.scandir))
  monkeypatch.setattr(os, 'listdir', forbid(os.listdir))
  found = find(str(tmp_path))
  assert found == [str(tmp_path / 'a.jpg'), str(tmp_path / 'secret')]
  with pytest.raises(images.ImageError, match=re.escape('Permission denied')):
    images.read_image(found[1])
