"""Tests of the order, the randomness and the layout of batches."""

import collections
import gc
import itertools
import os
import subprocess
import sys
import threading
import zlib

import conftest
from conftest import (
  NUM_TEST,
  assert_same,
  evaluate,
  make_dataset,
  take,
  take_in_parts,
)
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import autoaugment, dataset, preprocess
from nfnets.data.batches import EpochOrder
from nfnets.errors import UserError

OPTIONS = dataset.Options(24, 12)
NUM_DIGITS = 1437
MIXING = {'augment_name': 'cutmix_mixup_0.4'}
COPIES = 3


def joined(batches, key):
  return np.concatenate([batch[key] for batch in batches])


# Runs of earlier versions go on exactly as they would have.


def test_the_order_of_the_digits_is_the_recorded_one():
  positions = np.arange(3 * NUM_DIGITS)
  epochs, indices = EpochOrder(NUM_DIGITS, seed=0)(positions)
  np.testing.assert_array_equal(epochs, positions // NUM_DIGITS)
  assert indices[:4].tolist() == [1051, 998, 162, 670]
  assert zlib.crc32(indices.astype('<i8').tobytes()) == 2559217753


def test_what_happens_to_the_digits_is_the_recorded_thing(data_dir):
  digits = dataset.load_builder('digits', data_dir)
  [batch] = take(
    *(1, digits, 'train_and_valid', 10**6),
    image_size=16,
    batch_size=4,
    seed=3,
    augment_name='cutmix_mixup_0.4',
  )
  assert batch['labels'].tolist() == [1, 4, 2, 8]
  assert batch['mix_labels'].tolist() == [8, 8, 5, 9]
  np.testing.assert_allclose(
    batch['ratio'], [0.008528, 0.753906, 0.505006, 0.238281], atol=1e-5
  )
  np.testing.assert_allclose(
    batch['images'].mean((1, 2, 3)),
    [107.88998, 128.75528, 135.52337, 145.75963],
    atol=1e-3,
  )


def test_training_batches_have_the_documented_form(imagenet):
  (batch,) = take(1, imagenet, 'train', seed=0, image_size=(24, 32))
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'images': ((12, 24, 32, 3), np.float32),
    'labels': ((12,), np.int32),
  }
  assert 50 < batch['images'].mean() < 200  # 0-255, not normalized.


@pytest.mark.parametrize(
  'settings',
  [
    {},
    MIXING | {'augmentation_multiplicity': COPIES, 'batch_size': 9},
  ],
  ids=['plain', 'mixed copies'],
)
def test_neither_processes_nor_resuming_change_a_pixel(imagenet, settings):
  # 58 examples in batches of 12: steps 4, 9 and 14 straddle two epochs.
  whole = take(15, imagenet, 'train', seed=3, **settings)
  parts = take_in_parts(15, imagenet, 'train', 3, seed=3, **settings)
  assert_same(whole, parts)
  for step in (5, 14):
    resumed = take(15 - step, imagenet, 'train', step, seed=3, **settings)
    assert_same(whole[step:], resumed)


def test_resuming_far_on_is_immediate(imagenet):
  far = take(2, imagenet, 'train', seed=3, first_step=10**9)
  assert_same(far[1:], take(1, imagenet, 'train', seed=3, first_step=10**9 + 1))


def test_each_epoch_holds_each_example_once(sharded):
  # Pixels identify the example. 50 examples, 10 batches of 15: three epochs.
  settings = {'batch_size': 15, 'preprocessing': 'shift_0', 'image_size': 8}
  batches = take(10, sharded, 'train_and_valid', seed=1, **settings)
  seen = joined(batches, 'images')[:, 0, 0, 0]
  seen = np.round(seen).astype(int).reshape(3, 50)
  np.testing.assert_array_equal(np.sort(seen), [np.arange(50)] * 3)
  assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
  np.testing.assert_array_equal(joined(batches, 'labels'), seen.ravel() % 10)


def test_an_example_is_augmented_anew_for_every_epoch_and_seed(sharded):
  settings = {'batch_size': 45, 'preprocessing': 'shift_3', 'image_size': 32}
  batches = take(2, sharded, 'train', seed=1, **settings)
  batches += take(1, sharded, 'train', seed=2, **settings)
  # The pixel in the middle identifies the example.
  first, *others = (
    batch['images'][batch['images'][:, 16, 16, 0].argsort()]
    for batch in batches
  )
  for other in others:
    assert np.mean((first != other).any((1, 2, 3))) > 0.9


@pytest.mark.parametrize('batch_size', [1, 16, 40])
def test_evaluation_sees_every_example_once_in_order(imagenet, batch_size):
  batches = evaluate(imagenet, batch_size=batch_size)
  assert len(batches) == -(-NUM_TEST // batch_size)
  mask = joined(batches, 'mask')
  np.testing.assert_array_equal(mask, np.arange(len(mask)) < NUM_TEST)
  expected = imagenet.as_dataset(split='validation').as_numpy_iterator()
  expected = [example['label'] for example in expected]
  np.testing.assert_array_equal(joined(batches, 'labels')[mask > 0], expected)
  assert not joined(batches, 'images')[mask == 0].any()


def test_evaluation_of_some_examples_sees_these(sharded):
  options = dataset.Options(8, 4, preprocessing='resize_crop_1')
  with dataset.eval_batches(sharded, 'train', options) as batches:
    whole = joined(batches, 'images')  # Its pixels identify an example.
  chosen = np.array([3, 17, 18, 40, 44])
  with dataset.eval_batches(sharded, 'train', options, chosen) as batches:
    batches = list(batches)
  seen = joined(batches, 'images')[joined(batches, 'mask') > 0]
  np.testing.assert_array_equal(seen, whole[chosen])


def test_evaluation_does_not_depend_on_the_number_of_processes(imagenet):
  # The last global batch of 12 holds one example: most processes have none.
  parts = [
    evaluate(imagenet, process_index=i, process_count=4) for i in range(4)
  ]
  assert_same(evaluate(imagenet), conftest.joined_processes(parts))


def test_valid_and_train_share_nothing_and_make_up_the_whole(sharded):
  def pixels(split):
    batches = evaluate(sharded, split, preprocessing='resize_crop_1')
    images = joined(batches, 'images')[joined(batches, 'mask') > 0]
    return list(images[:, 0, 0, 0])

  assert pixels('valid') + pixels('train') == pixels('train_and_valid')
  assert len(pixels('valid')) == 5


def test_transposed_images_are_the_same_images(imagenet):
  plain, turned = (
    take(2, imagenet, 'train', seed=3, transpose=transpose)
    + evaluate(imagenet, transpose=transpose)
    for transpose in (False, True)
  )
  for batch in turned:
    batch['images'] = batch['images'].transpose(3, 0, 1, 2)
  assert_same(plain, turned)


def test_array_and_png_datasets_give_the_same_batches(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 255, (20, 9, 7, 1), np.uint8)
  examples = [{'photo': x, 'kind': i % 3} for i, x in enumerate(pixels)]
  images = {
    'Stored': tfds.features.Tensor(shape=(9, 7, 1), dtype=np.uint8),
    'Encoded': tfds.features.Image(shape=(9, 7, 1)),
  }
  results = []
  for name, image in images.items():
    features = {'photo': image, 'kind': tfds.features.ClassLabel(num_classes=3)}
    builder = make_dataset(
      *(name, tmp_path, features, {'train': examples}),
      supervised_keys=('photo', 'kind'),
    )
    results.append(
      take(2, builder, 'train', seed=1)
      + evaluate(builder, 'train', preprocessing='resize_crop_1')
    )
  assert_same(*results)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'process_count': 5}, 'multiple of the number of processes, 5'),
    ({'process_index': 1}, 'no process 1 of 1'),
    ({'seed': -1}, r'seed has to be in \[0, 2\*\*31\)'),
    ({'first_step': -1}, 'first step has to be 0 or more'),
    ({'image_size': 0}, 'image size has to be'),
    ({'augmentation_multiplicity': 0}, 'augmentation_multiplicity has to be'),
    ({'augmentation_multiplicity': 1.5}, 'augmentation_multiplicity has to be'),
    ({'preprocessing': 'resize_crop_32'}, 'Unknown training preprocessing'),
    ({'augment_name': 'mixpu'}, "did you mean 'mixup'"),
    (
      {'augment_name': 'randaugment_405', 'augment_kwargs': {'grey': 1}},
      'no augment_kwargs grey; there are wrap_solarize, constant_grey',
    ),
  ],
)
def test_bad_arguments_are_refused(imagenet, kwargs, message):
  with pytest.raises(ValueError, match=message):
    take(1, imagenet, 'train', **kwargs)


@pytest.mark.slow
def test_a_program_that_stops_in_the_middle_ends_quietly(imagenet, data_dir):
  code = (
    'import jax\n'  # Which wants TensorFlow to log warnings.
    'from nfnets.data import dataset\n'
    f'b = dataset.load_builder("imagenet2012", {data_dir!r})\n'
    'x = dataset.train_batches(b, "train", dataset.Options(64, 8))\n'
    'next(x)\n'
  )
  environment = dict(os.environ)
  environment.pop('TF_CPP_MIN_LOG_LEVEL', None)
  result = subprocess.run(
    [sys.executable, '-c', code],
    env=environment | {'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (result.returncode, result.stderr) == (0, '')


def test_a_closed_iterator_is_at_its_end(imagenet):
  batches = dataset.train_batches(imagenet, 'train', OPTIONS)
  next(batches)
  batches.close()
  assert list(batches) == []


def test_a_shard_that_breaks_while_training_is_named(sharded, capfd):
  shard = str(sharded.info.splits['train'].filepaths[3])
  with dataset.train_batches(sharded, 'train', OPTIONS) as batches:
    with open(shard, 'r+b') as file:
      file.write(b'\xff' * 8)
    with pytest.raises(UserError, match=f'{shard} is damaged'):
      list(itertools.islice(batches, 10))
  assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.slow
def test_an_iterator_that_is_dropped_gives_its_threads_and_files_back(imagenet):
  def resources():
    gc.collect()
    threads = [t for t in threading.enumerate() if 'records' in t.name]
    links = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]
    files = [os.readlink(x) for x in links if os.path.exists(x)]
    return len(threads), sum('imagenet2012-train' in file for file in files)

  before = resources()
  batches = dataset.train_batches(imagenet, 'train', OPTIONS)
  next(batches)
  assert resources() > before
  del batches
  assert resources() == before


# Batches that hold each example several times.


@pytest.fixture(scope='module')
def noise(tmp_path_factory):
  """Noise, of which any two crops differ, as files that lose nothing."""
  pixels = np.random.default_rng(0).integers(0, 255, (20, 40, 35, 3), np.uint8)
  features = {
    'image': tfds.features.Image(shape=(40, 35, 3), encoding_format='png'),
    'label': tfds.features.ClassLabel(num_classes=20),
  }
  examples = [{'image': x, 'label': i} for i, x in enumerate(pixels)]
  folder = tmp_path_factory.mktemp('tfds')
  return make_dataset('Noise', folder, features, {'train': examples})


def take_copies(count, builder, copies=COPIES, **kwargs):
  kwargs |= {'image_size': (24, 20), 'batch_size': 6, 'seed': 3}
  kwargs |= {'augmentation_multiplicity': copies}
  return take(count, builder, 'train', **kwargs)


@pytest.mark.parametrize('name', ['', 'cutmix_mixup_0.4_randaugment_205'])
def test_the_first_copy_is_what_an_example_becomes_alone(
  noise, name, monkeypatch
):
  def shift(image, seed, *_, wrap_solarize=True):
    return image + tf.cast(seed[0] % 256, tf.uint8)

  monkeypatch.setattr(autoaugment, 'rand_augment', shift)
  settings = {'augment_name': name}
  alone = take_copies(4, noise, copies=1, **settings)
  batches = take_copies(4, noise, **settings)
  assert_same([{k: x[::COPIES] for k, x in b.items()} for b in batches], alone)
  assert len({x.tobytes() for x in batches[0]['images']}) == 6 * COPIES


def test_every_copy_is_mixed_in_its_own_way_from_the_same_two(noise):
  (batch,) = take_copies(1, noise, **MIXING)
  pairs = np.stack([batch['labels'], batch['mix_labels']]).reshape(2, 6, COPIES)
  assert (pairs == pairs[..., :1]).all()
  assert len(set(batch['ratio'])) == 6 * COPIES
  # The share of a box of CutMix is a number of pixels.
  pixels = batch['ratio'].reshape(6, COPIES) * 24 * 20
  is_mixup = np.abs(pixels - np.round(pixels)) > 1e-3
  assert (is_mixup == (np.indices((6, COPIES)).sum(0) % 2 == 0)).all()


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
  take_copies(2, imagenet)
  # Not exactly three times as many: some are read ahead, and not yet cropped.
  assert calls['random_window'] > 2 * calls['decode_and_crop_jpeg'] > 20


def test_a_jpeg_that_is_decoded_whole_gives_nearly_the_same_crops(imagenet):
  [alone], [whole] = (
    take_copies(1, imagenet, copies=1),
    take_copies(1, imagenet),
  )
  difference = np.abs(whole['images'][::COPIES] - alone['images'])
  # Only at the borders of crops, where colours have half the resolution.
  assert difference.mean() < 0.5
