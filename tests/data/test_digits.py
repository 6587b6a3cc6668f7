"""Tests of the digits dataset."""

import os

import numpy as np
import pytest
from sklearn import datasets

from nfnets.data import builders, dataset
from nfnets.data import digits as digits_lib
from nfnets.data.errors import DatasetError


@pytest.fixture(scope='module')
def digits(data_dir):
  return builders.load_builder('digits', data_dir)


def read(builder, split):
  examples = builder.as_dataset(split=split).as_numpy_iterator()
  examples = list(examples)
  images = np.stack([e['image'] for e in examples])
  return images, np.array([e['label'] for e in examples])


def test_digits_are_those_of_scikit_learn(digits):
  train, test = read(digits, 'train'), read(digits, 'test')
  assert train[0].shape == (1437, 8, 8, 1) and test[0].shape == (360, 8, 8, 1)
  assert train[0].dtype == np.uint8
  assert train[0].min() == 0 and train[0].max() == 255
  images = np.concatenate([train[0], test[0]])[..., 0]
  labels = np.concatenate([train[1], test[1]])
  original = datasets.load_digits()
  pack = lambda images, labels: sorted(  # noqa: E731
    (int(y), x.tobytes()) for x, y in zip(images, labels, strict=True)
  )
  grey = np.round(images / 255 * 16).astype(np.uint8)
  assert pack(grey, labels) == pack(
    original.images.astype(np.uint8), original.target
  )


def test_every_digit_is_in_both_splits(digits):
  for split in ('train', 'test'):
    counts = np.bincount(read(digits, split)[1], minlength=10)
    assert counts.min() > 0.05 * counts.sum()


def test_digits_have_ten_classes_and_our_splits(digits):
  assert builders.num_classes(digits) == 10
  assert builders.label_names(digits) == list('0123456789')
  sizes = [builders.num_examples(digits, s) for s in builders.SPLITS]
  assert sizes == [1294, 143, 1437, 360]


def test_digits_make_batches(digits):
  with dataset.train_batches(
      digits, 'train_and_valid', image_size=32, global_batch_size=64, seed=0,
      preprocessing='shift_3',
  ) as batches:  # fmt: skip
    batch = next(batches)
  assert batch['images'].shape == (64, 32, 32, 3)
  assert len(set(batch['labels'])) == 10


@pytest.mark.slow
def test_several_processes_may_prepare_digits_at_once(tmp_path, monkeypatch):
  rename, final = os.rename, str(tmp_path / 'digits' / '1.0.0')
  raced = []

  def rename_too_late(source, target):
    if str(target) == final and not raced:
      raced.append(os.listdir(tmp_path))
      digits_lib.prepare(str(tmp_path))  # Another process is faster.
    rename(source, target)

  monkeypatch.setattr(os, 'rename', rename_too_late)
  builder = builders.load_builder('digits', str(tmp_path))
  assert len(raced) == 1 and builder.info.dataset_size > 0
  assert os.listdir(tmp_path) == ['digits']
  assert os.listdir(tmp_path / 'digits') == ['1.0.0']


def test_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(DatasetError, match=f'{tmp_path}/file/digits.*TFDS_DATA'):
    builders.load_builder('digits', str(tmp_path / 'file'))
