"""Which images files, folders, patterns and lists stand for."""

import argparse
import glob
import io
import os
import re

from PIL import Image
import pytest

from nfnets.errors import ImageError, UserError
from nfnets.inference import images
from nfnets.inference.many import sources


def find(*names):
  return [path for name in names for path in sources.find(name)]


def open_source(*paths, list=None):
  return sources.open_source(
    argparse.Namespace(paths=paths, list=list, data=None)
  )


def names_of(*paths, list=None):
  return [item.name for item in open_source(*paths, list=list).items()]


TREE = (
  *('a/x1.png', 'a/b/x2.png', 'a/b/c/x3.jpg', 'a-b/x4.png', 'a.jpg'),
  *('a.b/notes.txt', 'b/x5.jpg', 'b/.hidden.jpg', 'b/x6.dat', '[odd].jpg'),
  *('.git/x7.jpg', 'sub.gif/c.webp', 'film.mpg', 'phone.HEIC', 'logo.svg'),
)


@pytest.fixture
def tree(tmp_path, monkeypatch):
  """Makes files in the current folder whose order is not that of a walk."""
  for name in TREE:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_folders_are_searched_to_the_bottom_in_the_order_of_paths(tree):
  (tree / 'b' / 'up').symlink_to(tree)
  (tree / 'z.gif').symlink_to('a.jpg')
  (tree / 'loop.gif').symlink_to('loop.gif')
  os.mkfifo(tree / 'pipe.jpg')
  unseen = ('.git', '.hid', '.txt', '.dat', '.mpg')
  expected = [name for name in TREE if not any(x in name for x in unseen)]
  expected += ['z.gif', 'loop.gif', 'pipe.jpg']
  assert find('.') == sorted(f'./{name}' for name in expected)


def test_other_names_stand_for_themselves(tmp_path):
  for name in ('none.jpg', '.hidden', 'notes.txt'):
    assert find(str(tmp_path / name)) == [str(tmp_path / name)]
  # Its reading will say that it is empty.
  assert find(str(tmp_path)) == [str(tmp_path)]


def test_folders_that_cannot_be_listed_are_not_passed_over(tree, monkeypatch):
  def forbid(function):
    def checked(path='.'):
      if os.fspath(path) == './a/b':
        raise PermissionError(13, 'Permission denied', path)
      return function(path)

    return checked

  monkeypatch.setattr(os, 'scandir', forbid(os.scandir))
  monkeypatch.setattr(os, 'listdir', forbid(os.listdir))
  assert './a/b' in find('.')
  with pytest.raises(ImageError, match=re.escape('Permission denied')):
    images.read_image('./a/b')


def test_what_systems_put_beside_pictures_is_left_out(tree):
  everything = ('.',), ('a',), ('**/*.png',), ('*/*',), ('?*/**',)
  before = [find(*arguments) for arguments in everything]
  for folder in ('', 'a', 'a/b'):
    for name in ('__MACOSX', '@eaDir', '$RECYCLE.BIN', 'lost+found'):
      where = tree / folder / name / 'x2.png'
      where.mkdir(parents=True)
      (where / 'THUMB_M.png').touch()
      (where.parent / 'y.png').touch()
    (tree / folder / 'Thumbs.db').touch()
  assert [find(*arguments) for arguments in everything] == before
  assert find('a/*.db') == ['a/*.db']  # Without a match.
  thumbnails = ['a/@eaDir/x2.png/THUMB_M.png', 'a/@eaDir/y.png']
  assert find('*/@eaDir/*.png') == thumbnails  # Named explicitly.
  (tree / 'list').write_text('a\n')
  assert names_of(list='list') == before[1]
  # What a shell makes of *, and a folder that is asked for by itself.
  names = sorted(glob.glob('a/*'))
  assert 'a/@eaDir' in names
  assert names_of(*names) == find('a/b', 'a/x1.png')
  assert names_of('a/@eaDir') == thumbnails


@pytest.mark.parametrize(
  'pattern',
  [
    *('*.jpg', '**/*.png', 'a/**/*', '**/x[1-3].*', 'a*/*.png', '?/b/*.png'),
    *('**/b/**/*.jpg', '*/*.dat', '.*/*.jpg', '{}/**/*.png', '../*/a/*.png'),
  ],
)
def test_patterns_match_as_globs_of_python_do(tree, pattern):
  pattern = pattern.format(tree)
  expected = {
    path
    for path in glob.glob(pattern, recursive=True)
    if os.path.isfile(path) and not path.endswith(('.txt', '.mpg'))
  }
  found = find(pattern)
  assert expected and found == sorted(expected)


def test_patterns_follow_only_the_links_that_they_name(tree):
  (tree / 'link').symlink_to('b')
  (tree / 'b' / 'up').symlink_to(tree)
  assert find('link/*.jpg') == find('li*/*.jpg') == ['link/x5.jpg']
  assert not any('link' in name or 'up' in name for name in find('**/*.jpg'))


def test_folders_that_match_stand_for_their_images(tree):
  assert find('a*') == sorted(find('a', 'a-b', 'a.jpg'))
  assert find('[odd].jpg') == ['[odd].jpg']  # A file comes first.


def test_patterns_without_a_match_and_wrong_ones_are_named(tree):
  assert find('*.webp') == ['*.webp']
  with pytest.raises(ImageError, match='No such file.*, nor any that'):
    images.read_image('*.webp')
  with pytest.raises(UserError, match=r'\*\*.jpg: '):
    find('**.jpg')


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
    source = open_source(list=sources.STDIN)
    items = source.items()
    pipe.write(b'a.jpg\nb.jpg\n')
    assert next(items).name == 'a.jpg'
    assert source.count is None


def test_lists_hold_folders_and_no_patterns(tree):
  (tree / 'list').write_text('a-b\n*.jpg\n')
  assert names_of('b', list='list') == ['b/x5.jpg', 'a-b/x4.png', '*.jpg']
  assert open_source('b', list='list').count() == 3


def test_an_image_can_come_from_standard_input(monkeypatch):
  content = io.BytesIO()
  Image.new('RGB', (3, 2), 'red').save(content, 'png')
  content.seek(0)
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(content))
  [item] = open_source('-').items()
  pixels, label = item.read(True)
  assert pixels.tolist() == [[[255, 0, 0]] * 3] * 2 and label is None
