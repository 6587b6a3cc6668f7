"""Labels of datasets, weights of classes, and an order that balances them."""

import zlib

from conftest import assert_same, take, take_in_parts
import numpy as np
import pytest
from sklearn.utils import class_weight

from nfnets.data import builders, class_balance, dataset

# Of the classes 0, 1, 2 and 4: 206, 65, 19 and 10.
LABELS = np.random.default_rng(0).choice(5, 300, p=[0.7, 0.2, 0.07, 0, 0.03])
CLASSES = {0, 1, 2, 4}


def order(seed=7):
  return class_balance.BalancedOrder(LABELS, seed)


def test_every_round_has_each_class_once():
  labels = LABELS[order()(np.arange(1200))[1]].reshape(300, 4)
  assert all({*row} == CLASSES for row in labels)
  assert len(np.unique(labels, axis=0)) == 24  # All orders of four.


@pytest.mark.parametrize('label', CLASSES)
def test_no_example_comes_again_before_all_of_its_class_have(label):
  examples = np.flatnonzero(LABELS == label)
  passes, indices = order()(np.arange(4 * 3 * len(examples)))
  chosen = LABELS[indices] == label
  each = indices[chosen].reshape(3, -1)
  np.testing.assert_array_equal(np.sort(each), [examples] * 3)
  np.testing.assert_array_equal(
    passes[chosen], np.repeat(np.arange(3), len(examples))
  )
  assert (each[0] != each[1]).any() and (each[1] != each[2]).any()
  assert (each[0] != examples).any()


def test_what_is_at_a_position_follows_from_the_seed_and_it_alone():
  whole = np.array(order()(np.arange(1200)))
  far = np.random.default_rng(1).permutation(1200)
  one_by_one = order()
  found = [one_by_one(far[i : i + 1]) for i in range(1200)]
  np.testing.assert_array_equal(np.concatenate(found, axis=1), whole[:, far])
  assert (order(8)(np.arange(1200))[1] != whole[1]).mean() > 0.9
  # Runs of earlier versions go on exactly as they would have.
  assert whole[1, :4].tolist() == [237, 279, 218, 66]
  assert zlib.crc32(whole[1].astype('<i8').tobytes()) == 430187458


def test_batches_have_each_class_equally_often(make_folder):
  paths = [f'train/{name}/{i}.png' for name in 'abc' for i in range(3)]
  paths += [f'train/d/{i}.png' for i in range(31)]
  folder = make_folder(*paths, *(f'test/{name}/0.png' for name in 'abcd'))
  builder = dataset.load_builder(str(folder))
  settings = {'batch_size': 8, 'balance_classes': True, 'image_size': 8}
  batches = take(6, builder, 'train_and_valid', **settings)
  for batch in batches:
    assert np.bincount(batch['labels']).tolist() == [2] * 4
  # Three pictures of class a in twelve places, each cropped in its own way.
  images = np.concatenate([x['images'][x['labels'] == 0] for x in batches])
  assert len(np.unique(images, axis=0)) == 12


def test_neither_processes_nor_resuming_change_a_pixel(imagenet):
  settings = {'balance_classes': True, 'seed': 3}
  whole = take(6, imagenet, 'train', **settings)
  assert_same(whole, take_in_parts(6, imagenet, 'train', 3, **settings))
  assert_same(whole[5:], take(1, imagenet, 'train', 5, **settings))


def test_labels_are_those_of_the_examples(imagenet, monkeypatch):
  expected = [x['label'] for x in imagenet.as_dataset(split='train')]
  whole = class_balance.read_labels(imagenet, 'train_and_valid')
  assert whole.tolist() == expected
  monkeypatch.setattr(class_balance, '_MANY_BYTES', 0)
  train = class_balance.read_labels(imagenet, 'train')
  assert train.tolist() == expected[6:]
  monkeypatch.delattr(builders.SplitReader, 'read')  # They are kept.
  again = class_balance.read_labels(imagenet, 'train')
  np.testing.assert_array_equal(again, train)


def test_weights_are_those_of_scikit_learn():
  weights = class_balance.class_weights(np.bincount(LABELS))
  expected = class_weight.compute_class_weight(
    'balanced', classes=np.unique(LABELS), y=LABELS
  )
  np.testing.assert_allclose(weights[[*CLASSES]], expected, rtol=1e-6)
  assert weights[3] == 0 and weights.dtype == np.float32
  assert weights[LABELS].mean() == pytest.approx(1)
