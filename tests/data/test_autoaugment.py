"""Tests of AutoAugment and RandAugment; of the choices see test_policies."""

import functools
import hashlib
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nfnets.data import autoaugment

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
GREY = 128


NOISE = np.random.default_rng(0).integers(20, 230, (24, 32, 3)).astype('uint8')


def names():
  """The names of the functions by the number of the operation."""
  split = [
    re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()
    for name in autoaugment._OPERATIONS
  ]
  return ['autocontrast', *split[1:]]


def apply(image, choice, **settings):
  """Does what was chosen with the published functions, one after another."""
  for number, argument, place in zip(*choice, strict=True):
    if number < 16:
      name = names()[number]
      args = [] if number < 3 else [argument]
      if name == 'cutout':
        args.append(place * image.shape[:2])
      kwargs = settings if name == 'contrast' else {}
      image = getattr(autoaugment, name)(image, *args, **kwargs)
  return np.asarray(image)


def digest():
  """A number for what 64 seeds make of the noise, compiled."""
  seeds = tf.data.Dataset.range(64).map(lambda i: tf.stack([i, i]))
  results = seeds.map(lambda s: autoaugment.rand_augment(NOISE, s, 4, 7))
  joined = b''.join(x.tobytes() for x in results.as_numpy_iterator())
  return hashlib.sha256(joined).hexdigest()


# The operations.


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.slow
def test_operations_agree_with_the_published_ones(compiled):
  with np.load(GOLDEN / 'golden_augment_ops.npz') as arrays:
    expected = dict(arrays)
  image = expected.pop('image')
  assert len(expected) == 31

  def run(x):
    results = {}
    for key in expected:  # The name and, mostly, a number.
      name, number = re.fullmatch(r'(\w+?)(?:_(-?\d[\d.]*))?', key).groups()
      args = [] if number is None else [float(number)]
      if number and '.' not in number:
        args = [int(number)]
      results[key] = getattr(autoaugment, name)(x, *args)
    return results

  for key, result in tf.function(run, jit_compile=compiled)(image).items():
    np.testing.assert_array_equal(result, expected[key], err_msg=key)


@pytest.mark.parametrize('compiled', [False, True])
def test_blends_round_as_float32_does_at_every_magnitude(compiled):
  contrast = tf.function(autoaugment.contrast, jit_compile=compiled)
  levels = np.arange(256)
  # The grey is what an image of so many times 256 pixels gets.
  for grey in (0, 1, 37, 100, 127, 200, 254, 255):
    shape = (max(grey, 1), 256 if grey else 255, 3)
    image = np.broadcast_to(levels[: shape[1], None], shape).astype(np.uint8)
    start = np.float32(grey)
    for magnitude in range(31):
      factor = np.float32(0.18 * magnitude + 0.1)
      # NumPy rounds after every operation.
      product = factor * (levels.astype(np.float32) - start)
      expected = np.clip(np.trunc(start + product), 0, 255)[: shape[1], None]
      result = contrast(image, factor).numpy()
      assert (result == expected).all(), (grey, magnitude)


@pytest.mark.parametrize('start', [0, 5])
def test_autocontrast_rounds_as_float32_does(start):
  stretch = tf.function(autoaugment.autocontrast, jit_compile=True)
  ranges = [(a, b) for a in range(start, 256, 6) for b in range(a, 256)]
  ranges += ranges[: -len(ranges) % 3]
  for low, high in np.reshape(ranges, (-1, 3, 2)).transpose(0, 2, 1):
    image = np.clip(np.arange(256)[None, :, None], low, high).astype(np.uint8)
    span = np.maximum(high - low, 1).astype(np.float32)
    scale = np.float32(255) / span
    offset = -low.astype(np.float32) * scale
    expected = np.clip(image.astype(np.float32) * scale + offset, 0, 255)
    expected = np.where(high > low, expected.astype(np.uint8), image)
    np.testing.assert_array_equal(stretch(image), expected)


@pytest.mark.parametrize('pixels', [100, 260, 600, 1500, 40_000])
def test_equalize_evens_out_the_levels_of_each_channel(pixels):
  rng = np.random.default_rng(1)
  shape = (10, pixels // 10, 3)
  image = rng.binomial(255, [0.2, 0.5, 0.99], shape).astype(np.uint8)
  result = autoaugment.equalize(image).numpy()
  for channel in range(3):
    before, after = image[..., channel], result[..., channel]
    # A new level for every so many pixels; with few pixels, nothing changes.
    step = np.sum(before < before.max()) // 255
    for level in np.unique(before):
      darker = np.sum(before < level)
      new = min((darker + step // 2) // step, 255) if step else level
      assert (after[before == level] == new).all()


def test_contrast_may_go_to_the_mean_of_the_grey_image():
  grey = tf.image.rgb_to_grayscale(NOISE).numpy()
  mean = np.full_like(NOISE, round(grey.mean()))
  result = autoaugment.contrast(NOISE, 0, constant_grey=False)
  np.testing.assert_array_equal(result, mean)


def test_grey_level_operations_do_what_they_say():
  levels = np.arange(256).repeat(3).reshape(16, 16, 3).astype(np.uint8)
  wide = levels.astype(int)
  expected = {
    ('posterize', bits): wide // 2 ** (8 - bits) * 2 ** (8 - bits)
    for bits in range(1, 9)
  }
  expected['posterize', 0] = expected['posterize', 1]
  for limit in (0, 1, 128, 255, 256, 400):
    expected['solarize', limit] = np.where(wide < limit, wide, 255 - wide)
  for added in (0, 55, 200):
    more = np.minimum(wide + added, 255)
    expected['solarize_add', added] = np.where(wide < 128, more, wide)
  for (name, argument), want in expected.items():
    result = getattr(autoaugment, name)(levels, argument)
    np.testing.assert_array_equal(result, want, err_msg=f'{name} {argument}')
  np.testing.assert_array_equal(autoaugment.invert(levels), 255 - wide)


@pytest.mark.parametrize('shape', [(24, 32, 3), (31, 17, 3), (1, 5, 3)])
def test_geometric_operations_move_pixels_as_they_say(shape):
  image = np.resize(NOISE[: shape[0], : shape[1]], shape)
  y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)

  def nearest(y, x):
    y, x = (np.trunc(v + np.copysign(0.5, v)).astype(int) for v in (y, x))
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    picked = image[y.clip(0, shape[0] - 1), x.clip(0, shape[1] - 1)]
    return np.where(inside[..., None], picked, GREY)

  cases = []
  for p in (0, 1, -3, 2.5, -2.5, 1000):
    cases += [('translate_x', p, (y, x + p)), ('translate_y', p, (y + p, x))]
  for p in np.float32([0.3, -0.15, 0.5, -0.9]):
    cases += [('shear_x', p, (y, x + p * y)), ('shear_y', p, (y + p * x, x))]
  for name, argument, where in cases:
    result = getattr(autoaugment, name)(image, argument)
    np.testing.assert_array_equal(result, nearest(*where), err_msg=name)
  for degrees, expected in ((0, image), (180, image[::-1, ::-1])):
    result = autoaugment.rotate(image, degrees)
    np.testing.assert_array_equal(result, expected)
  side = min(shape[:2])
  for turns in (1, -1):  # Counterclockwise.
    turned = autoaugment.rotate(image[:side, :side], 90 * turns)
    np.testing.assert_array_equal(turned, np.rot90(image[:side, :side], turns))


def test_cutout_greys_a_square_and_stays_in_the_image():
  for y, x, half in ((10, 12, 4), (0, 31, 5), (23, 0, 3), (5, 5, 0)):
    expected = NOISE.copy()
    rows = slice(max(y - half, 0), y + half)
    columns = slice(max(x - half, 0), x + half)
    expected[rows, columns] = GREY
    result = autoaugment.cutout(NOISE, half, tf.constant([y, x]))
    np.testing.assert_array_equal(result, expected)


def test_a_seed_draws_the_centre_of_a_cutout():
  for seed in np.stack([np.full(20, 7), np.arange(20)], 1):
    centre = tf.random.stateless_uniform([2], seed) * NOISE.shape[:2]
    np.testing.assert_array_equal(
      autoaugment.cutout(NOISE, 3, seed=seed),
      autoaugment.cutout(NOISE, 3, np.int32(centre)),
    )


@pytest.mark.parametrize('published', [True, False])
@pytest.mark.parametrize(
  ('augment', 'shape', 'choose'),
  [
    (
      functools.partial(autoaugment.rand_augment, num_layers=3, magnitude=7),
      [3, 4],
      functools.partial(autoaugment._choose_any, magnitude=7),
    ),
    (autoaugment.auto_augment, [2, 5], autoaugment._choose_policy),
  ],
  ids=['rand_augment', 'auto_augment'],
)
@pytest.mark.slow
def test_results_are_the_chosen_operations_one_after_another(
  augment, shape, choose, published
):
  # What is chosen follows from the seed alone, however it is computed.
  augment = functools.partial(
    augment, wrap_solarize=published, constant_grey=published
  )
  seeds = [np.array([3, i]) for i in range(32)]
  used, expected = set(), []
  for seed in seeds:
    numbers = tf.random.stateless_uniform(shape, seed)
    choice = [x.numpy() for x in choose(numbers, wrap_solarize=published)]
    used |= set(choice[0])
    expected.append(apply(NOISE, choice, constant_grey=published))
  assert len(used) == 16 or augment.func is autoaugment.auto_augment

  def check(run):
    for seed, result in zip(seeds, expected, strict=True):
      np.testing.assert_array_equal(run(NOISE, seed), result)

  check(augment)
  if published:
    check(tf.function(augment))  # Compiled.
    signature = [
      tf.TensorSpec([None, None, 3], tf.uint8),
      tf.TensorSpec([2], tf.int64),
    ]
    check(tf.function(augment, input_signature=signature))


@pytest.mark.slow
def test_neither_threads_nor_flags_for_jax_matter():
  # One thread; and a flag that TensorFlow's XLA does not know.
  code = (
    'import test_autoaugment as t, tensorflow as tf\n'
    'tf.config.threading.set_intra_op_parallelism_threads(1)\n'
    'tf.config.threading.set_inter_op_parallelism_threads(1)\n'
    'print(t.digest(), t.os.environ["XLA_FLAGS"])\n'
  )
  here = pathlib.Path(__file__).parent
  paths = [str(here), str(here.parents[1])]
  env = os.environ | {
    'PYTHONPATH': os.pathsep.join(paths),
    'XLA_FLAGS': '--xla_not_a_flag=1',
  }
  output = subprocess.run(
    [sys.executable, '-c', code], env=env, check=True, capture_output=True
  ).stdout.decode()
  # What earlier versions made: a run that is resumed depends on it.
  expected = '9fba34f8bc544ada549dbe2e5ebeb5ee1142bd40246551ecd240a82c9019e6a0'
  assert output.split() == [expected, '--xla_not_a_flag=1']


@pytest.mark.parametrize(
  ('layers', 'magnitude', 'message'),
  [(x, 5, 'whole number of layers, 1 or more') for x in (0, 1.5, '2', None)]
  + [
    (2, x, r'has to be in \[0, 30\]')
    for x in (-1, 30.5, float('nan'), '5', None)
  ],
)
def test_numbers_out_of_range_are_refused(layers, magnitude, message):
  with pytest.raises(ValueError, match=message):
    autoaugment.rand_augment(NOISE, np.array([1, 2]), layers, magnitude)


@pytest.mark.parametrize(
  ('shape', 'dtype', 'message'),
  [
    ((8, 8, 3), 'float32', 'has to be uint8, not float32'),
    ((8, 8), 'uint8', r'shape \[H, W, 3\]'),
    ((8, 8, 1), 'uint8', r'shape \[H, W, 3\]'),
    ((2, 8, 8, 3), 'uint8', r'shape \[H, W, 3\]'),
  ],
)
def test_other_images_are_refused(shape, dtype, message):
  image = np.zeros(shape, dtype)
  with pytest.raises((TypeError, ValueError), match=message):
    autoaugment.invert(image)
  with pytest.raises((TypeError, ValueError), match=message):
    autoaugment.auto_augment(image, np.array([1, 2]))


@pytest.mark.parametrize(
  'given', [{}, {'centre': (1, 1), 'seed': np.array([1, 2])}]
)
def test_cutout_needs_one_of_centre_and_seed(given):
  with pytest.raises(ValueError, match='either a centre or a seed'):
    autoaugment.cutout(NOISE, 3, **given)
