"""Which images files, folders, patterns and lists stand for."""

import glob
import io
import os
import re

from PIL import Image
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
      if os.fspath(path).rstrip('/').endswith('secret'):
        raise PermissionError(13, 'Permission denied', path)
      return function(path)

    return checked

  monkeypatch.setattr(os, 'scandir', forbid(os.scandir))
  monkeypatch.setattr(os, 'listdir', forbid(os.listdir))
  found = find(str(tmp_path))
  assert found == [str(tmp_path / 'a.jpg'), str(tmp_path / 'secret')]
  with pytest.raises(images.ImageError, match=re.escape('Permission denied')):
    images.read_image(found[1])


@pytest.fixture
def tree(tmp_path, monkeypatch):
  """Makes files in the current folder whose order is not that of a walk."""
  for name in (
    'a/x1.png',
    'a/b/x2.png',
    'a/b/c/x3.jpg',
    'a-b/x4.png',
    'a.jpg',
    'a.b/notes.txt',
    'b/x5.jpg',
    'b/.hidden.jpg',
    'b/x6.dat',
    '[odd].jpg',
    '.git/x7.jpg',
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  monkeypatch.chdir(tmp_path)


def test_order_is_that_of_the_paths(tree):
  found = find('.')
  assert found == sorted(found) and len(found) == 7


@pytest.mark.parametrize(
  'pattern',
  [
    '*.jpg',
    '**/*.png',
    'a/**/*',
    '**/x[1-3].*',
    'a*/*.png',
    '?/b/*.png',
    '**/b/**/*.jpg',
    './*/x?.png',
    '*/*.dat',
    '.*/*.jpg',
  ],
)
def test_patterns_match_what_globs_of_python_do(tree, pattern):
  expected = {
    path
    for path in glob.glob(pattern, recursive=True)
    if os.path.isfile(path) and not path.endswith('.txt')
  }
  found = find(pattern)
  assert expected and set(found) == expected
  assert found == sorted(found)


def test_folders_that_match_stand_for_their_images(tree):
  assert find('a*') == sorted(find('a', 'a-b', 'a.jpg'))


def test_what_matches_nothing_is_told(tree):
  assert find('*.webp') == ['*.webp']
  with pytest.raises(images.ImageError, match='No such file.*, nor any that'):
    images.read_image('*.webp')


def test_names_that_look_like_patterns_are_files_first(tree):
  assert find('[odd].jpg') == ['[odd].jpg']


def test_links_that_a_pattern_names_are_followed(tree, tmp_path):
  (tmp_path / 'link').symlink_to('b')
  assert find('link/*.jpg') == ['link/x5.jpg']
  assert find('li*/*.jpg') == ['link/x5.jpg']
  assert not any('link' in name for name in find('**/*.jpg'))


@pytest.mark.parametrize(
  ('content', 'names'),
  [
    (b'a.jpg\nb c.jpg\n', ['a.jpg', 'b c.jpg']),
    (b'a.jpg\n\n b.jpg', ['a.jpg', ' b.jpg']),
    (b'\xef\xbb\xbfa.jpg\r\nb.jpg\r\n', ['a.jpg', 'b.jpg']),
    (b'a\nb.jpg\0c.jpg\0', ['a\nb.jpg', 'c.jpg']),
    (b'caf\xe9.jpg\n', ['caf\udce9.jpg']),
    (b'x' * 70_000 + b'\ny', ['x' * 70_000, 'y']),
    (b'', []),
  ],
)
def test_lists_have_a_path_per_line_or_nul(tmp_path, content, names):
  (tmp_path / 'list').write_bytes(content)
  assert [*sources.read_list(str(tmp_path / 'list'))] == names


def test_lists_are_read_as_they_arrive(monkeypatch):
  reading, writing = os.pipe()
  with open(reading, 'rb') as file, open(writing, 'wb', 0) as pipe:
    monkeypatch.setattr('sys.stdin', file)
    source = sources.of_paths([], sources.STDIN)
    items = source.items()
    pipe.write(b'a.jpg\nb.jpg\n')
    assert next(items).name == 'a.jpg'
    assert source.count is None


def test_lists_hold_folders_and_no_patterns(tree, tmp_path):
  (tmp_path / 'list').write_text('a-b\n*.jpg\n')
  source = sources.of_paths(['b'], 'list')
  names = [item.name for item in source.items()]
  assert names == ['b/x5.jpg', 'a-b/x4.png', '*.jpg']
  assert source.count() == 3


def test_folders_are_listed_when_their_turn_comes(tree, monkeypatch):
  listed, scandir = [], os.scandir

  def watch(path):
    listed.append(path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', watch)
  names = sources.find('b', 'a')
  assert not listed
  next(names)
  assert listed == ['b/']


def test_an_image_can_come_from_standard_input(monkeypatch):
  content = io.BytesIO()
  Image.new('RGB', (3, 2), 'red').save(content, 'png')
  content.seek(0)
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(content))
  [item] = sources.of_paths(['-']).items()
  pixels, label = item.read(True)
  assert pixels.tolist() == [[[255, 0, 0]] * 3] * 2 and label is None
