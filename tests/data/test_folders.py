"""Tests of what is in a folder of pictures: layouts, tables, division."""

import os
import shutil
import unicodedata

from folder_lib import SPLITS, TWO, draw
import numpy as np
import pytest

from nfnets.data import builders, folders

load = builders.load_builder

CLASSES = (
  'class2/b9.png',
  'class2/b10.png',
  'class10/b.png',
  'class10/x/y/a.png',
)


def every_path(builder):
  return sorted(builder.paths('train') + builder.paths('valid'))


def composed(text):
  return unicodedata.normalize('NFC', text)


def test_classes_and_paths_are_in_natural_order(make_folder):
  builder = load(str(make_folder(*CLASSES)))
  assert builders.label_names(builder) == ['class2', 'class10']
  for split in ('train', 'valid'):  # The divided parts keep the order, too.
    found = builder.paths(split)
    assert found == [path for path in CLASSES if path in found]
  assert every_path(builder) == sorted(CLASSES)


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_accents_may_be_written_in_two_ways(make_folder, form):
  """As a folder is on a Mac, and in one split as it is elsewhere."""
  given = [f'{x}/{i}.png' for x in ('été', 'f', 'zoé', 'z') for i in range(2)]
  paths = [f'train/{unicodedata.normalize(form, path)}' for path in given]
  builder = load(str(make_folder(*paths, *(f'test/{x}' for x in given))))
  names = builders.label_names(builder)
  assert names == [composed(name) for name in ('f', 'z', 'zoé', 'été')]
  for split in ('train_and_valid', 'test'):
    found = [names[label] for label in builder.labels(split)]
    paths = [composed(path).split('/')[1] for path in builder.paths(split)]
    assert found == paths


@pytest.mark.parametrize(
  ('given', 'ours'),
  [
    # Of each of our splits, whether it has pictures of train, val and test.
    (('train', 'val', 'test'), ['train', 'val', 'train', 'test']),
    (('train', 'val'), ['train', 'val', 'train', 'val']),
    (('train', 'test'), ['train', 'train', 'train', 'test']),
    (('train',), ['train', 'train', 'train', 'train']),
  ],
)
@pytest.mark.parametrize('layout', ['folders', 'table', 'tables'])
def test_splits_are_those_of_the_folder(make_folder, given, ours, layout):
  root = make_folder(*(p for p in SPLITS if p.split('/')[0] in given))
  rows = [p.relative_to(root) for p in root.rglob('*.png')]
  tables = {'folders': [], 'table': [''], 'tables': given}[layout]
  for folder in tables:
    own = [p for p in rows if not folder or p.parts[0] == folder]
    text = ''.join(f'{p.relative_to(folder)},{p.parent.name}\n' for p in own)
    table = root / folder / 'metadata.csv'
    table.write_text('file_name,label\n' + text)
  (root / 'annotations').mkdir()
  builder = load(str(root))
  assert builders.label_names(builder) == ['cat', 'dog']
  parts = {s: builder.paths(s) for s in builders.SPLITS}
  for split, source in zip(builders.SPLITS, ours, strict=True):
    assert {p.split('/')[0] for p in parts[split]} == {source}
    assert len(parts[split]) == builders.num_examples(builder, split)
  assert not set(parts['train']) & set(parts['valid'])
  is_cut = given == ('train', 'test')
  whole = parts['valid'] + parts['train'] if is_cut else parts['train']
  assert parts['train_and_valid'] == whole
  assert builders.is_test_split(builder, 'valid') == ('test' not in given)


def test_a_test_split_is_enough_to_evaluate_on(make_folder):
  paths = [f'{x}/{y}/1.png' for x in ('train', 'test') for y in ('a', 'b')]
  builder = load(str(make_folder(*paths)))
  found = [builder.paths(split) for split in ('train', 'test', 'valid')]
  assert found == [paths[:2], paths[2:], []]


def test_a_class_may_be_called_train(make_folder):
  root = make_folder('bus/1.png', 'bus/2.png', 'train/1.png', 'train/2.png')
  assert builders.label_names(load(str(root))) == ['bus', 'train']


def test_links_are_followed_once_and_other_files_left_out(make_folder):
  root = make_folder(*TWO)
  store = make_folder('a.png', 'deep/b.png', folder='store')
  (root / 'dog' / 'store').symlink_to(store)
  (root / 'dog' / 'again').symlink_to(store)
  (store / 'back').symlink_to(root)
  (root / 'cat' / 'store').symlink_to(root / 'dog')
  draw(root / 'cat' / '.hidden.png')
  draw(root / 'beside.png')
  (root / 'cat' / 'notes.txt').write_text('')
  expected = [*TWO, 'dog/again/a.png', 'dog/again/deep/b.png']
  assert every_path(load(str(root))) == sorted(expected)


def test_a_split_may_be_a_link_to_another(make_folder):
  root = make_folder(*(path for path in SPLITS if 'test' not in path))
  (root / 'test').symlink_to(root / 'val')
  builder = load(str(root))
  names = [path.replace('test', 'val') for path in builder.paths('test')]
  assert names == builder.paths('valid') and len(names) == 6


IGNORED = (
  '.thumbs',
  '__MACOSX',
  '@eaDir',
  '#recycle',
  '@Recycle',
  '@Recently-Snapshot',
  '$RECYCLE.BIN',
  'System Volume Information',
  'lost+found',
)


@pytest.mark.parametrize('split', ['', 'train/'])
def test_what_systems_put_there_is_neither_a_class_nor_a_picture(
  make_folder, monkeypatch, split
):
  paths = [f'{split}{path}' for path in CLASSES]
  root = make_folder(*paths)
  for name in IGNORED:
    for folder in ('', split, f'{split}class2', f'{split}class10/x/y'):
      draw(root / folder / name / 'b9.png' / 'THUMB_M.png')
      draw(root / folder / name / 'train' / '1.png')
  (root / split / 'class2' / 'Thumbs.db').write_text('')
  scandir = os.scandir

  def refuse(path):
    if 'lost+found' in str(path):
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  builder = load(str(root))
  assert builders.label_names(builder) == ['class2', 'class10']
  assert every_path(builder) == sorted(paths)


@pytest.mark.parametrize('disk', ['NFC', 'NFD'])
@pytest.mark.parametrize('table', ['NFC', 'NFD'])
@pytest.mark.parametrize('separator', ['/', '\\'])
def test_tables_find_files_however_names_are_written(
  make_folder, disk, table, separator
):
  names = [f'{x}/é{i}ü.png' for x in ('Ä', 'b') for i in range(3)]
  paths = [unicodedata.normalize(disk, name) for name in names]
  root = make_folder(*paths)
  text = ''.join(f'{x},{i % 2}\n' for i, x in enumerate(names))
  text = unicodedata.normalize(table, text.replace('/', separator))
  (root / 'labels.csv').write_text('file_name,label\n' + text)
  assert every_path(load(str(root))) == sorted(paths)


def test_tables_of_spreadsheets_are_read(make_folder):
  root = make_folder('1.png', '2.png', '3.png', 'not listed.png')
  rows = '\ufefffile_name, label,note\r\n1.png,"b,c",x\r\n2.png,a,\r\n3.png,a,'
  (root / 'labels.csv').write_text(rows, newline='')
  builder = load(str(root))
  assert builders.label_names(builder) == ['a', 'b,c']
  assert every_path(builder) == ['1.png', '2.png', '3.png']


def test_names_may_hold_any_character(make_folder, tmp_path):
  names = ['a b', "it's <b>", 'new\nline', 'café', '图', os.fsdecode(b'\xff')]
  paths = [f'{name}/{i}{name}.png' for name in names for i in range(2)]
  builder = load(str(make_folder(*paths)))
  assert sorted(builders.label_names(builder)) == sorted(names)
  for _ in range(2):
    builder.check_unchanged(str(tmp_path / 'list.json'))


# Division by content.


def test_a_fifth_is_held_out_whatever_else_there_is():
  rng = np.random.default_rng(0)
  digests = rng.integers(0, 2**64, 20_000, np.uint64).tolist()
  contents = [(str(i % 10), digest) for i, digest in enumerate(digests)]
  held = folders.held_out(contents)
  for label in '0123456789':
    own = {digest for name, digest in contents if name == label}
    assert 300 < len(own & held) < 500
  half = folders.held_out(contents[:10_000])
  assert half == held & set(digests[:10_000])
  assert half == folders.held_out([('one', x) for x in digests[:10_000]])


@pytest.mark.parametrize(
  ('digests', 'held'),
  [
    ([2**63, 2**63 + 1, 2**63 + 2], {2**63}),  # None by the rule.
    ([1, 2, 3], {1, 2}),  # All by the rule.
    ([1, 2**63], {1}),
    ([1], set()),
    ([2**63, 2**63], set()),  # Two copies of one picture.
  ],
)
def test_each_class_has_pictures_on_both_sides(digests, held):
  assert folders.held_out([('a', digest) for digest in digests]) == held


def test_copies_are_on_one_side_whatever_they_are_called(make_folder):
  paths = [f'{name}/{i}.png' for name in ('cat', 'dog') for i in range(30)]
  root = make_folder(*paths)
  for path in paths:
    shutil.copy(root / path, root / path.replace('/', '/copy of '))
  builder = load(str(root))
  for split in ('train', 'valid'):
    side = set(builder.paths(split))
    copies = {p.replace('/', '/copy of ') for p in side if 'copy' not in p}
    assert copies == {p for p in side if 'copy' in p} and len(copies) > 5
  assert builder.duplicates() == []


def test_copies_in_two_splits_or_classes_are_named(make_folder, caplog):
  root = make_folder(*SPLITS)
  shutil.copy(root / 'train/cat/1.png', root / 'train/dog/9.png')
  shutil.copy(root / 'train/cat/1.png', root / 'val/cat/9.png')
  shutil.copy(root / 'test/dog/0.png', root / 'val/dog/9.png')
  builder = load(str(root))
  two_classes = ('train/cat/1.png', 'train/dog/9.png')
  assert builder.contradictions() == [two_classes]
  assert ' = '.join(two_classes) in caplog.text
  assert set(builder.duplicates()) == {
    ('train/cat/1.png', 'val/cat/9.png'),
    ('val/dog/9.png', 'test/dog/0.png'),
  }
