"""Names and pictures on the page."""

import types

import numpy as np
from PIL import Image
import pytest
import quick_lib

from nfnets.errors import ImageError
from nfnets.inference import networks
from nfnets.inference.demo import answers, page


def test_names_that_are_the_same_get_numbers():
  names = ['crane', 'a\nb', 'crane', 'cat']
  assert answers.distinct(names) == [
    *('crane (0)', 'a\\nb', 'crane (2)', 'cat')
  ]


def test_what_has_no_answer_is_refused_in_a_sentence():
  model, params = quick_lib.digits()
  asked = answers.Answers(networks.of(model, params, {}), ['x'] * 10)
  # What `pictures.read` has let through: Pillow may decode what others do not.
  with pytest.raises(ImageError) as caught:
    asked.see(b'\xff\xd8\xff\xe0 and no more \xff\xd9')
  assert page.sentence(caught.value).startswith('This file cannot be decoded: ')
  network = types.SimpleNamespace(
    image_size=32,
    preprocess=np.float32,
    logits=lambda x: np.full((1, 2), np.nan),
  )
  with pytest.raises(ImageError) as caught:
    answers.Answers(network, ['a', 'b']).see(np.zeros((32, 32, 3)))
  assert 'This file has no answer: the network' in page.sentence(caught.value)


def test_picture_is_what_was_normalized():
  model, params = quick_lib.digits()
  asked = answers.Answers(networks.of(model, params, {}), ['x'] * 10)
  pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  shown = asked.picture(asked.network.normalize(pixels))
  assert shown.shape == (256, 256, 3)
  np.testing.assert_array_equal(shown[4::8, 4::8], pixels)


def test_heat_goes_from_the_darkest_to_the_lightest_colour():
  values, nearest = np.array([[0.0, 2.0], [8.0, 4.0]]), Image.Resampling.NEAREST
  shown = answers.heat(values, 4, nearest)
  assert shown.shape == (4, 4, 3)
  corners = shown[0, 0], shown[0, 3], shown[3, 3], shown[3, 0]
  np.testing.assert_array_equal(corners, answers._COLOURS[[0, 1, 2, 4]])
  same = answers.heat(np.full((2, 2), 7.0), 4, nearest)
  assert (same == answers._COLOURS[0]).all()
