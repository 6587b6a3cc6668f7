"""Tests of AutoAugment and RandAugment.

What they choose is the matter of test_policies.py.
"""

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

from nfnets.data import autoaugment, policies

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
GREY = 128


NOISE = np.random.default_rng(0).integers(20, 230, (24, 32, 3)).astype('uint8')


def golden_cases():
  """Returns the image and {key: (operation, arguments, expected result)}."""
  with np.load(GOLDEN / 'golden_augment_ops.npz') as arrays:
    expected = dict(arrays)
  image = expected.pop('image')
  cases = {}
  for key, result in expected.items():
    name, _, argument = key.rpartition('_')
    if any(c.isdigit() for c in argument):
      number = float(argument) if '.' in argument else int(argument)
      cases[key] = (getattr(autoaugment, name), (number,), result)
    else:
      cases[key] = (getattr(autoaugment, key), (), result)
  return image, cases


def apply(image, choice, **settings):
  """Does what was chosen with the published functions, one after another."""
  for number, argument, place in zip(*choice, strict=True):
    if number == len(policies.OPERATIONS):
      continue
    name = re.sub(r'(?<=[a-z])(?=[A-Z])', '_', policies.OPERATIONS[number])
    name = name.lower().replace('auto_contrast', 'autocontrast')
    operation = getattr(autoaugment, name)
    if name in ('autocontrast', 'equalize', 'invert'):
      image = operation(image)
    elif name == 'cutout':
      image = operation(image, argument, place * image.shape[:2])
    elif name == 'contrast':
      image = operation(image, argument, **settings)
    else:
      image = operation(image, argument)
  return np.asarray(image)


def digest():
  """A number for what 64 seeds make of the noise, compiled."""
  seeds = tf.data.Dataset.range(64).map(lambda i: tf.stack([i, i]))
  results = seeds.map(lambda s: autoaugment.rand_augment(NOISE, s, 4, 7))
  joined = b''.join(x.tobytes() for x in results.as_numpy_iterator())
  return hashlib.sha256(joined).hexdigest()


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.slow
def test_operations_agree_with_the_published_ones(compiled):
  image, cases = golden_cases()
  assert len(cases) == 31

  def run(x):
    return {key: f(x, *args) for key, (f, args, _) in cases.items()}

  if compiled:
    run = tf.function(run, jit_compile=True)
  for key, result in run(image).items():
    assert result.dtype == tf.uint8
    np.testing.assert_array_equal(result, cases[key][-1], err_msg=key)


def test_tensors_are_as_good_as_numbers():
  image, cases = golden_cases()
  for key, (function, args, expected) in cases.items():
    result = function(tf.constant(image), *map(tf.constant, args))
    np.testing.assert_array_equal(result, expected, err_msg=key)


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


def test_a_flat_or_tiny_image_is_not_equalized_or_stretched():
  for shape in ((1, 1, 3), (2, 3, 3), (40, 40, 3)):
    flat = np.full(shape, 77, np.uint8)
    np.testing.assert_array_equal(autoaugment.equalize(flat), flat)
    np.testing.assert_array_equal(autoaugment.autocontrast(flat), flat)


def test_grey_level_operations_do_what_they_say():
  levels = np.arange(256).repeat(3).reshape(16, 16, 3).astype(np.uint8)
  wide = levels.astype(int)
  for bits in range(1, 9):
    step = 2 ** (8 - bits)
    result = autoaugment.posterize(levels, bits)
    np.testing.assert_array_equal(result, wide // step * step)
  np.testing.assert_array_equal(
    autoaugment.posterize(levels, 0), autoaugment.posterize(levels, 1)
  )
  np.testing.assert_array_equal(autoaugment.invert(levels), 255 - wide)
  for threshold in (0, 1, 128, 255, 256, 400):
    result = autoaugment.solarize(levels, threshold)
    expected = np.where(wide < threshold, wide, 255 - wide)
    np.testing.assert_array_equal(result, expected)
  for addition in (0, 55, 200):
    result = autoaugment.solarize_add(levels, addition)
    expected = np.where(wide < 128, np.minimum(wide + addition, 255), wide)
    np.testing.assert_array_equal(result, expected)


def test_factor_zero_gives_grey_black_or_smooth_images_and_one_the_image():
  grey = tf.image.rgb_to_grayscale(NOISE).numpy()
  tile = np.broadcast_to(grey, NOISE.shape)
  np.testing.assert_array_equal(autoaugment.color(NOISE, 0), tile)
  constant = np.full_like(NOISE, NOISE.shape[0] * NOISE.shape[1] // 256)
  np.testing.assert_array_equal(autoaugment.contrast(NOISE, 0), constant)
  large = autoaugment.contrast(np.zeros([300, 300, 3], np.uint8), 0.5)
  assert (large.numpy() == 255 // 2).all()
  mean = np.full_like(NOISE, round(grey.mean()))
  result = autoaugment.contrast(NOISE, 0, constant_grey=False)
  np.testing.assert_array_equal(result, mean)
  np.testing.assert_array_equal(autoaugment.brightness(NOISE, 0), 0 * NOISE)
  for operation in (
    autoaugment.color,
    autoaugment.contrast,
    autoaugment.brightness,
    autoaugment.sharpness,
  ):
    np.testing.assert_array_equal(operation(NOISE, 1), NOISE)


def test_smoothing_is_the_weighted_mean_and_leaves_the_border():
  smooth = autoaugment.sharpness(NOISE, 0).numpy().astype(int)
  wide, (h, w, _) = NOISE.astype(int), NOISE.shape
  total = 4 * wide[1:-1, 1:-1] + sum(
    wide[y : h - 2 + y, x : w - 2 + x] for y in range(3) for x in range(3)
  )
  # Where the mean is a whole number, it may come out one lower.
  lower = total // 13 - smooth[1:-1, 1:-1]
  assert set(np.unique(lower)) <= {0, 1}
  assert (total[lower == 1] % 13 == 0).all()
  inner = np.zeros([h, w], bool)
  inner[1:-1, 1:-1] = True
  np.testing.assert_array_equal(smooth[~inner], NOISE[~inner])


@pytest.mark.parametrize('shape', [(24, 32, 3), (31, 17, 3), (1, 5, 3)])
def test_geometric_operations_move_pixels_as_they_say(shape):
  image = NOISE[: shape[0], : shape[1]]
  image = np.resize(image, shape)
  y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)

  def nearest(y, x):
    y, x = (np.trunc(v + np.copysign(0.5, v)).astype(int) for v in (y, x))
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    picked = image[y.clip(0, shape[0] - 1), x.clip(0, shape[1] - 1)]
    return np.where(inside[..., None], picked, GREY)

  for pixels in (0, 1, -3, 2.5, -2.5, 1000):
    np.testing.assert_array_equal(
      autoaugment.translate_x(image, pixels), nearest(y, x + pixels)
    )
    np.testing.assert_array_equal(
      autoaugment.translate_y(image, pixels), nearest(y + pixels, x)
    )
  for level in (0.3, -0.15, 0.5, -0.9):
    level = np.float32(level)
    np.testing.assert_array_equal(
      autoaugment.shear_x(image, level), nearest(y, x + level * y)
    )
    np.testing.assert_array_equal(
      autoaugment.shear_y(image, level), nearest(y + level * x, x)
    )
  np.testing.assert_array_equal(autoaugment.rotate(image, 0), image)
  np.testing.assert_array_equal(
    autoaugment.rotate(image, 180), image[::-1, ::-1]
  )


def test_positive_degrees_turn_counterclockwise():
  square = NOISE[:24, :24]
  np.testing.assert_array_equal(
    autoaugment.rotate(square, 90), np.rot90(square)
  )
  np.testing.assert_array_equal(
    autoaugment.rotate(square, -90), np.rot90(square, -1)
  )


def test_cutout_greys_a_square_and_stays_in_the_image():
  for y, x, half in ((10, 12, 4), (0, 31, 5), (23, 0, 3), (5, 5, 0)):
    expected = NOISE.copy()
    rows = slice(max(y - half, 0), y + half)
    columns = slice(max(x - half, 0), x + half)
    expected[rows, columns] = GREY
    for centre in ((y, x), tf.constant([y, x])):
      result = autoaugment.cutout(NOISE, half, centre)
      np.testing.assert_array_equal(result, expected)


def test_a_seed_draws_the_centre_of_a_cutout_anywhere():
  image = np.zeros([6, 10, 3], np.uint8)
  cut = tf.function(lambda seed: autoaugment.cutout(image, 1, seed=seed))
  # Of a square of two pixels, the last row and column mark the centre.
  centres = [
    np.argwhere(cut(np.array([7, i])).numpy()).max(0)[:2] for i in range(1200)
  ]
  counts = np.zeros([6, 10])
  np.add.at(counts, tuple(np.transpose(centres)), 1)
  deviation = ((counts - 20) ** 2 / 20).sum()  # Chi-square, of 59 degrees.
  assert deviation < 59 + 5 * (2 * 59) ** 0.5


@pytest.mark.parametrize('published', [True, False])
@pytest.mark.parametrize(
  ('augment', 'shape', 'choose'),
  [
    (
      functools.partial(autoaugment.rand_augment, num_layers=3, magnitude=7),
      [3, 4],
      functools.partial(policies.choose_any, magnitude=7),
    ),
    (autoaugment.auto_augment, [2, 5], policies.choose_policy),
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


@pytest.mark.parametrize('num_layers', [0, -1, 1.5, '2', None])
def test_number_of_layers_out_of_range_is_refused(num_layers):
  with pytest.raises(ValueError, match='whole number of layers, 1 or more'):
    autoaugment.rand_augment(NOISE, np.array([1, 2]), num_layers, 5)


@pytest.mark.parametrize('magnitude', [-1, 30.5, float('nan'), '5', None])
def test_magnitude_out_of_range_is_refused(magnitude):
  with pytest.raises(ValueError, match=r'has to be in \[0, 30\]'):
    autoaugment.rand_augment(NOISE, np.array([1, 2]), 2, magnitude)


def test_other_images_are_refused():
  seed = np.array([1, 2])
  with pytest.raises(TypeError, match='has to be uint8, not float32'):
    autoaugment.invert(NOISE.astype(np.float32))
  with pytest.raises(TypeError, match='has to be uint8, not int32'):
    autoaugment.auto_augment(NOISE.astype(np.int32), seed)
  for shape in ((8, 8), (8, 8, 1), (2, 8, 8, 3)):
    with pytest.raises(ValueError, match=r'shape \[H, W, 3\]'):
      autoaugment.rand_augment(np.zeros(shape, np.uint8), seed, 2, 5)


def test_cutout_needs_one_of_centre_and_seed():
  for given in ({}, {'centre': (1, 1), 'seed': np.array([1, 2])}):
    with pytest.raises(ValueError, match='either a centre or a seed'):
      autoaugment.cutout(NOISE, 3, **given)
