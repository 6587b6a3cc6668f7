"""Tests of what is said of folders that are no dataset."""

from folder_lib import SPLITS, TWO
import pytest

from nfnets.data import builders, folder_digests, folder_listing
from nfnets.data.errors import DatasetError

load = builders.load_builder

IN_TRAIN = tuple(f'train/{path}' for path in TWO)


@pytest.mark.parametrize(
  ('paths', 'message'),
  [
    ((), 'no pictures in .*DIR/CLASS/PICTURES'),
    (('notes.txt', 'cat/notes.txt'), r'no pictures .*by suffix: \.txt 2'),
    (('1.png', '2.png'), r'has pictures \(1.png, 2.png\), but nothing says'),
    ((*TWO, 'bird/', 'fish/'), 'no pictures in bird, fish'),
    (('cat/1.png', 'cat/2.png'), "one class only, 'cat'"),
    (
      tuple(f'photos/{path}' for path in TWO),
      'one class only.*If cat, dog are .* the folder to give is .*/photos',
    ),
    ((*IN_TRAIN, 'test/cat/1.png'), 'the test split has no pictures of dog'),
    (
      (*SPLITS, 'test/bird/1.png'),
      'the train split has no pictures of bird',
    ),
    ((*TWO, 'Cat/1.png'), "'Cat' and 'cat' differ by case alone"),
    ((*IN_TRAIN, 'test/1.png'), '/test has no folders of classes'),
    ((*SPLITS, 'valid/cat/1.png'), 'val and valid, which are both the valid'),
    (('test/cat/1.png', 'val/cat/1.png'), 'has test, val and no train'),
    ((*SPLITS, 'extra/x/1.png'), r'beside others \(extra\)'),
    (('cat/1.png', 'dog/1.png'), 'no class has two different pictures'),
    ((*TWO, 'dog/gone.png -> nowhere'), 'dog/gone.png is a link to nothing'),
  ],
)
def test_unsuitable_folder_says_what_is_wrong(make_folder, paths, message):
  root = make_folder(*(path for path in paths if path.endswith('.png')))
  root.mkdir(exist_ok=True)
  for path in paths:
    name, _, target = path.partition(' -> ')
    if not path.endswith('.png'):
      (root / name).parent.mkdir(exist_ok=True)
      if target:
        (root / name).symlink_to(target)
      elif name.endswith('/'):
        (root / name).mkdir()
      else:
        (root / name).write_text('')
  with pytest.raises(DatasetError, match=message) as error:
    load(str(root))
  assert str(root) in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', r'columns file_name and label.*first line is: empty'),
    (
      'id,breed\n1,a\n',
      r'columns file_name and label.*first line is: id,breed',
    ),
    ('file_name,label\n', 'names no files'),
    ('file_name,label\n1.png,a\nx.png,b\n', 'not there: x.png'),
    (
      'file_name,label\n1.png,a\n./1.png,b\n',
      r'line 3: \./1.png is there twice',
    ),
    (
      'file_name,label\n1.png,a\n2.png,\n',
      'line 3: the file_name or the label',
    ),
    (
      'file_name,label\n../1.png,a\n',
      r'line 2: \.\./1.png is not in the folder',
    ),
    ('file_name,label\n1.png,\xe9\n', 'is not in UTF-8'),
  ],
)
def test_unsuitable_table_says_what_is_wrong(make_folder, text, message):
  root = make_folder('1.png', '2.png')
  (root / 'labels.csv').write_bytes(text.encode('latin-1'))
  with pytest.raises(DatasetError, match=message) as error:
    load(str(root))
  assert f'{root}/labels.csv' in str(error.value)


def test_tables_of_spreadsheets_are_read(make_folder):
  root = make_folder('1.png', '2.png', '3.png', 'not listed.png')
  text = (
    '\ufefffile_name, label,note\r\n1.png,"b,c",x\r\n2.png,a,\r\n3.png,a,\r\n'
  )
  (root / 'labels.csv').write_text(text, newline='')
  builder = load(str(root))
  assert builders.label_names(builder) == ['a', 'b,c']
  paths = builder.paths('train') + builder.paths('valid')
  assert sorted(paths) == ['1.png', '2.png', '3.png']


def test_files_that_may_not_be_read_are_named(make_folder, monkeypatch):
  root = make_folder(*TWO)

  def refuse(path, _):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(folder_digests, '_digest', refuse)
  message = r'cannot read cat/1.png, cat/2.png, .* \(Permission denied\)'
  with pytest.raises(DatasetError, match=message):
    load(str(root))
  for name in ('scandir', 'stat'):
    with monkeypatch.context() as patch:
      patch.setattr(folder_listing.os, name, lambda path: refuse(path, 0))
      with pytest.raises(DatasetError, match=f'{root} cannot be read'):
        folder_listing.list_pictures(str(root))
