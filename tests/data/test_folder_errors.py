"""Tests of what is said of folders that are no dataset, and of their names."""

import pathlib
import shutil

from folder_lib import SPLITS, TWO
import pytest

from nfnets.data import builders, folder_listing
from nfnets.errors import UserError
from nfnets.inference import images

load = builders.load_builder

IN_TRAIN = tuple(f'train/{path}' for path in TWO)


@pytest.mark.parametrize(
  ('paths', 'message'),
  [
    ((), 'no pictures in .*DIR/CLASS/PICTURES.*TFDS has prepared'),
    (('notes.txt', 'cat/notes.txt'), r'no pictures .*by suffix: \.txt 2'),
    (('1.png', '2.png'), r'has pictures \(1.png, 2.png\), but nothing says'),
    ((*TWO, 'bird/', 'fish/'), r'no pictures of bird, fish\. Every class'),
    (('cat/1.png', 'cat/2.png'), "one class only, 'cat'"),
    (
      tuple(f'photos/{path}' for path in TWO),
      'one class only.*If cat, dog are .* the folder to give is .*/photos',
    ),
    ((*IN_TRAIN, 'test/cat/1.png'), 'no pictures of dog in the test split'),
    ((*SPLITS, 'test/bird/1.png'), 'no pictures of bird in the validation spl'),
    ((*TWO, 'Cat/1.png'), "'Cat' and 'cat' differ by case alone"),
    (
      (*IN_TRAIN, 'val/cat/1.png', 'val/dog/1.png', 'test/1.png'),
      'no pictures of cat, dog in the test split.*Pictures without labels',
    ),
    (
      (*SPLITS, 'valid/cat/1.png'),
      'test, train, val, valid, which are not splits',
    ),
    (
      ('test/cat/1.png', 'val/cat/1.png'),
      'has the folders test, val, which are not',
    ),
    (
      (*SPLITS, 'extra/x/1.png'),
      'extra, test, train, val, which are not splits',
    ),
    (('cat/1.png', 'dog/1.png'), 'no class has two different pictures'),
    ((*TWO, 'dog/gone.png -> nowhere'), 'dog/gone.png is a link to nothing'),
  ],
)
def test_unsuitable_folder_says_what_is_wrong(make_folder, paths, message):
  root = make_folder(*(path for path in paths if path.endswith('.png')))
  root.mkdir(exist_ok=True)
  for path in paths:
    name, _, target = path.partition(' -> ')
    (root / name).parent.mkdir(exist_ok=True)
    if target:
      (root / name).symlink_to(target)
    elif name.endswith('/'):
      (root / name).mkdir()
    elif name.endswith('.txt'):
      (root / name).write_text('')
  with pytest.raises(UserError, match=message) as error:
    load(str(root))
  assert str(root) in str(error.value)


def test_formats_that_are_not_read_say_what_to_do(
  make_folder, monkeypatch, caplog
):
  monkeypatch.setattr(images, '_suffixes', lambda: frozenset({'.png'}))
  root = make_folder(*TWO)
  (root / 'cat' / '3.HEIC').write_text('')
  (root / 'dog' / '3.svg').write_text('')
  assert len(folder_listing.list_pictures(str(root))) == 4
  assert 'cat/3.HEIC: a HEIC picture' in caplog.text
  assert 'dog/3.svg: an SVG drawing' in caplog.text
  for gone, message in (
    ('dog', r'no pictures of dog\. .* an SVG'),
    ('cat', r'no pictures in .*\[heic\].* an SVG'),
  ):
    for path in (root / gone).glob('*.png'):
      path.unlink()
    with pytest.raises(UserError, match=message):
      load(str(root))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', r'columns file_name and label.*first line is: empty'),
    ('id,breed\n1,a\n', r'columns file_name and label.*line is: id,breed'),
    ('file_name,label\n1.png,a\nx.png,b\n', 'not there: x.png'),
    ('file_name,label\n1.png,a\n./1.png,b\n', r'line 3: \./1.png is there twi'),
    (
      'file_name,label\n1.png,a\n2.png,\n',
      'line 3: the file_name or the label',
    ),
    ('file_name,label\n../1.png,a\n', r'not there: \.\./1.png'),
    ('file_name,label\n1.png,\xe9\n', 'is not a CSV file in UTF-8'),
  ],
)
def test_unsuitable_table_says_what_is_wrong(make_folder, text, message):
  root = make_folder('1.png', '2.png')
  shutil.copy(root / '1.png', root.parent)
  (root / 'labels.csv').write_bytes(text.encode('latin-1'))
  with pytest.raises(UserError, match=message) as error:
    load(str(root))
  assert f'{root}/labels.csv' in str(error.value)


@pytest.mark.parametrize('function', ['scandir', 'stat'])
def test_a_folder_that_may_not_be_read_is_named(
  make_folder, monkeypatch, function
):
  root = make_folder(*TWO)

  def refuse(path):
    raise PermissionError(13, 'Permission denied', path)

  with monkeypatch.context() as patch:
    patch.setattr(folder_listing.os, function, refuse)
    with pytest.raises(UserError, match=f'{root} cannot be read'):
      folder_listing.list_pictures(str(root))


# Names of folders and of datasets.


def test_folders_and_names_are_told_apart(make_folder, tmp_path, monkeypatch):
  for name in ('pictures', 'mnist', 'data/pictures'):
    root = make_folder(*TWO, folder=name)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'file').write_text('')
  for name in (
    'data/pictures',
    './data/pictures/',
    '~/data/pictures',
    str(root),
  ):
    assert load(name, str(tmp_path / 'tfds')).root == str(root)
  assert load('./mnist').root == str(tmp_path / 'mnist')
  for name, message in (
    ('mnist', 'For the folder .*, write ./mnist'),
    ('./gone', 'There is no folder .*/gone'),
    ('~/gone', 'There is no folder .*/gone'),
    ('./file', '/file is a file. Expected is a folder'),
  ):
    with pytest.raises(UserError, match=message):
      load(name, str(tmp_path / 'tfds'))


@pytest.mark.parametrize(
  ('name', 'meant'),
  [
    ('cliparts', 'the folder .*clipart'),
    ('./cliparts', 'the folder .*/clipart'),
    ('Clipart', 'the folder .*clipart'),
    ('clip art/', 'the folder .*clipart'),
    ('../data/cliprt', 'the folder .*/clipart'),
    ('mnistt', 'the folder .*mnists'),
    ('cifar11', 'cifar10'),
  ],
)
def test_folders_with_similar_names_are_named_before_datasets(
  make_folder, tmp_path, monkeypatch, name, meant
):
  make_folder(*TWO, folder='data/clipart')
  make_folder(*TWO, folder='data/mnists')
  monkeypatch.chdir(tmp_path / 'data')
  with pytest.raises(UserError, match=f'Did you mean {meant}'):
    load(name, str(tmp_path / 'tfds'))


def test_a_folder_of_a_tfds_dataset_says_how_to_name_it(sharded):
  for folder in pathlib.Path(sharded.data_path), sharded.data_dir:
    with pytest.raises(UserError, match='TFDS has prepared, give its name'):
      load(str(folder))
