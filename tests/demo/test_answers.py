"""Names and pictures on the page."""

import base64
import io

import numpy as np
from PIL import Image
import pytest
import quick_lib

from nfnets import imagenet
from nfnets.inference import networks
from nfnets.inference.demo import answers, pictures, uploads


def test_names_that_are_the_same_get_numbers():
  names = ['crane', 'a\nb', 'crane', 'cat']
  assert answers.distinct(names) == [
    *('crane (0)', 'a\\nb', 'crane (2)', 'cat')
  ]


def test_jpeg_with_damaged_data_is_refused_in_a_sentence():
  model, params = quick_lib.digits()
  asked = answers.Answers(networks.of(model, params, {}), ['x'] * 10)
  # What `uploads.read` has let through: Pillow may decode what others do not.
  with pytest.raises(uploads.UploadError, match='damaged JPEG data'):
    asked.see(b'\xff\xd8\xff\xe0 and no more \xff\xd9')


def test_picture_is_what_was_normalized():
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  image = imagenet.normalize(np.float32(pixels), imagenet.MEAN, imagenet.STD)
  np.testing.assert_array_equal(
    pictures.from_network(image, imagenet.MEAN, imagenet.STD), pixels
  )


def test_heat_goes_from_the_darkest_to_the_lightest_colour():
  shown = pictures.heat(np.array([[0.0, 2.0], [8.0, 4.0]]), 4, is_smooth=False)
  assert shown.shape == (4, 4, 3)
  assert tuple(shown[0, 0]) == pictures._COLOURS[0]
  assert tuple(shown[0, 3]) == pictures._COLOURS[1]
  assert tuple(shown[3, 3]) == pictures._COLOURS[2]
  assert tuple(shown[3, 0]) == pictures._COLOURS[4]
  same = pictures.heat(np.full((2, 2), 7.0), 4)
  assert (same == pictures._COLOURS[0]).all()


def test_picture_stands_in_the_page_unchanged():
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  kind, _, content = pictures.data_url(pixels).partition(',')
  assert kind == 'data:image/png;base64'
  image = Image.open(io.BytesIO(base64.b64decode(content)))
  np.testing.assert_array_equal(np.asarray(image), pixels)
