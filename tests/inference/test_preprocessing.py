"""The preprocessing in NumPy, beside TensorFlow's."""

import io

import golden_lib
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from nfnets.data import preprocess
from nfnets.inference import preprocessing

JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()
MODES = (
  'crop_resize',
  'resize_crop_32',
  'resize_crop_1',
  'resize_crop_0.875',
  'center_crop_0.9',
  'center_crop_1',
)


def encoded(**options):
  file = io.BytesIO()
  Image.open(io.BytesIO(JPEG)).save(file, 'JPEG', **options)
  return file.getvalue()


@pytest.mark.parametrize('mode', MODES)
def test_arrays_give_what_tensorflow_gives(mode):
  rng = np.random.default_rng(0)
  for shape in ((37, 53, 3), (300, 20, 3), (1, 1, 3), (90, 70, 1)):
    image = rng.integers(0, 256, shape, np.uint8)
    for size in ((32, 32), (33, 96)):
      actual = preprocessing.preprocess_eval(image, size, mode)
      expected = preprocess.preprocess_eval(image, size, mode)
      assert actual.dtype == np.float32
      np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_encoded_images_give_what_tensorflow_gives():
  png = io.BytesIO()
  Image.open(io.BytesIO(JPEG)).save(png, 'PNG')
  images = [JPEG, png.getvalue(), encoded(quality=30, progressive=True)]
  images += [encoded(subsampling=n) for n in (0, 1, 2)]
  for mode in MODES[:3]:
    for image in images:
      actual = preprocessing.preprocess_eval(image, (64, 48), mode)
      expected = preprocess.preprocess_eval(image, (64, 48), mode)
      np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_jpegs_that_are_a_little_damaged_give_what_tensorflow_gives():
  rng = np.random.default_rng(0)
  read = 0
  for _ in range(40):
    damaged = bytearray(JPEG)
    start = rng.integers(len(JPEG) // 2, len(JPEG) - 50)
    del damaged[start : start + rng.integers(1, 40)]
    image = tf.constant(bytes(damaged))
    try:
      expected = preprocess.preprocess_eval(image, (32, 32), 'resize_crop_1')
    except tf.errors.OpError:
      continue
    actual = preprocessing.preprocess_eval(
      bytes(damaged), (32, 32), 'resize_crop_1'
    )
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    read += 1
  assert read > 20


def test_without_tensorflow_only_the_edges_of_a_crop_may_differ(monkeypatch):
  # Of the size of the crop, so that no pixel is mixed with others.
  image, size = encoded(subsampling=2), (118, 118)
  expected = preprocess.preprocess_eval(image, size, 'crop_resize')
  monkeypatch.setattr(preprocessing, '_has_tensorflow', lambda: False)
  actual = preprocessing.preprocess_eval(image, size, 'crop_resize')
  difference = np.abs(actual - expected)
  np.testing.assert_allclose(difference[2:-2, 2:-2], 0, atol=1e-3)
  assert 0 < difference.max() < 20


def test_what_is_no_image_is_refused():
  for image, mode, error in (
    (np.zeros((4, 4, 3)), 'crop_resize', r'uint8 or uint16.*not float64 \['),
    (np.zeros((3, 4, 5), np.uint8), 'crop_resize', r'not uint8 \[3, 4, 5\]'),
    (np.zeros((0, 4, 3), np.uint8), 'crop_resize', r'not uint8 \[0, 4, 3\]'),
    (np.zeros((4, 4, 3), np.uint8), 'crop', 'crop_resize'),
    (b'text', 'crop_resize', 'not an image'),
  ):
    with pytest.raises(ValueError, match=error):
      preprocessing.preprocess_eval(image, (32, 32), mode)
