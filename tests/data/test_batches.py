"""Tests of the order, the randomness and the layout of batches."""

import gc
import itertools
import os
import subprocess
import sys
import threading

from conftest import (
  NUM_TEST,
  NUM_TRAIN,
  assert_same,
  joined_processes,
  make_dataset,
)
import numpy as np
import pytest
import tensorflow_datasets as tfds

from nfnets.data import dataset

SETTINGS = {'image_size': 24, 'global_batch_size': 12}


def take(count, *args, **kwargs):
  with dataset.train_batches(*args, **(SETTINGS | kwargs)) as batches:
    return list(itertools.islice(batches, count))


def evaluate(builder, split='test', **kwargs):
  kwargs = SETTINGS | {'preprocessing': 'crop_resize'} | kwargs
  with dataset.eval_batches(builder, split, **kwargs) as batches:
    return list(batches)


def test_training_batches_have_the_documented_form(imagenet):
  (batch,) = take(1, imagenet, 'train', seed=0, image_size=(24, 32))
  assert batch.keys() == {'images', 'labels'}
  assert batch['images'].shape == (12, 24, 32, 3)
  assert batch['images'].dtype == np.float32
  assert 50 < batch['images'].mean() < 200  # 0-255, not normalized.
  assert batch['labels'].shape == (12,)
  assert batch['labels'].dtype == np.int32


def test_training_does_not_depend_on_the_number_of_processes(imagenet):
  whole = take(7, imagenet, 'train', seed=3)
  parts = [
    take(7, imagenet, 'train', seed=3, process_index=i, process_count=3)
    for i in range(3)
  ]
  assert_same(whole, joined_processes(parts))


def test_resuming_at_a_step_continues_bit_by_bit(imagenet):
  # 58 examples in batches of 12: steps 4, 9 and 14 straddle two epochs.
  whole = take(18, imagenet, 'train', seed=3)
  for step in (1, 5, 14):
    resumed = take(18 - step, imagenet, 'train', seed=3, first_step=step)
    assert_same(whole[step:], resumed)


def test_resuming_far_on_is_immediate(imagenet):
  far = take(2, imagenet, 'train', seed=3, first_step=10**9)
  assert_same(far[1:], take(1, imagenet, 'train', seed=3, first_step=10**9 + 1))


def test_each_epoch_holds_each_example_once(sharded):
  # Pixels identify the example. 50 examples, 10 batches of 15: three epochs.
  batches = take(
      10, sharded, 'train_and_valid', seed=1, global_batch_size=15,
      preprocessing='shift_0', image_size=8,
  )  # fmt: skip
  seen = np.concatenate([b['images'][:, 0, 0, 0] for b in batches])
  seen = np.round(seen).astype(int).reshape(3, 50)
  for epoch in seen:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
  assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
  labels = np.concatenate([b['labels'] for b in batches])
  np.testing.assert_array_equal(labels, seen.ravel() % 10)


def test_an_example_is_augmented_anew_for_every_epoch_and_seed(sharded):
  settings = {
    'global_batch_size': 45,
    'preprocessing': 'shift_3',
    'image_size': 32,
  }
  first, second = take(2, sharded, 'train', seed=1, **settings)
  (other,) = take(1, sharded, 'train', seed=2, **settings)
  # The pixel in the middle identifies the example.
  first, second, other = (
    batch['images'][batch['images'][:, 16, 16, 0].argsort()]
    for batch in (first, second, other)
  )
  assert np.mean((first != second).any((1, 2, 3))) > 0.9
  assert np.mean((first != other).any((1, 2, 3))) > 0.9


def test_the_seed_decides_on_everything(imagenet):
  one = take(3, imagenet, 'train', seed=3)
  assert_same(one, take(3, imagenet, 'train', seed=3))
  other = take(3, imagenet, 'train', seed=4)
  for a, b in zip(one, other, strict=True):
    assert np.abs(a['images'] - b['images']).mean() > 10


@pytest.mark.parametrize('batch_size', [1, 16, 37, 40])
def test_evaluation_sees_every_example_once_in_order(imagenet, batch_size):
  batches = evaluate(imagenet, global_batch_size=batch_size)
  assert len(batches) == -(-NUM_TEST // batch_size)
  mask = np.concatenate([b['mask'] for b in batches])
  np.testing.assert_array_equal(mask, np.arange(len(mask)) < NUM_TEST)
  labels = np.concatenate([b['labels'] for b in batches])
  expected = imagenet.as_dataset(split='validation').as_numpy_iterator()
  expected = [example['label'] for example in expected]
  np.testing.assert_array_equal(labels[mask > 0], expected)
  assert not np.concatenate([b['images'] for b in batches])[mask == 0].any()


def test_evaluation_does_not_depend_on_the_number_of_processes(imagenet):
  # The last global batch of 12 holds one example: most processes have none.
  whole = evaluate(imagenet)
  parts = [
    evaluate(imagenet, process_index=i, process_count=4) for i in range(4)
  ]
  assert {len(part) for part in parts} == {len(whole)}
  assert_same(whole, joined_processes(parts))


def test_valid_and_train_share_nothing_and_make_up_the_whole(sharded):
  def pixels(split):
    batches = evaluate(sharded, split, preprocessing='resize_crop_1')
    images = np.concatenate([b['images'] for b in batches])
    mask = np.concatenate([b['mask'] for b in batches]) > 0
    return list(images[mask][:, 0, 0, 0])

  assert pixels('valid') + pixels('train') == pixels('train_and_valid')
  assert len(pixels('valid')) == 5


def test_transposed_images_are_the_same_images(imagenet):
  plain = take(2, imagenet, 'train', seed=3)
  turned = take(2, imagenet, 'train', seed=3, transpose=True)
  plain += evaluate(imagenet)
  turned += evaluate(imagenet, transpose=True)
  for batch in turned:
    assert batch['images'].shape == (24, 24, 3, 12)
    batch['images'] = batch['images'].transpose(3, 0, 1, 2)
  assert_same(plain, turned)


def test_array_and_png_datasets_give_the_same_batches(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 255, (20, 9, 7, 1), np.uint8)
  examples = [{'photo': x, 'kind': i % 3} for i, x in enumerate(pixels)]
  label = tfds.features.ClassLabel(num_classes=3)
  images = {
    'Stored': tfds.features.Tensor(shape=(9, 7, 1), dtype=np.uint8),
    'Encoded': tfds.features.Image(shape=(9, 7, 1)),
  }
  results = []
  for name, image in images.items():
    builder = make_dataset(
      name,
      tmp_path,
      {'photo': image, 'kind': label},
      {'train': examples},
      supervised_keys=('photo', 'kind'),
    )
    results.append(
      take(2, builder, 'train', seed=1)
      + evaluate(builder, 'train', preprocessing='resize_crop_1')
    )
  assert_same(*results)


def test_fake_batches_look_like_real_ones(imagenet):
  real = take(1, imagenet, 'train', seed=0)[0]
  real_eval = evaluate(imagenet)[0]
  kwargs = SETTINGS | {'num_classes': 1000}
  fake = next(dataset.fake_batches(**kwargs))
  fakes = list(dataset.fake_batches(num_batches=2, **kwargs))
  assert len(fakes) == 2
  for ours, theirs in ((fake, real), (fakes[0], real_eval)):
    describe = lambda x: {k: (v.shape, v.dtype) for k, v in x.items()}  # noqa: E731
    assert describe(ours) == describe(theirs)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'process_count': 5}, 'multiple of the number of processes, 5'),
    ({'process_index': 1}, 'no process 1 of 1'),
    ({'seed': -1}, r'seed has to be in \[0, 2\*\*31\)'),
    ({'first_step': -1}, 'first step has to be 0 or more'),
    ({'image_size': 0}, 'image size has to be'),
    ({'preprocessing': 'resize_crop_32'}, 'Unknown training preprocessing'),
    ({'augment_name': 'mixpu'}, "did you mean 'mixup'"),
    (
      {'augment_name': 'randaugment_405', 'augment_kwargs': {'grey': 1}},
      'no augment_kwargs grey',
    ),
  ],
)
def test_bad_arguments_are_refused(imagenet, kwargs, message):
  with pytest.raises(ValueError, match=message):
    take(1, imagenet, 'train', **({'seed': 0} | kwargs))


def test_an_image_that_is_damaged_is_named(tmp_path):
  good = [{'image': np.zeros((9, 9, 3), np.uint8), 'label': 0}] * 20
  bad = tmp_path / 'bad.jpg'
  bad.write_bytes(b'\xff\xd8\xff\xe0 this is no JPEG')
  examples = [*good, {'image': str(bad), 'label': 0}]
  builder = make_dataset(
    'Damaged',
    tmp_path,
    {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(num_classes=2),
    },
    {'train': examples},
  )
  with pytest.raises(dataset.DatasetError) as error:
    take(2, builder, 'train', seed=0)
  assert 'the record at byte' in str(error.value)
  assert 'damaged-train.tfrecord-00000' in str(error.value)
  assert 'skip_corrupt=True leaves such images out' in str(error.value)
  assert '{{' not in str(error.value)


@pytest.mark.slow
def test_a_program_that_stops_in_the_middle_ends_quietly(imagenet, data_dir):
  code = (
    'from nfnets.data import dataset\n'
    f'b = dataset.load_builder("imagenet2012", {data_dir!r})\n'
    'x = dataset.train_batches(b, "train", image_size=64,'
    ' global_batch_size=8, seed=0)\n'
    'next(x)\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (result.returncode, result.stderr) == (0, '')


def test_a_closed_iterator_is_at_its_end(imagenet):
  batches = dataset.train_batches(imagenet, 'train', seed=0, **SETTINGS)
  next(batches)
  batches.close()
  assert list(batches) == []
  assert NUM_TRAIN == dataset.num_examples(imagenet, 'train_and_valid')


def test_a_shard_that_breaks_while_training_is_named(sharded, capfd):
  shard = str(sharded.info.splits['train'].filepaths[3])
  with dataset.train_batches(sharded, 'train', seed=0, **SETTINGS) as batches:
    with open(shard, 'r+b') as file:
      file.write(b'\xff' * 8)
    with pytest.raises(dataset.DatasetError, match=f'{shard} is damaged'):
      list(itertools.islice(batches, 10))
  with pytest.raises(dataset.DatasetError, match=f'{shard} is damaged'):
    evaluate(sharded, 'train')
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
  batches = dataset.train_batches(imagenet, 'train', seed=0, **SETTINGS)
  next(batches)
  assert resources() > before
  del batches
  assert resources() == before
