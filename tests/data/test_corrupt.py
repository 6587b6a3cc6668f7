"""Tests of leaving out images that cannot be decoded."""

import functools
import itertools

import conftest
from conftest import assert_same, evaluate, make_dataset, take_in_parts
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tiny_imagenet

from nfnets import messages
from nfnets.data import augmentation, dataset
from nfnets.errors import UserError

NUM = 26
# By label. What is missing of the truncated ones is in some crops only.
GARBAGE, TRUNCATED = (4, 11, 12), (7, 20)
SETTINGS = {
  'image_size': 16,
  'batch_size': 6,
  'seed': 1,
  'skip_corrupt': True,
}
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
  examples = builder.as_dataset(split='train').as_numpy_iterator()
  return [example['label'] for example in examples]


def take(builder, count=STEPS, **kwargs):
  return conftest.take(count, builder, 'train_and_valid', **SETTINGS | kwargs)


@pytest.fixture(scope='module')
def straight(damaged):
  """The batches of a run from its start, by augment_name."""
  return functools.cache(lambda name: take(damaged, augment_name=name))


def test_the_next_image_stands_in_for_an_unreadable_one(
  whole, damaged, straight
):
  order = labels_in_order(whole)
  bad = GARBAGE + TRUNCATED
  outcomes = set()
  for batch, expected in zip(straight(''), take(whole), strict=True):
    rows = zip(*(batch[k] for k in ('labels', 'images')), strict=True)
    owns = zip(*(expected[k] for k in ('labels', 'images')), strict=True)
    for (label, image), (own, own_image) in zip(rows, owns, strict=True):
      if own in TRUNCATED:
        outcomes.add(label == own)
      if label != own:  # It and all up to the next that is read are bad.
        first = order.index(own)
        following = order[first:] + order[:first]
        assert set(following[: following.index(label)]) <= set(bad)
      assert label not in GARBAGE
      if own not in bad:
        np.testing.assert_array_equal(image, own_image)
  # A truncated image is readable in some crops: so the other tests are harder.
  assert outcomes == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'step'), [('', 4), ('', 8), ('cutmix', 5), ('cutmix', 0)]
)
def test_neither_resuming_nor_processes_change_what_is_left_out(
  damaged, straight, name, step
):
  kwargs = SETTINGS | {'augment_name': name}
  if step:
    found = take(damaged, STEPS - step, first_step=step, **kwargs)
  else:
    found = take_in_parts(STEPS, damaged, 'train_and_valid', 2, **kwargs)
  assert_same(straight(name)[step:], found)


def test_what_is_left_out_is_told_once_and_counted(damaged, caplog):
  options = dataset.Options(**SETTINGS)
  with dataset.train_batches(damaged, 'train_and_valid', options) as batches:
    list(itertools.islice(batches, 16))  # So many find all of them.
    assert batches.num_skipped == len(GARBAGE + TRUNCATED)
  assert len(set(caplog.messages)) == len(caplog.messages) == 5
  for warning in caplog.messages:
    assert "damaged/1.0.0, split 'train_and_valid'" in warning
    assert 'the record at byte' in warning and 'Invalid JPEG data' in warning


@pytest.mark.slow
def test_evaluation_masks_what_it_leaves_out(whole, damaged):
  def read(builder, key):
    parts = [
      evaluate(
        builder,
        'train_and_valid',
        preprocessing='resize_crop_1',
        process_index=index,
        process_count=2,
        **SETTINGS,
      )
      for index in range(2)
    ]
    batches = conftest.joined_processes(parts)
    return np.concatenate([batch[key] for batch in batches])

  mask, labels = read(whole, 'mask'), read(whole, 'labels')
  bad = np.isin(labels, GARBAGE + TRUNCATED) & (mask > 0)
  assert bad.sum() == len(GARBAGE + TRUNCATED)
  np.testing.assert_array_equal(read(damaged, 'mask'), np.where(bad, 0, mask))
  for key in ('images', 'labels'):
    np.testing.assert_array_equal(
      read(damaged, key)[~bad], read(whole, key)[~bad]
    )


def test_by_default_an_unreadable_image_is_an_error(damaged):
  with pytest.raises(UserError) as error:
    take(damaged, skip_corrupt=False)
  for part in (
    "damaged/1.0.0, split 'train_and_valid': the record at byte",
    'does not hold a readable image',
    '--skip_corrupt leaves such images out and counts them',
  ):
    assert part in str(error.value)
  assert '{{' not in str(error.value)


@pytest.mark.parametrize(
  ('garbage', 'message'),
  [(range(NUM), 'too many'), (range(1, NUM), 'too many'), ([0], '1 of 1 imag')],
)
def test_too_many_unreadable_images_are_an_error(
  tmp_path, monkeypatch, garbage, message
):
  if len(garbage) == 1:
    monkeypatch.setitem(globals(), 'NUM', 1)
  builder = make(tmp_path, 'Ruined', garbage, ())
  with pytest.raises(UserError, match=message):
    take(builder, batch_size=1)


def test_an_error_that_is_not_about_an_example_ends_at_once(whole, monkeypatch):
  def fail(image, *args):
    with tf.control_dependencies([tf.Assert(args[2][0] < 0, ['odd'])]):
      return tf.identity(image), tf.constant(0.5)

  monkeypatch.setattr(augmentation, 'mix', fail)
  with pytest.raises(UserError, match="split 'train_and_valid': odd"):
    take(whole, augment_name='cutmix')


def test_reasons_are_named_as_they_are():
  reason = 'pip install ".[heic]" or it\'s left out'

  @tf.function
  def fail(is_good):
    tf.Assert(is_good, [reason])

  with pytest.raises(tf.errors.OpError) as caught:
    fail(tf.constant(False))
  assert messages.one_line(caught.value) == reason
