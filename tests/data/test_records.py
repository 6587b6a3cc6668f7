"""Tests of random access to TFRecord files."""

import os
import pathlib

from conftest import make_dataset
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import record_index, records
from nfnets.data.errors import DatasetError


def read_in_order(builder, split='train'):
  paths = [str(p) for p in builder.info.splits[split].filepaths]
  return list(tf.data.TFRecordDataset(paths).as_numpy_iterator())


def index_of(builder, split='train'):
  return pathlib.Path(
    builder.data_path, f'{builder.name}-{split}.record_index.npz'
  )


def test_records_are_those_that_tfds_reads(sharded):
  files = records.open_records(sharded, 'train')
  expected = read_in_order(sharded)
  assert len(files) == len(expected) == 50
  order = np.random.default_rng(0).integers(0, 50, 333)
  assert files.read(order) == [expected[i] for i in order]
  assert files.read([]) == []


def test_examples_are_in_the_order_of_tfds_load(sharded):
  config = tfds.ReadConfig(interleave_cycle_length=1)
  dataset = sharded.as_dataset(split='train', read_config=config)
  labels = [int(example['label']) for example in dataset]
  files = records.open_records(sharded, 'train')
  parse = sharded.info.features.deserialize_example
  assert [int(parse(r)['label']) for r in files.read(range(50))] == labels


def test_no_more_files_are_kept_open_than_allowed(sharded):
  records.open_records(sharded, 'train').close()  # Indexing opens files too.
  files = records.open_records(sharded, 'train')
  local = files._files
  local._max_descriptors = 2
  assert files.read(range(50)) == read_in_order(sharded)
  assert len(local._descriptors) == 2
  files.close()
  assert not local._descriptors


def test_index_is_made_once(sharded, monkeypatch):
  records.open_records(sharded, 'train')
  assert index_of(sharded).exists()
  monkeypatch.setattr(record_index, '_scan_file', None)
  assert len(records.open_records(sharded, 'train')) == 50


@pytest.mark.parametrize('content', [b'', b'not an index', None])
def test_index_that_does_not_fit_is_made_again(sharded, content):
  records.open_records(sharded, 'train')
  index = index_of(sharded)
  if content is None:  # That of other files.
    with np.load(index) as old:
      arrays = dict(old) | {'shard_bytes': old['shard_bytes'] + 1}
    np.savez(index, **arrays)
  else:
    index.write_bytes(content)
  files = records.open_records(sharded, 'train')
  assert files.read(range(50)) == read_in_order(sharded)
  with np.load(index) as new:
    assert new['lengths'].shape == (50,)


def test_index_of_a_read_only_dataset_goes_to_the_cache(sharded, monkeypatch):
  save = record_index._save_index

  def refuse_beside_the_data(index, *args):
    if pathlib.Path(index.path).parent == pathlib.Path(sharded.data_path):
      raise PermissionError(13, 'Permission denied')
    save(index, *args)

  monkeypatch.setattr(record_index, '_save_index', refuse_beside_the_data)
  records.open_records(sharded, 'train')
  assert not index_of(sharded).exists()
  monkeypatch.setattr(record_index, '_scan_file', None)
  assert len(records.open_records(sharded, 'train')) == 50


def test_index_is_kept_nowhere_if_nothing_can_be_written(sharded, monkeypatch):
  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(record_index, '_save_index', refuse)
  files = records.open_records(sharded, 'train')
  assert files.read(range(50)) == read_in_order(sharded)


def test_index_leaves_no_temporary_files(sharded):
  before = set(os.listdir(sharded.data_path))
  records.open_records(sharded, 'train')
  assert set(os.listdir(sharded.data_path)) - before == {index_of(sharded).name}
  assert index_of(sharded).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize('indexed', [True, False])
def test_shard_that_is_cut_short_is_named(sharded, indexed):
  if indexed:
    records.open_records(sharded, 'train')
  shard = str(sharded.info.splits['train'].filepaths[2])
  os.truncate(shard, os.path.getsize(shard) - 5)
  with pytest.raises(DatasetError, match=f'{shard} is damaged or cut short'):
    records.open_records(sharded, 'train')


@pytest.mark.parametrize('count', [1, 30])
def test_shard_that_lacks_or_adds_records_is_named(sharded, count):
  shard = str(sharded.info.splits['train'].filepaths[1])
  with tf.io.TFRecordWriter(shard) as writer:
    for _ in range(count):
      writer.write(b'one')
  message = f'{shard} holds {count} records, but'
  with pytest.raises(DatasetError, match=message):
    records.open_records(sharded, 'train')


def test_shard_that_is_missing_is_named(sharded):
  shard = str(sharded.info.splits['train'].filepaths[4])
  os.remove(shard)
  with pytest.raises(DatasetError, match=f'{shard} cannot be read'):
    records.open_records(sharded, 'train')


def test_shard_that_changes_after_indexing_is_named(sharded):
  files = records.open_records(sharded, 'train')
  shard = str(sharded.info.splits['train'].filepaths[0])
  with open(shard, 'r+b') as file:
    file.write(b'\xff' * 8)
  with pytest.raises(DatasetError, match=f'{shard} is damaged, or has changed'):
    files.read([0])


@pytest.mark.parametrize('shards', [1, 3])
def test_array_records_are_read_too(sharded, tmp_path, shards):
  builder = make_dataset(
    'Arrays',
    tmp_path,
    dict(sharded.info.features),
    {'train': list(tfds.as_numpy(sharded.as_dataset(split='train')))},
    file_format='array_record',
    num_shards=shards,
  )
  files = records.open_records(builder, 'train')
  parse = builder.info.features.deserialize_example
  found = [int(parse(r)['image'][0, 0, 0]) for r in files.read(range(50))]
  assert sorted(found) == list(range(50))
  assert files.read([49, 3, 3]) == [files.read([i])[0] for i in (49, 3, 3)]
  paths = [str(p) for p in builder.info.splits['train'].filepaths]
  with pytest.raises(DatasetError, match='hold 50 records instead of 60'):
    records.ArrayRecordFiles(paths, [60])


def test_other_file_formats_are_refused(sharded, monkeypatch):
  monkeypatch.setattr(
    type(sharded.info), 'file_format', tfds.core.FileFormat.RIEGELI
  )
  with pytest.raises(DatasetError, match='stored as riegeli, which cannot be'):
    records.open_records(sharded, 'train')
