"""Tests of mixup and CutMix, alone and in batches."""

import itertools

from conftest import assert_same, joined_processes, make_dataset
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import autoaugment, dataset, mixing
from nfnets.data.order import EpochOrder

SETTINGS = {'image_size': (24, 20), 'global_batch_size': 12, 'seed': 3}


def seeds(count):
  return np.stack([np.full(count, 7), np.arange(count)], 1).astype(np.int64)


def for_seeds(function, count, dtype):
  """Calls a function of a seed for many; returns its results, stacked."""
  run = tf.function(
    lambda keys: tf.map_fn(function, keys, fn_output_signature=dtype),
    autograph=False,
  )
  return run(seeds(count)).numpy()


def take(count, *args, **kwargs):
  with dataset.train_batches(*args, **(SETTINGS | kwargs)) as batches:
    return list(itertools.islice(batches, count))


# The functions.


@pytest.mark.parametrize('alpha', [0.001, 0.2, 0.4, 1.0, 5.0])
def test_mixup_ratios_have_the_moments_of_the_beta_distribution(alpha):
  ratios = for_seeds(lambda s: mixing.mixup_ratio(alpha, s), 8000, tf.float32)
  assert np.isfinite(ratios).all()
  assert ratios.min() >= 0 and ratios.max() <= 1
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
    image, ratio = mixing.mixup(white, black, 0.4, seed)
    np.testing.assert_allclose(image, 255 * ratio, rtol=1e-6)
    image, ratio = mixing.mixup(black, white, 0.4, seed)
    np.testing.assert_allclose(image / 255, 1 - ratio, atol=1e-6)


@pytest.mark.parametrize('dtype', [tf.float32, tf.uint8])
def test_cutmix_pastes_a_box_whose_area_is_the_ratio(dtype):
  a = tf.cast(tf.fill([32, 24, 3], 255), dtype)
  b = tf.zeros([32, 24, 3], dtype)
  for seed in seeds(50):
    image, ratio = mixing.cutmix(a, b, seed)
    image = image.numpy()
    assert image.shape == (32, 24, 3) and image.dtype == dtype
    pasted = image == 0
    assert set(np.unique(image)) <= {0, 255}
    assert 1 - float(ratio) == pytest.approx(pasted.mean(), abs=1e-7)
    # A box: what any of its rows and any of its columns have in common.
    rows, columns = pasted.any((1, 2)), pasted.any((0, 2))
    box = rows[:, None, None] & columns[None, :, None]
    np.testing.assert_array_equal(pasted, np.broadcast_to(box, pasted.shape))
    for side in (rows, columns):
      assert np.count_nonzero(np.diff(side.astype(int))) <= 2


def test_cutmix_keeps_both_images_pixels_where_they_were():
  rng = np.random.default_rng(0)
  a, b = rng.uniform(0, 255, (2, 16, 12, 3)).astype(np.float32)
  before = a.copy(), b.copy()
  for seed in seeds(10):
    image = mixing.cutmix(tf.constant(a), tf.constant(b), seed)[0].numpy()
    assert ((image == a) | (image == b)).all()
    assert (image == b).any() and (image == a).any()
  np.testing.assert_array_equal((a, b), before)


def test_cutmix_boxes_are_as_large_and_where_they_should_be():
  h, w = 64, 48
  boxes = for_seeds(lambda s: mixing.cutmix_box((h, w), s), 8000, tf.int32)
  top, left, bottom, right = boxes.T
  assert (0 <= top).all() and (top <= bottom).all() and (bottom <= h).all()
  assert (0 <= left).all() and (left <= right).all() and (right <= w).all()
  kept = 1 - (bottom - top) * (right - left) / (h * w)
  # With side s of one axis, clipping leaves s - s^2 / 4 on average, and s^2 is
  # uniform: 1 - E[(s - s^2 / 4)^2].
  expected = 1 - (1 / 2 - 1 / 5 + 1 / 48)
  rng = np.random.default_rng(0)
  u, *centres = rng.uniform(size=(3, 200_000))
  simulated = np.ones(len(u))
  for c in centres:
    half = np.sqrt(1 - u) / 2
    simulated *= np.minimum(c + half, 1) - np.maximum(c - half, 0)
  assert np.mean(1 - simulated) == pytest.approx(expected, abs=2e-3)
  assert kept.mean() == pytest.approx(expected, abs=0.012)
  assert kept.std() == pytest.approx(np.std(simulated), abs=0.012)
  # Neither axis and no side is preferred.
  for low, high, size in ((top, bottom, h), (left, right, w)):
    assert np.mean(low / size) == pytest.approx(
      1 - np.mean(high / size), abs=0.01
    )
  assert np.corrcoef(top + bottom, left + right)[0, 1] == pytest.approx(
    0, abs=0.04
  )


def test_the_same_seed_mixes_in_the_same_way():
  for function in (
    lambda s: mixing.mixup_ratio(0.4, s),
    lambda s: mixing.cutmix_box((64, 48), s),
  ):
    results = np.array([function(seed) for seed in seeds(20)])
    again = np.array([function(seed) for seed in seeds(20)])
    np.testing.assert_array_equal(results, again)
    assert len(np.unique(results, axis=0)) == 20


# Batches.

MIXING = ('mixup_0.4', 'cutmix', 'cutmix_mixup_0.4')


@pytest.fixture
def colours(tmp_path):
  """30 images, each of the one colour that its class has; 30 classes."""
  values = np.arange(0, 240, 8, dtype=np.uint8)
  return make_dataset(
    'Colours',
    tmp_path,
    {
      'image': tfds.features.Tensor(shape=(6, 5, 1), dtype=np.uint8),
      'label': tfds.features.ClassLabel(num_classes=30),
    },
    {
      'train': [
        {'image': np.full((6, 5, 1), value), 'label': label}
        for label, value in enumerate(values)
      ]
    },
  )


def is_mixup(name, row):
  """Whether that row of a batch is mixed up, and not cut-mixed."""
  return 'mixup' in name and ('cutmix' not in name or row % 2 == 0)


def threshold(image, seed, *args, wrap_solarize=True):
  """Stands for RandAugment: depends on all pixels, so the order matters."""
  del seed, args, wrap_solarize
  above = image > tf.reduce_max(image) // 2
  return tf.where(above, tf.constant(255, tf.uint8), tf.zeros_like(image))


def shade(image, seed, *args, wrap_solarize=True):
  """The same, as bright as the seed says."""
  return tf.minimum(threshold(image, seed), tf.cast(seed[0] % 256, tf.uint8))


@pytest.mark.parametrize('name', MIXING)
def test_images_and_ratios_and_labels_go_together(colours, name):
  for batch in take(
    5, colours, 'train', augment_name=name, preprocessing='shift_0'
  ):
    assert batch['images'].dtype == np.float32
    for key, dtype in (
      ('labels', np.int32), ('mix_labels', np.int32), ('ratio', np.float32)
    ):  # fmt: skip
      assert batch[key].shape == (12,) and batch[key].dtype == dtype
    ratio = batch['ratio']
    expected = (
      ratio * 8 * batch['labels'] + (1 - ratio) * 8 * batch['mix_labels']
    )
    means = batch['images'].astype(np.float64).mean((1, 2, 3))
    np.testing.assert_allclose(means, expected, atol=1e-3)
    assert (batch['labels'] != batch['mix_labels']).all()


def test_half_of_every_batch_is_mixed_up_and_half_is_cut_mixed(colours):
  for batch in take(
    4,
    colours,
    'train',
    augment_name='mixup_0.4_cutmix',
    preprocessing='shift_0',
  ):
    for row, image in enumerate(batch['images']):
      colours_of_both = 8.0 * np.array(
        [batch['labels'][row], batch['mix_labels'][row]]
      )
      if row % 2 == 0:
        assert np.ptp(image) < 1e-3  # One colour, which is between the two.
      else:
        distance = np.abs(image[..., None] - colours_of_both).min(-1)
        assert distance.max() < 1e-3
        share = np.abs(image - colours_of_both[0]) < 1e-3
        assert share.mean() == pytest.approx(batch['ratio'][row], abs=1e-6)


@pytest.mark.parametrize('name', MIXING)
def test_output_q_is_made_of_positions_2q_and_2q_plus_1(imagenet, name):
  # 58 examples, so the ninth position pair straddles two epochs.
  plain = take(6, imagenet, 'train', global_batch_size=24)
  mixed = take(6, imagenet, 'train', augment_name=name)
  for batch, sources in zip(mixed, plain, strict=True):
    np.testing.assert_array_equal(
      np.stack([batch['labels'], batch['mix_labels']], 1).ravel(),
      sources['labels'],
    )
    pairs = sources['images'].reshape(12, 2, 24, 20, 3)
    for row, (image, (a, b), ratio) in enumerate(
      zip(batch['images'], pairs, batch['ratio'], strict=True)
    ):
      if is_mixup(name, row):
        np.testing.assert_allclose(
          image, ratio * a + (1 - ratio) * b, atol=1e-3
        )
      else:
        assert ((image == a) | (image == b)).all()
        assert (image == a).all(-1).mean() >= ratio - 1e-6


def test_mixing_does_not_depend_on_the_number_of_processes(imagenet):
  # Each of 4 has 3 images: all must agree on which half is cut-mixed.
  kwargs = {'augment_name': 'cutmix_mixup_0.4'}
  whole = take(5, imagenet, 'train', **kwargs)
  parts = [
    take(5, imagenet, 'train', process_index=i, process_count=4, **kwargs)
    for i in range(4)
  ]
  assert_same(whole, joined_processes(parts))


def test_resuming_continues_bit_by_bit(imagenet):
  kwargs = {'augment_name': 'cutmix_mixup', 'global_batch_size': 9}
  whole = take(7, imagenet, 'train', **kwargs)
  for step in (1, 2, 5):
    resumed = take(7 - step, imagenet, 'train', first_step=step, **kwargs)
    assert_same(whole[step:], resumed)


def test_every_output_and_seed_is_mixed_anew(imagenet):
  kwargs = {'augment_name': 'mixup_1'}
  ratios = np.stack([b['ratio'] for b in take(8, imagenet, 'train', **kwargs)])
  assert len(np.unique(ratios)) == ratios.size
  other = take(8, imagenet, 'train', seed=4, **kwargs)
  assert not np.isin(ratios, np.stack([b['ratio'] for b in other])).any()


# RandAugment and AutoAugment in batches.


@pytest.mark.parametrize(
  ('name', 'transpose'),
  [
    ('', False),
    ('cutmix', False),
    ('mixup_0.4', False),
    ('cutmix_mixup', True),
  ],
)
def test_uint8_batches_hold_the_float_images_rounded_down(
  imagenet, name, transpose, monkeypatch
):
  monkeypatch.setattr(
    autoaugment, 'rand_augment', lambda image, *_, **__: image
  )
  kwargs = {'transpose': transpose}
  floats = take(3, imagenet, 'train', augment_name=name, **kwargs)
  name = f'{name}_randaugment_405'.strip('_')
  for batch, expected in zip(
    take(3, imagenet, 'train', augment_name=name, **kwargs), floats, strict=True
  ):
    assert batch['images'].dtype == np.uint8
    assert batch['images'].shape == expected['images'].shape
    expected['images'] = np.floor(np.clip(expected['images'], 0, 255))
    assert_same([batch], [expected])


@pytest.mark.parametrize('name', ['cutmix', 'cutmix_mixup_0.4'])
def test_augmentation_acts_after_mixing_or_before(imagenet, name, monkeypatch):
  monkeypatch.setattr(autoaugment, 'rand_augment', threshold)
  (mixed,) = take(1, imagenet, 'train', augment_name=name)
  name += '_randaugment_405'
  (after,) = take(1, imagenet, 'train', augment_name=name)
  images = mixed['images'].clip(0, 255).astype(np.uint8)
  for image, got in zip(images, after['images'], strict=True):
    np.testing.assert_array_equal(got, threshold(image, None))

  # Each image of a pair is altered as it would be alone, by its own seed.
  monkeypatch.setattr(autoaugment, 'rand_augment', shade)
  (before,) = take(
    1, imagenet, 'train', augment_name=name, augment_before_mix=True
  )
  (sources,) = take(
    1, imagenet, 'train', augment_name='randaugment_405', global_batch_size=24
  )
  pairs = sources['images'].reshape(12, 2, 24, 20, 3).astype(np.float32)
  for row, (image, (a, b), ratio) in enumerate(
    zip(before['images'], pairs, before['ratio'], strict=True)
  ):
    if is_mixup(name, row):
      np.testing.assert_allclose(image, ratio * a + (1 - ratio) * b, atol=1e-3)
    else:
      assert ((image == a) | (image == b)).all()
  assert before['images'].dtype == (np.float32 if 'mixup' in name else np.uint8)
  assert (before['images'] != after['images']).any()


@pytest.mark.slow
def test_randaugment_has_a_seed_of_its_own_for_every_image(
  imagenet, monkeypatch
):
  monkeypatch.setattr(autoaugment, '_can_compile', lambda: False)  # Slow.
  name = 'randaugment_205'
  (plain,) = take(1, imagenet, 'train')
  (batch,) = take(1, imagenet, 'train', augment_name=name)
  assert batch.keys() == {'images', 'labels'}
  order = EpochOrder(dataset.num_examples(imagenet, 'train'), SETTINGS['seed'])
  epochs, indices = order(np.arange(12))
  for image, got, epoch, index in zip(
    plain['images'], batch['images'], epochs, indices, strict=True
  ):
    key = tf.constant([(SETTINGS['seed'] << 32) + epoch, index], tf.int64)
    seed = tf.random.fold_in(key, tf.constant(3, tf.int64))
    image = tf.saturate_cast(image, tf.uint8)
    np.testing.assert_array_equal(
      got, autoaugment.rand_augment(image, seed, 2, 5)
    )
  assert (batch['images'] != plain['images'].clip(0, 255).astype('uint8')).any(
    (1, 2, 3)
  ).sum() > 6


def test_arguments_reach_the_augmentation(imagenet, monkeypatch):
  calls = []

  def record(image, seed, *args, wrap_solarize=True):
    calls.append((args, wrap_solarize))
    return image

  monkeypatch.setattr(autoaugment, 'rand_augment', record)
  kwargs = {'augment_kwargs': {'wrap_solarize': False}}
  take(1, imagenet, 'train', augment_name='randaugment_410', **kwargs)
  assert calls and set(calls) == {((4, 10), False)}


@pytest.mark.parametrize(
    ('name', 'before'),
    [('', False), ('mixup', False), ('cutmix', False),
     ('randaugment_405', False),
     ('mixup_randaugment_405', False), ('mixup_randaugment_405', True),
     ('cutmix_autoaugment', False), ('cutmix_autoaugment', True)],
)  # fmt: skip
def test_fake_batches_look_like_real_ones(imagenet, name, before, monkeypatch):
  for function in ('rand_augment', 'auto_augment'):
    monkeypatch.setattr(autoaugment, function, threshold)
  kwargs = {
    'augment_name': name,
    'augment_before_mix': before,
    'augmentation_multiplicity': 2 if before else 1,
  }
  (real,) = take(1, imagenet, 'train', **kwargs)
  fakes = dataset.fake_batches(num_classes=1000, **(SETTINGS | kwargs))
  fake = next(fakes)
  assert {k: (v.shape, v.dtype) for k, v in fake.items()} == {
    k: (v.shape, v.dtype) for k, v in real.items()
  }
  evaluation = next(
    dataset.fake_batches(num_classes=9, num_batches=1, **(SETTINGS | kwargs))
  )
  assert evaluation.keys() == {'images', 'labels', 'mask'}
  assert evaluation['images'].dtype == np.float32
