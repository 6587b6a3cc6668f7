"""Tests of batches that hold each example several times."""

import collections
import itertools

from conftest import assert_same, joined_processes, make_dataset
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import dataset, preprocess

COPIES = 3
SETTINGS = {'image_size': (24, 20), 'global_batch_size': 6, 'seed': 3}
MIXING = {'augment_name': 'cutmix_mixup_0.4_randaugment_205'}


def take(count, builder, copies=COPIES, **kwargs):
  kwargs = SETTINGS | {'augmentation_multiplicity': copies} | kwargs
  with dataset.train_batches(builder, 'train', **kwargs) as batches:
    return list(itertools.islice(batches, count))


@pytest.fixture(scope='module')
def png(tmp_path_factory):
  """Noise, of which any two crops differ, as files that lose nothing."""
  pixels = np.random.default_rng(0).integers(0, 255, (20, 40, 35, 3), np.uint8)
  return make_dataset(
    'Noise',
    tmp_path_factory.mktemp('tfds'),
    {
      'image': tfds.features.Image(shape=(40, 35, 3), encoding_format='png'),
      'label': tfds.features.ClassLabel(num_classes=20),
    },
    {'train': [{'image': x, 'label': i} for i, x in enumerate(pixels)]},
    supervised_keys=('image', 'label'),
  )


@pytest.mark.parametrize('settings', [{}, MIXING], ids=['plain', 'mixing'])
def test_the_first_copy_is_what_an_example_becomes_alone(png, settings):
  alone = take(4, png, copies=1, **settings)
  batches = take(4, png, **settings)
  assert_same([{k: x[::COPIES] for k, x in b.items()} for b in batches], alone)


def test_every_copy_of_an_example_is_another_image(png):
  (batch,) = take(1, png)
  labels = batch['labels'].reshape(-1, COPIES)
  assert (labels == labels[:, :1]).all()
  assert len(set(labels[:, 0])) == 6
  assert len({image.tobytes() for image in batch['images']}) == 6 * COPIES


def test_every_copy_is_mixed_in_its_own_way_from_the_same_two(png):
  (batch,) = take(1, png, **MIXING)
  pairs = np.stack([batch['labels'], batch['mix_labels']]).reshape(2, 6, COPIES)
  assert (pairs == pairs[..., :1]).all()
  assert len(set(batch['ratio'])) == 6 * COPIES
  # The share of a box of CutMix is a number of pixels.
  pixels = batch['ratio'].reshape(6, COPIES) * 24 * 20
  is_mixup = np.abs(pixels - np.round(pixels)) > 1e-3
  assert (is_mixup == (np.indices((6, COPIES)).sum(0) % 2 == 0)).all()


def test_processes_and_resuming_change_nothing(imagenet):
  whole = take(5, imagenet, **MIXING)
  parts = [
    take(5, imagenet, process_index=i, process_count=2, **MIXING)
    for i in range(2)
  ]
  assert_same(whole, joined_processes(parts))
  assert_same(whole[3:], take(2, imagenet, first_step=3, **MIXING))


def test_an_example_is_decoded_once(imagenet, monkeypatch):
  calls = collections.Counter()

  def count(module, name):
    function = getattr(module, name)

    def counted(*args, **kwargs):
      def add():
        calls[name] += 1
        return np.int64(0)

      with tf.control_dependencies([tf.numpy_function(add, [], tf.int64)]):
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)

  count(tf.io, 'decode_and_crop_jpeg')
  count(preprocess, 'random_window')
  take(2, imagenet)
  # Not exactly three times as many: some are read ahead, and not yet cropped.
  assert calls['random_window'] > 2 * calls['decode_and_crop_jpeg'] > 20


def test_a_jpeg_that_is_decoded_whole_gives_nearly_the_same_crops(imagenet):
  alone, whole = take(1, imagenet, copies=1)[0], take(1, imagenet)[0]
  difference = np.abs(whole['images'][::COPIES] - alone['images'])
  # Only at the borders of crops, where colours have half the resolution.
  assert difference.mean() < 0.5


@pytest.mark.parametrize('value', [0, -1, 1.5])
def test_wrong_multiplicities_are_refused(png, value):
  with pytest.raises(ValueError, match='augmentation_multiplicity has to be'):
    take(1, png, copies=value)
