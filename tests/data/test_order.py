"""Tests that runs of earlier versions go on exactly as they would have."""

import zlib

import numpy as np

from nfnets.data import builders, dataset
from nfnets.data.order import EpochOrder

NUM_DIGITS = 1437


def test_the_order_of_the_digits_is_the_recorded_one():
  positions = np.arange(3 * NUM_DIGITS)
  epochs, indices = EpochOrder(NUM_DIGITS, seed=0)(positions)
  np.testing.assert_array_equal(epochs, positions // NUM_DIGITS)
  assert indices.reshape(3, -1)[:, :4].tolist() == [
    [1051, 998, 162, 670],
    [338, 1112, 261, 724],
    [300, 40, 613, 1107],
  ]
  assert zlib.crc32(indices.astype('<i8').tobytes()) == 2559217753


def test_what_happens_to_the_digits_is_the_recorded_thing(data_dir):
  digits = builders.load_builder('digits', data_dir)
  with dataset.train_batches(
    digits,
    'train_and_valid',
    image_size=16,
    global_batch_size=4,
    seed=3,
    first_step=10**6,
    augment_name='cutmix_mixup_0.4',
  ) as batches:
    batch = next(batches)
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
