"""The settings that make up for classes of unequal size."""

import jax
import numpy as np
import pytest
from sklearn.utils import class_weight
import small_network

from experiments import recipe


def _build(data_dir, **settings):
  config = small_network.config(
    data_dir=data_dir, train_batch_size=60, eval_subset='valid', **settings
  )
  return recipe.build(config, jax.random.key(0))


def test_weights_follow_from_the_training_split(data_dir):
  built = _build(data_dir, class_weights='balanced')
  # As many as are held out for validation come first.
  train = built.builder.as_dataset(split='train[143:]')
  expected = class_weight.compute_class_weight(
    'balanced', classes=np.arange(10), y=[int(x['label']) for x in train]
  )
  np.testing.assert_allclose(built.class_weights(), expected, rtol=1e-6)


@pytest.mark.parametrize('mixes', [False, True])
def test_a_batch_has_each_class_equally_often(data_dir, mixes):
  name = 'mixup' if mixes else None
  built = _build(data_dir, balance_classes=True, augment_name=name)
  assert built.class_weights() is None
  with built.train_batches() as batches:
    batch = next(batches)
  labels = np.concatenate([batch['labels'], batch.get('mix_labels', [])])
  counts = np.bincount(labels.astype(int))
  assert counts.tolist() == [12 if mixes else 6] * 10
