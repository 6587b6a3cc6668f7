"""Tests of the image preprocessings."""

import math
import pathlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from nfnets.data import preprocess

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
JPEG = (GOLDEN / 'image_210x150.jpg').read_bytes()
MODES = (
  'crop_resize',
  'resize_crop_32',
  'resize_crop_0.9',
  'resize_crop_1',
  'center_crop_0.9',
)


@pytest.mark.parametrize('mode', MODES[:3])
def test_eval_agrees_with_the_published_preprocessing(mode):
  with np.load(GOLDEN / 'golden_eval_preprocess.npz') as golden:
    expected = golden[f'{mode}@64']
    normalized = golden[f'{mode}@64_normalized']
  image = preprocess.preprocess_eval(JPEG, (64, 64), mode).numpy()
  np.testing.assert_allclose(image, expected, atol=0.255)
  image = preprocess.normalize(image)
  np.testing.assert_allclose(image, normalized, atol=0.005)


def crop_with_pillow(pixels, size, part):
  """Resizes the shorter side to size / part and takes the centre.

  Returns the image as Pillow makes it of bytes, rounded between its two passes,
  and as it makes it of float32.
  """
  height, width = pixels.shape[:2]
  short = math.floor(size / part)
  resized = [int(short * side / min(height, width)) for side in (width, height)]
  left, top = (round((side - size) / 2) for side in resized)

  def crop(image):
    image = image.resize(resized, PIL.Image.Resampling.BICUBIC)
    return np.asarray(image)[top : top + size, left : left + size]

  channels = [
    crop(PIL.Image.fromarray(channel.astype(np.float32)))
    for channel in np.moveaxis(pixels, 2, 0)
  ]
  return crop(PIL.Image.fromarray(pixels)), np.stack(channels, axis=-1)


@pytest.mark.parametrize('size', [33, 64, 97, 200])
@pytest.mark.parametrize('part', ['0.9', '.94', '1', '1.0'])
@pytest.mark.parametrize('shape', ['wide', 'high', 'small'])
def test_center_crop_agrees_with_pillow(size, part, shape):
  pixels = tf.io.decode_jpeg(JPEG).numpy()
  if shape == 'high':
    pixels = pixels.transpose(1, 0, 2).copy()
  elif shape == 'small':
    pixels = pixels[50:91, 30:72].copy()
  mode = f'center_crop_{part}'
  image = preprocess.preprocess_eval(pixels, (size, size), mode).numpy()
  rounded, exact = crop_with_pillow(pixels, size, float(part))
  np.testing.assert_allclose(image, exact.clip(0, 255), atol=0.02)
  # Rounding to whole numbers alone is 0.25 off on average.
  assert np.abs(image - rounded).mean() < 0.35


def test_center_crop_covers_a_size_that_is_not_square():
  pixels = tf.io.decode_jpeg(JPEG).numpy()  # 150 by 210.
  image = preprocess.preprocess_eval(pixels, (60, 20), 'center_crop_0.5')
  resized = PIL.Image.fromarray(pixels).resize(
    (168, 120), PIL.Image.Resampling.BICUBIC
  )
  expected = np.asarray(resized)[30:90, 74:94]
  assert np.abs(image.numpy() - expected).mean() < 0.35


@pytest.mark.parametrize('mode', MODES)
def test_eval_reads_png_and_arrays_like_the_jpeg(mode):
  pixels = tf.io.decode_jpeg(JPEG)
  jpeg, png, array = (
    preprocess.preprocess_eval(image, (40, 40), mode).numpy()
    for image in (JPEG, tf.io.encode_png(pixels).numpy(), pixels.numpy())
  )
  np.testing.assert_array_equal(png, array)
  # A JPEG decoder interpolates colours a little differently along a crop.
  np.testing.assert_array_equal(jpeg[1:-1, 1:-1], png[1:-1, 1:-1])
  np.testing.assert_allclose(jpeg, png, atol=8)


@pytest.mark.parametrize(
  'shape', [(1, 1, 1), (1, 1, 3), (3, 200, 3), (90, 2, 1)]
)
@pytest.mark.parametrize(
  'encode', [tf.io.encode_jpeg, tf.io.encode_png, lambda x: x]
)
def test_grey_and_odd_and_tiny_images_come_out_in_size(shape, encode):
  image = encode(np.full(shape, 77, np.uint8))
  args = (32, 24), tf.constant([1, 2], tf.int64)
  for result in (
    *(preprocess.preprocess_eval(image, (32, 24), m) for m in MODES),
    preprocess.train_crop_flip(image, *args),
    preprocess.train_shift(image, *args, 0),
  ):
    assert result.shape == (32, 24, 3)
    np.testing.assert_allclose(result, 77, atol=1)


@pytest.mark.parametrize(
    'mode',
    ['', 'squish', 'resize_crop', 'resize_crop_0', 'resize_crop_1.5', 'flip',
     'resize_crop_-3', 'resize_crop_32 ', 'center_crop', 'shift', 'shift_-1',
     'center_crop_0', 'center_crop_32', 'center_crop_1.5', 'center_crop_0.9%'],
)  # fmt: skip
def test_unknown_modes_are_refused_with_the_known_ones(mode):
  with pytest.raises(ValueError, match="'crop_resize', .* or 'center_crop_P'"):
    preprocess.preprocess_eval(JPEG, (64, 64), mode)
  with pytest.raises(ValueError, match="'crop_flip' or 'shift_K'"):
    preprocess.train_preprocessing(mode, (64, 64))


def test_float_image_is_refused():
  with pytest.raises(TypeError, match='uint8, not of float32'):
    preprocess.preprocess_eval(
      np.zeros((8, 8, 3), np.float32), (8, 8), MODES[0]
    )


def test_random_crops_keep_to_their_limits_and_spread_over_them():
  window = tf.function(
    lambda seed: preprocess.random_window(
      tf.constant([300, 400]), (192, 192), seed
    )
  )
  windows = np.array([window(np.array([7, i])) for i in range(2000)])
  top, left, height, width = windows.T
  assert (windows >= 0).all()
  assert (top + height <= 300).all() and (left + width <= 400).all()
  area = height * width / (300 * 400)
  # From 0.1 on, because that much of the "object" has to be covered.
  assert 0.098 < area.min() < 0.11 and 0.9 < area.max() <= 1
  aspect = width / height
  assert 0.74 < aspect.min() < 0.78 and 1.3 < aspect.max() < 1.35
  # The aspect ratio is uniform, and the height uniform in what then fits.
  rng = np.random.default_rng(0)
  ratio = rng.uniform(3 / 4, 4 / 3, 20_000)
  highest = np.minimum(300, 400 / ratio)
  expected = rng.uniform(np.sqrt(0.08 * 300 * 400 / ratio), highest)
  covered = expected**2 * ratio / (300 * 400)
  covered = covered[covered >= 0.1]
  assert abs(area.mean() - covered.mean()) < 0.015
  assert abs(area.std() - covered.std()) < 0.015
  assert abs(aspect.mean() - ratio.mean()) < 0.02
  assert abs(np.mean(top / np.maximum(300 - height, 1)) - 0.5) < 0.05


def test_crop_that_fails_falls_back_to_the_centre_crop():
  # No crop of this strip has an aspect ratio of 3/4 to 4/3 and 8 % of it.
  strip = np.random.default_rng(0).integers(0, 255, (8, 400, 3)).astype('uint8')
  crop = preprocess.train_crop_flip(strip, (16, 16), np.array([1, 2]))
  centre = preprocess.preprocess_eval(strip, (16, 16), 'crop_resize').numpy()
  same = np.allclose(crop, centre, atol=1e-2)
  assert same or np.allclose(crop, centre[:, ::-1], atol=1e-2)


def test_half_of_the_images_are_flipped():
  # A ramp that rises from left to right in every crop of it.
  ramp = np.tile(
    np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (90, 1, 3)
  )
  crop = tf.function(lambda s: preprocess.train_crop_flip(ramp, (8, 8), s))
  crops = np.array([crop(np.array([5, i])) for i in range(1000)])
  flipped = crops[:, 4, 0, 0] > crops[:, 4, -1, 0]
  assert 0.45 < flipped.mean() < 0.55


def test_crops_are_resized_without_antialiasing():
  # Two pixels of every eight are white. Sampling gives full contrast where an
  # average would give grey.
  stripes = np.zeros((128, 128, 3), np.uint8)
  stripes[:, 3::8] = stripes[:, 4::8] = 255
  small = preprocess.preprocess_eval(stripes, (16, 16), 'resize_crop_1')
  assert small.numpy().min() > 250


def test_shifts_are_uniform_and_leave_black_behind():
  size, pixels = 16, 3
  white = np.full((size, size, 1), 255, np.uint8)
  shift = tf.function(
    lambda s: preprocess.train_shift(white, (size, size), s, pixels)
  )
  seen = set()
  for i in range(600):
    image = shift(np.array([3, i])).numpy()
    rows = np.flatnonzero(image[:, size // 2, 0])
    columns = np.flatnonzero(image[size // 2, :, 0])
    dy = rows[0] if rows[0] else rows[-1] - size + 1
    dx = columns[0] if columns[0] else columns[-1] - size + 1
    seen.add((int(dy), int(dx)))
    assert image.sum() == 3 * 255 * (size - abs(dy)) * (size - abs(dx))
  shifts = range(-pixels, pixels + 1)
  assert seen == {(dy, dx) for dy in shifts for dx in shifts}
