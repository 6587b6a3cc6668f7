"""Tests of augmentations by name; of mixup and CutMix, alone and in batches."""

import conftest
from conftest import assert_same, make_dataset
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import augmentation, autoaugment, dataset
from nfnets.data.augmentation import Augmentation
from nfnets.data.batches import EpochOrder

SETTINGS = {'image_size': (24, 20), 'batch_size': 12, 'seed': 3}
MIXING = ('mixup_0.4', 'cutmix', 'cutmix_mixup_0.4')


def seeds(count):
  return np.stack([np.full(count, 7), np.arange(count)], 1).astype(np.int64)


def for_seeds(function, count, dtype):
  """Calls a function of a seed for many; returns its results, stacked."""
  run = tf.function(
    lambda keys: tf.map_fn(function, keys, fn_output_signature=dtype),
    autograph=False,
  )
  return run(seeds(count)).numpy()


def take(count, builder, name, **kwargs):
  kwargs = SETTINGS | {'augment_name': name} | kwargs
  return conftest.take(count, builder, 'train', **kwargs)


# The names.


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
    ('randaugment415', r"did you mean 'randaugment'\?"),
    ('nonsense', "'nonsense' is unknown"),
    ('cutmix_mixup_', "'' is unknown"),
    ('cutmix_0.4', "'0.4' is unknown"),
    ('mixup_0.4_0.4', "'0.4' is unknown"),
    ('mixup_cutmix_mixup', "'mixup' occurs twice"),
    ('mixup_0', "the number of 'mixup_0' is not in"),
    ('mixup_-0.4', "the number of 'mixup_-0.4' is not in"),
    ('mixup_1001', "the number of 'mixup_1001' is not in"),
    ('randaugment', "'randaugment' needs a whole number"),
    ('randaugment_cutmix', "'randaugment' needs a whole number"),
    ('randaugment_4.15', "'randaugment' needs a whole number"),
    ('randaugment_-5', "'randaugment' needs a whole number"),
    ('randaugment_4x15', 'needs a whole number|is unknown'),
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
  def record(image, seed, *args, wrap_solarize=True):
    return image.numpy().ravel().tolist(), seed, args, wrap_solarize

  monkeypatch.setattr(autoaugment, function, record)
  kwargs = {'wrap_solarize': False}
  augment = augmentation.augmenter(augmentation.parse(name), kwargs)
  image = np.array([[[-7.5, 0.99, 254.99]], [[255.01, 300, 1]]], np.float32)
  expected = [0, 0, 254, 255, 255, 1], 'seed', args, False
  assert augment(image, 'seed') == expected


# The functions.


@pytest.mark.parametrize('alpha', [0.001, 0.2, 1.0, 5.0])
def test_mixup_ratios_have_the_moments_of_the_beta_distribution(alpha):
  ratio = lambda seed: augmentation.mixup(1.0, 0.0, alpha, seed)[1]  # noqa: E731
  ratios = for_seeds(ratio, 8000, tf.float32)
  assert ratios.min() >= 0 and ratios.max() <= 1  # And finite.
  variance = 1 / (4 * (2 * alpha + 1))
  # Four standard errors; the variance of the sample variance is from the fourth
  # moment, (3 / 16) / ((2 alpha + 1) (2 alpha + 3)) for this distribution.
  fourth = 3 / 16 / ((2 * alpha + 1) * (2 * alpha + 3))
  assert abs(ratios.mean() - 0.5) < 4 * np.sqrt(variance / 8000)
  spread = np.sqrt((fourth - variance**2) / 8000)
  assert abs(ratios.var() - variance) < 4 * spread + 1e-6


def test_mixup_of_constant_images_has_the_ratio_as_its_mean():
  white, black = tf.fill([9, 7, 3], 255.0), tf.zeros([9, 7, 3])
  for seed in seeds(20):
    image, ratio = augmentation.mixup(white, black, 0.4, seed)
    np.testing.assert_allclose(image, 255 * ratio, rtol=1e-6)


@pytest.mark.parametrize('dtype', [tf.float32, tf.uint8])
def test_cutmix_pastes_a_box_whose_area_is_the_ratio(dtype):
  a = tf.cast(tf.fill([32, 24, 3], 255), dtype)
  b = tf.zeros([32, 24, 3], dtype)
  for seed in seeds(50):
    image, ratio = augmentation.cutmix(a, b, seed)
    image = image.numpy()
    assert image.dtype == dtype and set(np.unique(image)) <= {0, 255}
    pasted = image == 0
    assert 1 - float(ratio) == pytest.approx(pasted.mean(), abs=1e-7)
    # A box: what any of its rows and any of its columns have in common.
    rows, columns = pasted.any((1, 2)), pasted.any((0, 2))
    box = rows[:, None, None] & columns[None, :, None]
    np.testing.assert_array_equal(pasted, np.broadcast_to(box, pasted.shape))
    for side in (rows, columns):
      assert np.count_nonzero(np.diff(side.astype(int))) <= 2


def test_cutmix_boxes_are_as_large_and_where_they_should_be():
  h, w = 64, 48
  box = lambda seed: augmentation.cutmix_box((h, w), seed)  # noqa: E731
  boxes = for_seeds(box, 8000, tf.int32)
  top, left, bottom, right = boxes.T
  assert (0 <= boxes).all() and (bottom <= h).all() and (right <= w).all()
  assert (top <= bottom).all() and (left <= right).all()
  kept = 1 - (bottom - top) * (right - left) / (h * w)
  rng = np.random.default_rng(0)
  u, *centres = rng.uniform(size=(3, 200_000))
  half = np.sqrt(1 - u) / 2
  simulated = np.ones(len(u))
  for c in centres:
    simulated *= np.minimum(c + half, 1) - np.maximum(c - half, 0)
  assert kept.mean() == pytest.approx(1 - np.mean(simulated), abs=0.012)
  assert kept.std() == pytest.approx(np.std(simulated), abs=0.012)
  # Neither axis and no side is preferred.
  for low, high, size in ((top, bottom, h), (left, right, w)):
    mirrored = 1 - np.mean(high / size)
    assert np.mean(low / size) == pytest.approx(mirrored, abs=0.01)
  correlation = np.corrcoef(top + bottom, left + right)[0, 1]
  assert correlation == pytest.approx(0, abs=0.04)


# Batches.


@pytest.fixture
def colours(tmp_path):
  """30 images, each of the one colour that its class has; 30 classes."""
  values = np.arange(0, 240, 8, dtype=np.uint8)
  features = {
    'image': tfds.features.Tensor(shape=(6, 5, 1), dtype=np.uint8),
    'label': tfds.features.ClassLabel(num_classes=30),
  }
  examples = [
    {'image': np.full((6, 5, 1), value), 'label': label}
    for label, value in enumerate(values)
  ]
  return make_dataset('Colours', tmp_path, features, {'train': examples})


def is_mixup(name, row):
  """Whether that row of a batch is mixed up, and not cut-mixed."""
  return 'mixup' in name and ('cutmix' not in name or row % 2 == 0)


def check_mixed(name, batch, pairs):
  """Checks that each image is made of a pair as its ratio says."""
  rows = zip(batch['images'], pairs, batch['ratio'], strict=True)
  for row, (image, (a, b), ratio) in enumerate(rows):
    if is_mixup(name, row):
      np.testing.assert_allclose(image, ratio * a + (1 - ratio) * b, atol=1e-3)
    else:
      assert ((image == a) | (image == b)).all()
      assert (image == a).all(-1).mean() >= ratio - 1e-6


def threshold(image, seed, *args, wrap_solarize=True):
  """Stands for RandAugment: depends on all pixels, so the order matters."""
  above = image > tf.reduce_max(image) // 2
  return tf.where(above, tf.constant(255, tf.uint8), tf.zeros_like(image))


def shade(image, seed, *args, wrap_solarize=True):
  """The same, as bright as the seed says."""
  return tf.minimum(threshold(image, seed), tf.cast(seed[0] % 256, tf.uint8))


@pytest.mark.parametrize('name', MIXING)
def test_images_and_ratios_and_labels_go_together(colours, name):
  ratios = []
  for batch in take(5, colours, name, preprocessing='shift_0'):
    kinds = {'images': 'f4', 'labels': 'i4', 'mix_labels': 'i4', 'ratio': 'f4'}
    assert {k: v.dtype.str[1:] for k, v in batch.items()} == kinds
    ratio, one, other = (batch[k] for k in ('ratio', 'labels', 'mix_labels'))
    expected = 8 * (ratio * one + (1 - ratio) * other)
    means = batch['images'].astype(np.float64).mean((1, 2, 3))
    np.testing.assert_allclose(means, expected, atol=1e-3)
    assert (one != other).all()
    # Each has one colour where it is mixed up, and two at most where it is not.
    for row, image in enumerate(batch['images']):
      ends = 8.0 * np.array([one[row], other[row]])
      distance = np.abs(image[..., None] - ends).min(-1).max()
      assert (np.ptp(image) if is_mixup(name, row) else distance) < 1e-3
    ratios.extend(ratio)
  if name == 'mixup_0.4':  # Drawn anew for each.
    assert len(set(ratios)) == len(ratios)


@pytest.mark.parametrize('name', ['mixup_0.4', 'cutmix_mixup_0.4'])
def test_output_q_is_made_of_positions_2q_and_2q_plus_1(imagenet, name):
  # 58 examples, so the ninth position pair straddles two epochs.
  plain = take(6, imagenet, '', batch_size=24)
  for batch, sources in zip(take(6, imagenet, name), plain, strict=True):
    pairs = np.stack([batch['labels'], batch['mix_labels']], 1).ravel()
    np.testing.assert_array_equal(pairs, sources['labels'])
    check_mixed(name, batch, sources['images'].reshape(12, 2, 24, 20, 3))


@pytest.mark.parametrize(
  ('name', 'transpose'),
  [
    ('', False),
    ('cutmix_mixup', True),
  ],
)
def test_uint8_batches_hold_the_float_images_rounded_down(
  imagenet, name, transpose, monkeypatch
):
  monkeypatch.setattr(autoaugment, 'rand_augment', lambda x, *_, **__: x)
  floats = take(3, imagenet, name, transpose=transpose)
  for batch in floats:
    batch['images'] = batch['images'].clip(0, 255).astype(np.uint8)
  name = f'{name}_randaugment_405'.strip('_')
  found = take(3, imagenet, name, transpose=transpose)
  assert {batch['images'].dtype for batch in found} == {np.dtype(np.uint8)}
  assert_same(found, floats)


def test_augmentation_acts_after_mixing_or_before(imagenet, monkeypatch):
  name = 'cutmix_mixup_0.4'
  monkeypatch.setattr(autoaugment, 'rand_augment', threshold)
  (mixed,) = take(1, imagenet, name)
  name += '_randaugment_405'
  (after,) = take(1, imagenet, name)
  images = mixed['images'].clip(0, 255).astype(np.uint8)
  for image, got in zip(images, after['images'], strict=True):
    np.testing.assert_array_equal(got, threshold(image, None))

  # Each image of a pair is altered as it would be alone, by its own seed.
  monkeypatch.setattr(autoaugment, 'rand_augment', shade)
  (before,) = take(1, imagenet, name, augment_before_mix=True)
  (sources,) = take(1, imagenet, 'randaugment_405', batch_size=24)
  pairs = sources['images'].reshape(12, 2, 24, 20, 3).astype(np.float32)
  check_mixed(name, before, pairs)
  assert before['images'].dtype == np.float32


@pytest.mark.slow
def test_randaugment_has_a_seed_of_its_own_for_every_image(
  imagenet, monkeypatch
):
  monkeypatch.setattr(autoaugment, '_can_compile', lambda: False)  # Slow.
  (plain,), (batch,) = (
    take(1, imagenet, ''),
    take(1, imagenet, 'randaugment_205'),
  )
  order = EpochOrder(dataset.num_examples(imagenet, 'train'), SETTINGS['seed'])
  epochs, indices = order(np.arange(12))
  for image, got, epoch, index in zip(
    plain['images'], batch['images'], epochs, indices, strict=True
  ):
    key = tf.constant([(SETTINGS['seed'] << 32) + epoch, index], tf.int64)
    seed = tf.random.fold_in(key, tf.constant(3, tf.int64))
    image = tf.saturate_cast(image, tf.uint8)
    expected = autoaugment.rand_augment(image, seed, 2, 5)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ('name', 'before'),
    [('', False), ('mixup', False), ('randaugment_405', False),
     ('mixup_randaugment_405', False), ('mixup_randaugment_405', True),
     ('cutmix_autoaugment', True)],
)  # fmt: skip
def test_fake_batches_look_like_real_ones(imagenet, name, before, monkeypatch):
  for function in ('rand_augment', 'auto_augment'):
    monkeypatch.setattr(autoaugment, function, threshold)
  kwargs = {'augment_before_mix': before}
  kwargs['augmentation_multiplicity'] = 2 if before else 1
  options = dataset.Options(augment_name=name, **SETTINGS | kwargs)
  real, fake = (
    {k: (v.shape, v.dtype) for k, v in batch.items()}
    for batch in (
      *take(1, imagenet, name, **kwargs),
      next(dataset.fake_batches(options, 1000)),
    )
  )
  assert fake == real
  evaluation = next(dataset.fake_batches(options, 9, num_batches=1))
  assert evaluation.keys() == {'images', 'labels', 'mask'}
  assert evaluation['images'].dtype == np.float32
