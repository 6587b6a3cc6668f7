"""Tests of random access to TFRecord files."""

import os
import pathlib
import resource

from conftest import evaluate, make_dataset
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets import paths
from nfnets.data import builders, records
from nfnets.errors import UserError
from nfnets.inference import preprocessing


def read_in_order(builder):
  return list(tf.data.TFRecordDataset(shards(builder)).as_numpy_iterator())


def shards(builder):
  return [str(path) for path in builder.info.splits['train'].filepaths]


def index_of(builder):
  name = f'{builder.name}-train.record_index.npz'
  return pathlib.Path(builder.data_path, name)


def test_records_are_those_that_tfds_reads(sharded):
  files = records.open_records(sharded, 'train')
  expected = read_in_order(sharded)
  assert len(files) == len(expected) == 50
  order = np.random.default_rng(0).integers(0, 50, 333)
  assert files.read(order) == [expected[i] for i in order]
  assert files.read([]) == []


def test_no_more_files_are_kept_open_than_allowed(sharded, monkeypatch):
  monkeypatch.setattr(resource, 'getrlimit', lambda _: (8, 8))

  def kept():
    links = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]
    names = [os.readlink(link) for link in links if os.path.exists(link)]
    return sum('sharded-train.tfrecord' in name for name in names)

  files = records.open_records(sharded, 'train')
  assert files.read(range(50)) == read_in_order(sharded)
  assert kept() == 2
  files.close()
  assert kept() == 0


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


@pytest.mark.parametrize('refused', ['nowhere', 'beside', 'everywhere'])
def test_index_is_made_once_unless_it_can_nowhere_be_kept(
  sharded, monkeypatch, refused
):
  save = paths.save_arrays

  def refuse(name, **arrays):
    is_beside = os.path.dirname(name) == sharded.data_dir
    if refused == 'everywhere' or (refused == 'beside' and is_beside):
      raise PermissionError(13, 'Permission denied', name)
    save(name, **arrays)

  monkeypatch.setattr(paths, 'save_arrays', refuse)
  files = records.open_records(sharded, 'train')
  assert files.read(range(50)) == read_in_order(sharded)
  assert index_of(sharded).exists() == (refused == 'nowhere')
  if refused != 'everywhere':
    monkeypatch.setattr(records.RecordFiles, '_scan', None)
    assert len(records.open_records(sharded, 'train')) == 50


@pytest.mark.parametrize('indexed', [True, False])
def test_shard_that_is_cut_short_or_missing_is_named(sharded, indexed):
  if indexed:
    records.open_records(sharded, 'train')
  shard = shards(sharded)[2]
  os.truncate(shard, os.path.getsize(shard) - 5)
  with pytest.raises(UserError, match=f'{shard} is damaged or cut short'):
    records.open_records(sharded, 'train')
  os.remove(shard)
  with pytest.raises(UserError, match=f'{shard} cannot be read'):
    records.open_records(sharded, 'train')


@pytest.mark.parametrize('count', [1, 30])
def test_shard_that_lacks_or_adds_records_is_named(sharded, count):
  shard = shards(sharded)[1]
  with tf.io.TFRecordWriter(shard) as writer:
    for _ in range(count):
      writer.write(b'one')
  with pytest.raises(UserError, match=f'{shard} holds {count} records, but'):
    records.open_records(sharded, 'train')


def test_shard_that_changes_after_indexing_is_named(sharded):
  files = records.open_records(sharded, 'train')
  shard = shards(sharded)[0]
  with open(shard, 'r+b') as file:
    file.write(b'\xff' * 8)
  with pytest.raises(UserError, match=f'{shard} is damaged, or has changed'):
    files.read([0])


@pytest.mark.parametrize('count', [1, 3])
def test_array_records_are_read_too(sharded, tmp_path, count):
  builder = make_dataset(
    'Arrays',
    tmp_path,
    dict(sharded.info.features),
    {'train': list(tfds.as_numpy(sharded.as_dataset(split='train')))},
    file_format='array_record',
    num_shards=count,
  )
  files = records.open_records(builder, 'train')
  parse = builder.info.features.deserialize_example
  found = [int(parse(r)['image'][0, 0, 0]) for r in files.read(range(50))]
  assert sorted(found) == list(range(50))
  assert files.read([49, 3, 3]) == [files.read([i])[0] for i in (49, 3, 3)]
  with pytest.raises(UserError, match='hold 50 records instead of 60'):
    records.ArrayRecordFiles(shards(builder), [60])


def test_other_file_formats_are_refused(sharded, monkeypatch):
  monkeypatch.setattr(
    type(sharded.info), 'file_format', tfds.core.FileFormat.RIEGELI
  )
  with pytest.raises(UserError, match='stored as riegeli, which cannot be'):
    records.open_records(sharded, 'train')


def test_records_are_what_training_sees(data_dir):
  pixels = np.zeros((8, 6, 4), np.uint8)
  pixels[:4, :, 0] = 200
  builder = make_dataset(
    'Clear',
    data_dir,
    {
      'image': tfds.features.Image(shape=(None, None, 4)),
      'label': tfds.features.ClassLabel(num_classes=2),
    },
    {'test': [{'image': pixels, 'label': 1}]},
  )
  image, label = builders.SplitReader(builder, 'test').example(0)
  options = {'batch_size': 1, 'preprocessing': 'resize_crop_1'}
  [batch] = evaluate(builder, image_size=(8, 6), **options)
  seen = preprocessing.preprocess_eval(image, (8, 6), 'resize_crop_1')
  np.testing.assert_allclose(seen, batch['images'][0], atol=1e-3)
  assert label == batch['labels'] == 1
