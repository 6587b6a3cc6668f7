"""Tests of reading datasets from an emulated bucket, by real clients."""

import itertools
import logging
import os
import pathlib
import subprocess
import sys
import time

from conftest import assert_same, evaluate, make_dataset
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tensorstore as ts

from nfnets import paths
from nfnets.data import byte_ranges, dataset, records
from nfnets.errors import UserError


def copy(source, target):
  """Puts the files of a folder into the bucket; returns the store of these."""
  kvstore = ts.KvStore.open(f'{target}/').result()
  for path in pathlib.Path(source).rglob('*'):
    if path.is_file() and 'record_index' not in path.name:
      kvstore.write(str(path.relative_to(source)), path.read_bytes()).result()
  return kvstore


def train(builder, first_step=0):
  options = dataset.Options(16, 24, seed=5)
  return dataset.train_batches(builder, 'train_and_valid', options, first_step)


def take(batches, count):
  return list(itertools.islice(batches, count))


@pytest.fixture
def remote(imagenet, remote_folder):
  """imagenet2012 in the bucket."""
  copy(pathlib.Path(imagenet.data_path).parents[1], remote_folder)
  return dataset.load_builder('imagenet2012', remote_folder)


@pytest.fixture
def remote_records(sharded, remote_folder):
  """50 examples in 5 files, in the bucket, and the store of these files."""
  kvstore = copy(sharded.data_path, remote_folder)
  split = sharded.info.splits['train']
  names = [f'{remote_folder}/{path.name}' for path in split.filepaths]

  def open_them():
    return records.RecordFiles(names, split.shard_lengths, 'sharded-train')

  return open_them, kvstore


@pytest.fixture
def impatient(monkeypatch):
  """A store that fails is asked again soon, and given up after 2 seconds."""
  delays = {'initial_delay': '100ms', 'max_delay': '500ms'}
  monkeypatch.setattr(byte_ranges, '_RETRIES', {'max_retries': 5} | delays)


def test_batches_are_those_from_the_disk_whatever_happens(
  store, imagenet, remote
):
  # More than is read ahead.
  with train(imagenet) as batches:
    expected = take(batches, 40)
  with train(remote) as batches:
    found = take(batches, 1)
    store.disturb('lost', 0.5)
    found += take(batches, 39)
  assert_same(found, expected)
  assert store.requests()['disturbed']
  with train(remote, first_step=3) as batches:
    assert_same(take(batches, 3), expected[3:6])
  assert_same(evaluate(imagenet), evaluate(remote))


@pytest.mark.parametrize('kind', ['lost', '429', '503'])
def test_reading_outlasts_a_disturbance_and_says_so(
  store, remote_records, monkeypatch, caplog, kind
):
  open_them, _ = remote_records
  files = open_them()
  expected = files.read(range(50))
  monkeypatch.setattr(byte_ranges, '_PATIENCE_SECONDS', 1)
  store.disturb(kind, 2.5)
  with caplog.at_level(logging.WARNING, 'absl'):
    assert files.read(range(50)) == expected
  said = [r.getMessage() for r in caplog.records]
  assert [text.split(':')[0] for text in said] in (
    [],  # Another test has had the line of this minute.
    ['The store does not answer'],
  )


@pytest.mark.slow
def test_a_store_that_stays_down_is_an_error(store, remote, impatient):
  with train(remote) as batches:
    store.disturb('503', 100)
    start = time.monotonic()
    with pytest.raises(UserError, match='cannot be read .status 503'):
      take(batches, 100)
  assert time.monotonic() - start < 60


def test_closing_does_not_wait_for_a_store_that_is_down(store, remote):
  batches = train(remote)
  store.disturb('lost', 100)
  time.sleep(1)
  start = time.monotonic()
  batches.close()
  assert time.monotonic() - start < 50


@pytest.mark.slow
def test_a_request_without_answer_is_sent_again(store, remote_folder):
  paths.write_bytes(f'{remote_folder}/x', b'0123')
  code = (
    'from nfnets.data import byte_ranges\n'
    'print("begins", flush=True)\n'
    f'part = byte_ranges.Range("{remote_folder}/x", 1, 2)\n'
    'print(byte_ranges.BucketFiles().read([part]))'
  )
  store.set_latency(60)
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    env=os.environ
    | {'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '2'}
    | {'PYTHONPATH': os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'begins\n'
  time.sleep(2)  # Now it waits.
  store.set_latency(0)
  assert process.communicate(timeout=300)[0] == "[b'12']\n"


def test_records_are_those_of_the_disk_and_indexed_once(
  store, sharded, remote_records, monkeypatch
):
  open_them, kvstore = remote_records
  order = np.random.default_rng(0).integers(0, 50, 200)
  expected = records.open_records(sharded, 'train').read(order)
  assert open_them().read(order) == expected
  assert kvstore.read('sharded-train.record_index.npz').result().value
  monkeypatch.setattr(records.RecordFiles, '_scan', None)
  before = store.requests()
  assert open_them().read(order) == expected
  # The index, the sizes of two of the files, and the records.
  assert sum((store.requests() - before).values()) < 200 + 10


def test_a_file_larger_than_what_is_scanned_at_once_is_indexed(
  remote_records, monkeypatch
):
  open_them, kvstore = remote_records
  expected = open_them()._lengths
  kvstore.write('sharded-train.record_index.npz', None).result()
  monkeypatch.setattr(byte_ranges.BucketFiles, 'scan_bytes', 150)
  np.testing.assert_array_equal(open_them()._lengths, expected)


def test_the_index_of_a_bucket_that_is_read_only_goes_to_the_cache(
  remote_records, monkeypatch
):
  open_them, kvstore = remote_records
  put = paths.put

  def refuse_bucket(file, name):
    if paths.is_remote(name):
      raise PermissionError(13, 'Permission denied')
    put(file, name)

  monkeypatch.setattr(paths, 'put', refuse_bucket)
  open_them()
  assert not [x for x in kvstore.list().result() if b'index' in x]
  monkeypatch.setattr(records.RecordFiles, '_scan', None)
  assert len(open_them()) == 50


def test_many_records_are_read_at_once(store, remote_records):
  open_them, _ = remote_records
  files = open_them()
  store.set_latency(0.4)
  start = time.monotonic()
  files.read(range(50))
  assert 0.4 <= time.monotonic() - start < 50 * 0.4 / 4


def test_files_that_are_gone_forbidden_or_changed_are_named(
  store, remote_records
):
  open_them, kvstore = remote_records
  files = open_them()
  names = sorted(
    name for name in kvstore.list().result() if b'tfrecord' in name
  )
  kvstore.write(names[1], None).result()
  with pytest.raises(UserError, match='00001-of-00005 is not there'):
    files.read(range(50))
  content = kvstore.read(names[2]).result().value
  for other in (content[: len(content) // 2], content[1:]):
    kvstore.write(names[1], other).result()
    with pytest.raises(UserError, match='00001-of-00005 is damaged, or has'):
      files.read(range(50))
  store.disturb('forbidden', 60)
  with pytest.raises(UserError, match='cannot be read .status 403'):
    files.read(range(50))


@pytest.mark.parametrize(
  ('name', 'data_dir', 'message'),
  [
    ('mnist', 'gs://no-such-bucket/data', 'no bucket gs://no-such-bucket'),
    ('digits', 'gs://forbidden-bucket/data', 'forbidden'),
    ('mnist', '{}', 'not prepared: looked for it in gs:'),
    ('{}/photos', None, 'pictures in a bucket cannot be read'),
    ('digits', 's3://a/b', 's3:// is not known'),
    ('s3://a/b', None, 's3:// is not known'),
  ],
)
def test_buckets_and_names_that_cannot_be_read_are_named(
  store, remote_folder, name, data_dir, message
):
  data_dir = data_dir and data_dir.format(remote_folder)
  with pytest.raises(UserError, match=message):
    dataset.load_builder(name.format(remote_folder), data_dir)


def test_array_records_in_a_bucket_are_refused(remote_folder, tmp_path):
  builder = make_dataset(
    'Arrays',
    tmp_path,
    {'label': tfds.features.ClassLabel(num_classes=2)},
    {'train': [{'label': 0}]},
    file_format='array_record',
  )
  copy(builder.data_path, remote_folder)
  remote = tfds.builder_from_directory(remote_folder)
  with pytest.raises(UserError, match='array_record in a bucket'):
    records.open_records(remote, 'train')


def test_digits_are_prepared_in_a_bucket_as_on_the_disk(
  remote_folder, tmp_path
):
  here, there = (
    records.open_records(dataset.load_builder('digits', place), 'train')
    for place in (str(tmp_path), remote_folder)
  )
  everything = range(len(here))
  assert there.read(everything) == here.read(everything)
