"""Tests of leaving out images that cannot be decoded."""

import functools
import itertools

from conftest import assert_same, joined_processes, make_dataset
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tiny_imagenet

from nfnets.data import dataset, recovery

NUM = 26
# By label. What is missing of the truncated ones is in some crops only.
GARBAGE, TRUNCATED = (4, 11, 12), (7, 20)
SETTINGS = {'image_size': 16, 'global_batch_size': 6, 'seed': 1}
STEPS = 13  # 3 epochs.


def make(tmp_path, name, garbage, truncated):
  """Makes a dataset of JPEGs, each with a label of its own."""
  examples = []
  for label in range(NUM):
    content = tiny_imagenet.make_jpeg(label, (150, 120, 3))
    if label in garbage:
      content = b'\xff\xd8\xff\xe0 this is no JPEG'
    if label in truncated:
      content = content[: len(content) * 3 // 4]
    path = tmp_path / f'{name}{label}.jpg'
    path.write_bytes(content)
    examples.append({'image': str(path), 'label': label})
  features = {
    'image': tfds.features.Image(),
    'label': tfds.features.ClassLabel(num_classes=NUM),
  }
  return make_dataset(name, tmp_path, features, {'train': examples})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return make(tmp_path_factory.mktemp('whole'), 'Whole', (), ())


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
  path = tmp_path_factory.mktemp('damaged')
  return make(path, 'Damaged', GARBAGE, TRUNCATED)


def labels_in_order(builder):
  """The labels as TFDS stores them; that is the order of the examples."""
  paths = [str(path) for path in builder.info.splits['train'].filepaths]
  labels = []
  for record in tf.data.TFRecordDataset(paths).as_numpy_iterator():
    example = tf.train.Example.FromString(record)
    labels += example.features.feature['label'].int64_list.value
  return labels


def take(builder, count=STEPS, **kwargs):
  kwargs = SETTINGS | {'skip_corrupt': True} | kwargs
  with dataset.train_batches(builder, 'train_and_valid', **kwargs) as batches:
    return list(itertools.islice(batches, count))


def joined(batches, key):
  return np.concatenate([batch[key] for batch in batches])


@pytest.fixture(scope='module')
def straight(damaged):
  """The batches of a run from its start, by augment_name."""
  return functools.cache(lambda name: take(damaged, augment_name=name))


def test_the_next_image_stands_in_for_an_unreadable_one(
  whole, damaged, straight
):
  order = labels_in_order(whole)
  assert order == labels_in_order(damaged)
  outcomes = set()
  for batch, expected in zip(straight(''), take(whole), strict=True):
    for row, (label, own) in enumerate(
      zip(batch['labels'], expected['labels'], strict=True)
    ):
      if own in TRUNCATED:
        outcomes.add(label == own)
      if label != own:
        assert own in GARBAGE + TRUNCATED
        index = order.index(own) + 1
        following = order[index:] + order[:index]
        skipped = itertools.takewhile(lambda x: x != label, following)  # noqa: B023
        assert set(skipped) <= set(GARBAGE + TRUNCATED)
      assert label not in GARBAGE
      if own not in GARBAGE + TRUNCATED:
        np.testing.assert_array_equal(
          batch['images'][row], expected['images'][row]
        )
  # A truncated image is readable in some crops: so the other tests are harder.
  assert outcomes == {True, False}


@pytest.mark.parametrize(
  ('augment_name', 'step'), [('', 4), ('', 8), ('cutmix', 5)]
)
@pytest.mark.slow
def test_a_run_that_is_resumed_leaves_out_the_same(
  damaged, straight, augment_name, step
):
  resumed = take(
    damaged, STEPS - step, first_step=step, augment_name=augment_name
  )
  assert_same(straight(augment_name)[step:], resumed)


@pytest.mark.slow
def test_two_processes_leave_out_what_one_does(damaged, straight):
  parts = [
    take(damaged, process_index=i, process_count=2, augment_name='cutmix')
    for i in range(2)
  ]
  assert_same(straight('cutmix'), joined_processes(parts))


def test_what_is_left_out_is_told_once_and_counted(damaged, monkeypatch):
  warnings = []
  monkeypatch.setattr(
    recovery.logging,
    'warning',
    lambda text, *args: warnings.append(text % args),
  )
  kwargs = SETTINGS | {'skip_corrupt': True}
  with dataset.train_batches(damaged, 'train_and_valid', **kwargs) as batches:
    list(itertools.islice(batches, 16))  # So many find all of them.
    assert batches.num_skipped == len(GARBAGE + TRUNCATED)
  assert len(set(warnings)) == len(warnings) == len(GARBAGE + TRUNCATED)
  for warning in warnings:
    assert "damaged/1.0.0, split 'train_and_valid'" in warning
    assert 'the record at byte' in warning
    assert 'Invalid JPEG data' in warning


@pytest.mark.slow
def test_evaluation_masks_what_it_leaves_out(whole, damaged):
  kwargs = {
    'image_size': 16,
    'global_batch_size': 6,
    'preprocessing': 'resize_crop_1',
    'process_count': 2,
  }
  results = []
  for builder, skip_corrupt in ((whole, False), (damaged, True)):
    parts = []
    for index in range(2):
      with dataset.eval_batches(
        builder,
        'train_and_valid',
        process_index=index,
        skip_corrupt=skip_corrupt,
        **kwargs,
      ) as batches:
        parts.append(list(batches))
    assert {len(part) for part in parts} == {-(-NUM // 6)}
    keys = ('images', 'labels', 'mask')
    results.append({k: np.stack([joined(p, k) for p in parts]) for k in keys})
  want, got = results
  bad = np.isin(want['labels'], GARBAGE + TRUNCATED) & (want['mask'] > 0)
  assert bad.sum() == len(GARBAGE + TRUNCATED)
  np.testing.assert_array_equal(got['mask'], np.where(bad, 0, want['mask']))
  for key in ('images', 'labels'):
    np.testing.assert_array_equal(got[key][~bad], want[key][~bad])


def test_by_default_an_unreadable_image_is_an_error(damaged):
  with pytest.raises(dataset.DatasetError) as error:
    take(damaged, skip_corrupt=False)
  for part in (
    "damaged/1.0.0, split 'train_and_valid': the record at byte",
    'does not hold a readable image',
    'skip_corrupt=True leaves such images out and counts them',
  ):
    assert part in str(error.value)
  assert '{{' not in str(error.value)


@pytest.mark.parametrize('good', [0, 1])
def test_too_many_unreadable_images_are_an_error(tmp_path, good):
  builder = make(tmp_path, 'Ruined', range(good, NUM), ())
  with pytest.raises(dataset.DatasetError, match='too many to leave out'):
    take(builder)


def test_an_only_image_that_is_unreadable_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setitem(globals(), 'NUM', 1)
  builder = make(tmp_path, 'Only', [0], ())
  with pytest.raises(dataset.DatasetError, match='1 of 1 images are unreadab'):
    take(builder, global_batch_size=1)
