"""Tests of what is in a folder of pictures: layouts, division, index."""

import os
import pathlib
import shutil

from folder_lib import SPLITS, TWO, draw
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from nfnets.data import builders, folder_digests, folders
from nfnets.data.errors import DatasetError

load = builders.load_builder


def write_table(path, text):
  path.write_text('file_name,label\n' + text)


CLASSES = (
  'class2/b10.png',
  'class2/b9.png',
  'class10/x/y/a.png',
  'class10/b.png',
)


def test_classes_and_paths_are_in_natural_order(make_folder):
  builder = load(str(make_folder(*CLASSES)))
  assert builders.label_names(builder) == ['class2', 'class10']
  # The divided parts keep the order, too.
  found = [builder.paths(split) for split in ('train', 'valid')]
  order = ['class2/b9.png', 'class2/b10.png']
  order += ['class10/b.png', 'class10/x/y/a.png']
  assert found == [[p for p in order if p in part] for part in found]
  assert sorted(sum(found, [])) == sorted(order)


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
  if layout != 'folders':
    rows = [p.relative_to(root) for p in root.rglob('*.png')]
    tables = {'': rows}
    if layout == 'tables':
      tables = {
        s: [p.relative_to(s) for p in rows if p.parts[0] == s] for s in given
      }
    for folder, paths in tables.items():
      text = ''.join(f'{p},{p.parent.name}\n' for p in paths)
      write_table(root / folder / 'metadata.csv', text)
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
  assert builder.test_split_name == (
    'test' if 'test' in given else 'validation'
  )


def test_a_test_split_is_enough_to_evaluate_on(make_folder):
  paths = [f'{x}/{y}/1.png' for x in ('train', 'test') for y in ('a', 'b')]
  builder = load(str(make_folder(*paths)))
  assert builder.paths('test') == ['test/a/1.png', 'test/b/1.png']
  assert builder.paths('train') == ['train/a/1.png', 'train/b/1.png']
  assert builder.paths('valid') == []


def test_a_class_may_be_called_train(make_folder):
  builder = load(
    str(make_folder('bus/1.png', 'bus/2.png', 'train/1.png', 'train/2.png'))
  )
  assert builders.label_names(builder) == ['bus', 'train']


def test_links_are_followed_once_and_other_files_left_out(
  make_folder, tmp_path
):
  root = make_folder('cat/1.png', 'cat/2.png', 'dog/1.png', 'dog/2.png')
  store = make_folder('a.png', 'deep/b.png', folder='store')
  (root / 'dog' / 'store').symlink_to(store)
  (root / 'dog' / 'again').symlink_to(store)
  (store / 'back').symlink_to(root)
  (root / 'cat' / 'store').symlink_to(root / 'dog')
  (root / 'cat' / '0.png').symlink_to(root / 'cat' / '1.png')
  draw(root / 'cat' / '.hidden.png')
  draw(root / '__MACOSX' / 'cat' / '3.png')
  draw(root / 'beside.png')
  (root / 'cat' / 'notes.txt').write_text('')
  builder = load(str(root))
  found = sorted(builder.paths('train') + builder.paths('valid'))
  dogs = ['again/a.png', 'again/deep/b.png', '1.png', '2.png']
  expected = ['cat/1.png', 'cat/2.png', *(f'dog/{name}' for name in dogs)]
  assert found == sorted(expected)


def test_names_may_hold_any_character(make_folder, tmp_path):
  names = ['a b', "it's <b>", 'new\nline', 'café', '图', os.fsdecode(b'\xff')]
  root = make_folder(
    *(f'{name}/{i}{name}.png' for name in names for i in range(2))
  )
  builder = load(str(root))
  assert sorted(builders.label_names(builder)) == sorted(names)
  for path in builder.paths('train'):
    assert (root / path).exists()
  for _ in range(2):
    builder.check_unchanged(str(tmp_path / 'list.json'))


def test_a_fifth_is_held_out_whatever_else_there_is():
  digests = (
    np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64).tolist()
  )
  contents = [(str(i % 10), digest) for i, digest in enumerate(digests)]
  held = folders.held_out(contents)
  assert held <= set(digests) and 3800 < len(held) < 4200
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
  root = make_folder(
    *(f'{name}/{i}.png' for name in ('cat', 'dog') for i in range(30))
  )
  for name in ('cat', 'dog'):
    for i in range(30):
      shutil.copy(root / name / f'{i}.png', root / name / f'copy of {i}.png')
  builder = load(str(root))
  sides = [set(builder.paths(split)) for split in ('train', 'valid')]
  for side in sides:
    assert len(side) > 10
    copies = {p.replace('/', '/copy of ') for p in side if 'copy' not in p}
    assert copies == {p for p in side if 'copy' in p}
  assert builder.duplicates() == []


def test_duplicates_between_splits_are_found(make_folder):
  root = make_folder(*SPLITS)
  shutil.copy(root / 'train/cat/1.png', root / 'train/cat/9.png')
  shutil.copy(root / 'train/cat/1.png', root / 'val/cat/9.png')
  shutil.copy(root / 'test/dog/0.png', root / 'val/dog/9.png')
  assert set(load(str(root)).duplicates()) == {
    ('train/cat/1.png', 'val/cat/9.png'),
    ('val/dog/9.png', 'test/dog/0.png'),
  }


@pytest.mark.parametrize('suffix', ['.bmp', '.png', '.tif'])
def test_large_pictures_differ_by_any_pixel(tmp_path, suffix):
  pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
  digests = set()
  for i in range(3):
    pixels[150, 150] = i // 2
    path = tmp_path / f'{i}{suffix}'
    Image.fromarray(pixels).save(path)
    assert path.stat().st_size > 4 * folder_digests._END_BYTES
    digests.add(folder_digests._digest(str(path), path.stat().st_size))
  assert len(digests) == 2


@pytest.fixture
def digested(monkeypatch):
  """The names of the files that have been digested so far."""
  names, digest = [], folder_digests._digest

  def record(path, size):
    names.append(os.path.basename(path))
    return digest(path, size)

  monkeypatch.setattr(folder_digests, '_digest', record)
  return names


def test_only_what_has_changed_is_read_again(make_folder, digested):
  root = make_folder('cat/1.png', 'cat/2.png', 'dog/3.png', 'dog/4.png')
  load(str(root))
  assert sorted(digested) == ['1.png', '2.png', '3.png', '4.png']
  digested.clear()
  load(str(root))
  assert digested == []
  draw(root / 'cat' / '1.png', 99)
  os.utime(root / 'dog' / '3.png')
  draw(root / 'dog' / '5.png', 98)
  (root / 'dog' / '4.png').unlink()
  load(str(root))
  assert sorted(digested) == ['1.png', '3.png', '5.png']


@pytest.mark.parametrize('content', [b'', b'not an index', b'PK\3\4', None])
def test_index_that_is_damaged_or_cannot_be_kept_is_made_again(
  make_folder, digested, monkeypatch, tmp_path, content
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  root = make_folder('cat/1.png', 'cat/2.png', 'dog/3.png', 'dog/4.png')
  if content is None:
    (tmp_path / 'cache').write_text('')  # Where a folder would have to be.
  before = set(root.rglob('*'))
  want = load(str(root)).paths('train')
  if content is not None:
    (index,) = (tmp_path / 'cache' / 'nfnets').iterdir()
    index.write_bytes(content)
  assert load(str(root)).paths('train') == want
  assert len(digested) == 8
  assert set(root.rglob('*')) == before


def test_a_changed_folder_is_told(make_folder, tmp_path):
  root = make_folder(*SPLITS)
  listing = str(tmp_path / 'run' / 'pictures.json')
  load(str(root)).check_unchanged(listing)
  os.utime(root / 'train/cat/0.png')  # A copy of the folder is the same folder.
  load(str(root)).check_unchanged(listing)
  draw(root / 'train/cat/1.png', 99)
  draw(root / 'train/dog/7.png', 98)
  draw(root / 'train/dog/8.png', 97)
  (root / 'val/dog/2.png').unlink()
  with pytest.raises(DatasetError) as error:
    load(str(root)).check_unchanged(listing)
  for part in (
    f'{root} has changed since this run began',
    '2 added (train/dog/7.png, train/dog/8.png)',
    '1 removed (val/dog/2.png)',
    '1 changed (train/cat/1.png)',
    listing,
  ):
    assert part in str(error.value)
  assert os.listdir(tmp_path / 'run') == ['pictures.json']


def test_folders_and_names_are_told_apart(make_folder, tmp_path, monkeypatch):
  root = make_folder(*TWO)
  make_folder(*TWO, folder='mnist')
  make_folder(*TWO, folder='data/pictures')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  for name in ('pictures', './pictures', 'pictures/', '~/pictures', str(root)):
    assert load(name, str(tmp_path / 'tfds')).root == str(root)
  assert load('data/pictures').root == str(tmp_path / 'data/pictures')
  assert load('./mnist').root == str(tmp_path / 'mnist')
  with pytest.raises(DatasetError, match='For the folder .*, write ./mnist'):
    load('mnist', str(tmp_path / 'tfds'))
  for name in ('./gone', '../gone', '~/gone', '/gone'):
    with pytest.raises(DatasetError, match='There is no folder .*/gone'):
      load(name)
  (tmp_path / 'file').write_text('')
  with pytest.raises(DatasetError, match='/file is a file'):
    load('./file')


def test_folder_of_a_tfds_dataset_says_its_name(sharded):
  data_dir = pathlib.Path(sharded.data_path).parents[1]
  command = f'Use --which_dataset=sharded:1.0.0 --data_dir={data_dir}$'
  for folder in (
    data_dir,
    data_dir / 'sharded',
    data_dir / 'sharded' / '1.0.0',
  ):
    with pytest.raises(DatasetError, match=command):
      load(str(folder))


def test_tfds_reads_a_folder_too(make_folder):
  # The last is one that TensorFlow does not decode.
  builder = load(str(make_folder(*SPLITS, 'train/dog/3.tiff')))
  assert isinstance(builder, tfds.core.DatasetBuilder)
  examples = list(builder.as_dataset(split='train').as_numpy_iterator())
  assert [x['label'] for x in examples] == [0, 0, 0, 1, 1, 1, 1]
  assert {x['image'].shape for x in examples} == {(6, 5, 3)}
  with pytest.raises(DatasetError, match="no split 'x', but train, validation"):
    builder.as_dataset(split='x')
