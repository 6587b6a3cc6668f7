"""Tests of AutoAugment and RandAugment.

What they choose is found out from outside: on a random image, every operation
and every pair of two leaves its own, unmistakable result.
"""

import collections
import hashlib
import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nfnets.data import autoaugment

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
GREY = 128


def noise(h, w):
  pixels = np.random.default_rng(0).integers(20, 230, (h, w, 3))
  return pixels.astype(np.uint8)


NOISE = noise(24, 32)

# AutoAugment's policy: operation, probability and magnitude, twice per row.
POLICY = """
  Eq .8 1 ShY .8 4   Col .4 9 Eq .6 3    Col .4 1 Rot .6 8   Sol .8 3 Eq .4 7
  Sol .4 2 Sol .6 2  Col .2 0 Eq .8 8    Eq .4 8 SolA .8 3   ShX .2 9 Rot .6 8
  Col .6 1 Eq 1 2    Inv .4 9 Rot .6 0   Eq 1 9 ShY .6 3     Col .4 7 Eq .6 0
  Post .4 6 AutoC .4 7  Sol .6 8 Col .6 9  Sol .2 4 Rot .8 9  Rot 1 7 TrY .8 9
  ShX 0 0 Sol .8 4   ShY .8 0 Col .6 4   Col 1 0 Rot .6 2    Eq .8 4 Eq 0 8
  Eq 1 4 AutoC .6 2  ShY .4 7 SolA .6 7  Post .8 2 Sol .6 10
  Sol .6 8 Eq .6 1   Col .8 6 Rot .4 5
"""


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


def variants(magnitude, wrap=True, mean=False, translate=10):
  """Yields (name, functions of an image) for all operations but Cutout."""
  a, m = autoaugment, magnitude
  factor, threshold = 0.18 * m + 0.1, int(25.6 * m)
  threshold = threshold % 256 if wrap else threshold
  single = {
    'AutoC': a.autocontrast,
    'Eq': a.equalize,
    'Inv': a.invert,
    'Post': lambda x: a.posterize(x, int(0.4 * m)),
    'Sol': lambda x: a.solarize(x, threshold),
    'SolA': lambda x: a.solarize_add(x, int(11 * m)),
    'Col': lambda x: a.color(x, factor),
    'Con': lambda x: a.contrast(x, factor, constant_grey=not mean),
    'Bri': lambda x: a.brightness(x, factor),
    'Sha': lambda x: a.sharpness(x, factor),
  }
  pairs = {
    'Rot': lambda x, s: a.rotate(x, 3 * m * s),
    'ShX': lambda x, s: a.shear_x(x, 0.03 * m * s),
    'ShY': lambda x, s: a.shear_y(x, 0.03 * m * s),
    'TrX': lambda x, s: a.translate_x(x, translate * m * s),
    'TrY': lambda x, s: a.translate_y(x, translate * m * s),
  }
  for name, run in single.items():
    yield name, [run]
  for name, run in pairs.items():
    yield name, [lambda x, s=s, run=run: run(x, s) for s in (1, -1)]


def add_outcomes(outcomes, image, probability, steps):
  """Adds the probabilities of what a sequence of random steps gives.

  Args:
    outcomes: {bytes of the resulting image: probability}.
    image: uint8 [H, W, 3].
    probability: Of this sequence.
    steps: Lists of (function, probability) that exclude each other.
  """
  if not steps:
    outcomes[image.tobytes()] += probability
    return
  for run, share in steps[0]:
    if share:
      result = run(image) if run else image
      add_outcomes(outcomes, np.asarray(result), probability * share, steps[1:])


def run_all(augment, num, image=NOISE):
  """Counts the results of seeds (7, 0) to (7, num - 1), compiled by XLA."""
  seeds = tf.data.Dataset.range(num).map(lambda i: tf.stack([7, i]))
  results = seeds.map(lambda seed: augment(image, seed), num_parallel_calls=2)
  return collections.Counter(x.tobytes() for x in results.as_numpy_iterator())


def check_frequencies(counts, outcomes):
  """Chi-square test at five standard deviations; the seeds are fixed."""
  num = sum(counts.values())
  cells = [(counts[key], num * p) for key, p in outcomes.items()]
  rest = num - np.sum(cells, 0)
  observed, expected = np.array([*cells, rest]).T
  rare = expected < 5
  assert observed[rare].sum() <= 3 * expected[rare].sum() + 3
  deviation = (observed - expected)[~rare] ** 2 / expected[~rare]
  degrees = len(deviation) - 1
  assert deviation.sum() < degrees + 5 * (2 * degrees) ** 0.5
  assert deviation.max() < 5**2


def digest(num=64):
  """A number for what seeds 0 to num - 1 make of the noise, compiled."""
  seeds = tf.data.Dataset.range(num).map(lambda i: tf.stack([i, i]))
  results = seeds.map(lambda s: autoaugment.rand_augment(NOISE, s, 4, 7))
  joined = b''.join(x.tobytes() for x in results.as_numpy_iterator())
  return hashlib.sha256(joined).hexdigest()


@pytest.mark.parametrize('mode', ['eager', 'unknown size', 'compiled'])
def test_operations_agree_with_the_published_ones(mode):
  image, cases = golden_cases()
  assert len(cases) == 31

  def run(x):
    return {key: f(x, *args) for key, (f, args, _) in cases.items()}

  if mode == 'unknown size':
    spec = tf.TensorSpec([None, None, 3], tf.uint8)
    run = tf.function(run, input_signature=[spec])
  elif mode == 'compiled':
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


@pytest.mark.parametrize('start', [0, 1, 2, 5])
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


def test_cutouts_are_uniform_in_the_image():
  image = np.zeros([6, 10, 3], np.uint8)
  # Of a square of two pixels, the last row and column mark the centre.
  counts = run_all(lambda x, s: autoaugment.cutout(x, 1, seed=s), 6000, image)
  outcomes = collections.Counter()
  for y, x in itertools.product(range(6), range(10)):
    result = image.copy()
    result[max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1] = GREY
    outcomes[result.tobytes()] += 1 / 60
  check_frequencies(counts, outcomes)


@pytest.mark.parametrize(
  ('magnitude', 'wrap', 'mean'),
  [(2, True, True), (5, True, False), (10, True, False), (12, False, True)],
)
def test_a_layer_is_one_of_16_operations_with_the_published_argument(
  magnitude, wrap, mean
):
  settings = {'wrap_solarize': wrap, 'constant_grey': not mean}
  # So large that something is left of it, however far it moves.
  image = noise(10 * magnitude + 8, 10 * magnitude + 12)
  counts = run_all(
    lambda x, s: autoaugment.rand_augment(x, s, 1, magnitude, **settings),
    40_000 // magnitude,
    image,
  )
  outcomes = collections.Counter()
  for _, runs in variants(magnitude, wrap, mean):
    step = [(run, 1 / 16 / len(runs)) for run in runs]
    add_outcomes(outcomes, image, 1, [step])
  # What is left over is Cutout, whose centre is anywhere.
  check_frequencies(counts, outcomes)
  centres = []
  for key in counts.keys() - outcomes.keys():
    result = np.frombuffer(key, np.uint8).reshape(image.shape)
    where = np.nonzero((result != image).any(2))
    first, last = np.min(where, 1), np.max(where, 1)
    box = result[first[0] : last[0] + 1, first[1] : last[1] + 1]
    assert (box == GREY).all()
    assert max(box.shape) <= 2 * int(4 * magnitude)
    centres.append((first + last) / 2 / image.shape[:2])
  np.testing.assert_allclose(np.mean(centres, 0), 0.5, atol=0.05)
  assert (np.std(centres, 0) > 0.1).all()


def test_layers_are_independent():
  image = noise(40, 44)
  counts = run_all(
    lambda x, s: autoaugment.rand_augment(x, s, 2, 3), 8000, image
  )
  layer = [(run, 1 / 16 / len(runs)) for _, runs in variants(3) for run in runs]
  outcomes = collections.Counter()
  add_outcomes(outcomes, image, 1, [layer, layer])
  check_frequencies(counts, outcomes)


@pytest.mark.parametrize('wrap', [True, False])
def test_autoaugment_applies_its_policy_with_its_probabilities(wrap):
  image = noise(25 * 9 + 8, 10)
  counts = run_all(
    lambda x, s: autoaugment.auto_augment(x, s, wrap_solarize=wrap),
    20_000,
    image,
  )
  outcomes = collections.Counter()
  words = np.reshape(POLICY.split(), (25, 2, 3))
  for row in words:
    steps = []
    for name, probability, magnitude in row:
      probability = float(probability)
      runs = dict(variants(int(magnitude), wrap, translate=25))[name]
      step = [(run, probability / len(runs)) for run in runs]
      steps.append([*step, (None, 1 - probability)])
    add_outcomes(outcomes, image, 1 / 25, steps)
  assert sum(outcomes.values()) == pytest.approx(1)
  assert counts.keys() <= outcomes.keys()
  check_frequencies(counts, outcomes)


@pytest.mark.parametrize(
  'augment',
  [
    lambda x, s: autoaugment.rand_augment(x, s, 3, 7),
    autoaugment.auto_augment,
  ],
)
def test_results_follow_from_the_seed_however_they_are_computed(
  augment, monkeypatch
):
  seeds = [np.array([3, i]) for i in range(40)]
  eager = [augment(NOISE, seed).numpy() for seed in seeds]
  assert len({x.tobytes() for x in eager}) > 10

  def check(run):
    for seed, expected in zip(seeds, eager, strict=True):
      np.testing.assert_array_equal(run(NOISE, seed), expected)

  check(augment)
  check(tf.function(augment))
  signature = [
    tf.TensorSpec([None, None, 3], tf.uint8),
    tf.TensorSpec([2], tf.int64),
  ]
  check(tf.function(augment, input_signature=signature))
  monkeypatch.setattr(autoaugment, '_can_compile', lambda: False)
  check(tf.function(lambda x, s: augment(x, s)))


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
  assert output.split() == [digest(), '--xla_not_a_flag=1']


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
