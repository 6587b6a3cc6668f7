"""Tests of the names of augmentations, and of what they are turned into."""

import numpy as np
import pytest

from nfnets.data import augmentation
from nfnets.data.augmentation import Augmentation


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('', Augmentation()),
    ('mixup', Augmentation(mixup_alpha=0.2)),
    ('mixup_0.4', Augmentation(mixup_alpha=0.4)),
    ('mixup_1', Augmentation(mixup_alpha=1.0)),
    ('cutmix', Augmentation(cutmix=True)),
    ('randaugment_5', Augmentation(num_layers=2, magnitude=5)),
    ('randaugment_30', Augmentation(num_layers=2, magnitude=30)),
    ('randaugment_101', Augmentation(num_layers=1, magnitude=1)),
    ('randaugment_415', Augmentation(num_layers=4, magnitude=15)),
    ('randaugment_1030', Augmentation(num_layers=10, magnitude=30)),
    ('autoaugment', Augmentation(autoaugment=True)),
    (
      'cutmix_mixup_0.4_randaugment_415',
      Augmentation(0.4, True, num_layers=4, magnitude=15),
    ),
    (
      'randaugment_410_mixup_cutmix',
      Augmentation(0.2, True, num_layers=4, magnitude=10),
    ),
    ('mixup_autoaugment_cutmix', Augmentation(0.2, True, autoaugment=True)),
  ],
)
def test_names_are_read_in_any_order(name, expected):
  assert augmentation.parse(name) == expected


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('mixpu', r"'mixpu' is unknown \(did you mean 'mixup'\?\)"),
    ('cutmix_Mixup', r"'Mixup' is unknown \(did you mean 'mixup'\?\)"),
    ('cut_mix', r"'cut' is unknown \(did you mean 'cutmix'\?\)"),
    ('randaugment415', r"did you mean 'randaugment'\?"),
    ('nonsense', "'nonsense' is unknown"),
    ('cutmix_mixup_', "'' is unknown"),
    ('_cutmix', "'' is unknown"),
    ('cutmix_0.4', "'0.4' is unknown"),
    ('mixup_0.4_0.4', "'0.4' is unknown"),
    ('mixup_nan', "'nan' is unknown"),
    ('mixup_1e3', "'1e3' is unknown"),
    ('mixup_0,4', "'0,4' is unknown"),
    ('mixup_mixup_0.4', "'mixup' occurs twice"),
    ('cutmix_mixup_cutmix', "'cutmix' occurs twice"),
    ('mixup_0', r"'mixup_0' is not in \[0.001, 1000\]"),
    ('mixup_-0.2', "'mixup_-0.2' is not in"),
    ('mixup_1001', "'mixup_1001' is not in"),
    ('randaugment', "'randaugment' needs a whole number"),
    ('randaugment_cutmix', "'randaugment' needs a whole number"),
    ('randaugment_4.15', "'randaugment' needs a whole number"),
    ('randaugment_-5', "'randaugment' needs a whole number"),
    ('randaugment_4x15', "'4x15' is unknown|needs a whole number"),
    ('randaugment_100', 'is 2 layers of magnitude 100, but there are at most'),
    ('randaugment_431', 'is 4 layers of magnitude 31, but'),
    ('randaugment_1105', 'is 11 layers of magnitude 5, but'),
    ('autoaugment_randaugment_405', 'exclude each other'),
  ],
)
def test_names_that_are_wrong_are_refused_with_the_known_parts(name, message):
  with pytest.raises(ValueError, match=message) as error:
    augmentation.parse(name)
  assert f'In the augmentation {name!r}, ' in str(error.value)
  for part in ('mixup_ALPHA', 'cutmix', 'randaugment_N', 'autoaugment'):
    assert part in str(error.value)
  augmentation.parse('cutmix_mixup_0.4_randaugment_415')
  assert 'cutmix_mixup_0.4_randaugment_415' in str(error.value)


@pytest.mark.parametrize('name', ['randaugment_405', 'autoaugment'])
def test_unknown_arguments_are_refused_with_the_known_ones(name):
  plan = augmentation.parse(name)
  with pytest.raises(ValueError, match='grey; there are wrap_solarize, const'):
    augmentation.augmenter(plan, {'grey': 1})


@pytest.mark.parametrize(
  ('name', 'function', 'args'),
  [
    ('randaugment_415', 'rand_augment', (4, 15)),
    ('autoaugment', 'auto_augment', ()),
  ],
)
def test_the_image_is_clamped_and_rounded_down_and_the_rest_handed_on(
  name, function, args, monkeypatch
):
  calls = []

  def record(image, seed, *args, wrap_solarize=True):
    calls.append((image.numpy(), seed, args, wrap_solarize))
    return image

  monkeypatch.setattr(augmentation.autoaugment, function, record)
  augment = augmentation.augmenter(
    augmentation.parse(name), {'wrap_solarize': False}
  )
  image = np.array([[[-7.5, 0.99, 254.99]], [[255.01, 300, 1]]], np.float32)
  augment(image, 'seed')
  ((got, *rest),) = calls
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got.ravel(), [0, 0, 254, 255, 255, 1])
  assert rest == ['seed', args, False]
