"""A drawing becomes a digit like those of the dataset."""

import base64
import io

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from nfnets.inference.demo import sketch, uploads


def as_message(ink, kind='png'):
  """Returns what the page sends for a drawing, black on white."""
  content = io.BytesIO()
  Image.fromarray(np.uint8(255 - 255 * ink)).save(content, kind)
  return sketch._PREFIX + base64.b64encode(content.getvalue()).decode()


def test_drawing_of_a_digit_is_that_digit():
  # As a drawing, each of a digit's pixels is as large a square as it is bright.
  for digit in datasets.load_digits().images[:20]:
    sides = np.round(np.sqrt(digit / 16) * 20).astype(int)
    ink = np.zeros((280, 280), np.uint8)
    for (y, x), side in np.ndenumerate(sides):
      top, left = 50 + 20 * y + (20 - side) // 2, 60 + 20 * x + (20 - side) // 2
      ink[top : top + side, left : left + side] = 1
    found = sketch.read(as_message(ink))
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    likeness = [
      np.corrcoef(found[..., 0].ravel(), np.roll(digit, (y, x), (0, 1)).ravel())
      for y in (-1, 0, 1)
      for x in (-1, 0, 1)
    ]
    assert max(x[0, 1] for x in likeness) > 0.8


def test_ink_is_counted_in_cells_in_the_middle():
  # A bar twice as high as wide fills the height, and half of the width.
  ink = np.zeros((200, 300), np.uint8)
  ink[20:84, 100:132] = 1
  want = np.zeros((8, 8), np.uint8)
  want[:, 2:6] = 255
  found = sketch.read(as_message(ink))
  np.testing.assert_array_equal(found, np.stack([want] * 3, axis=-1))


@pytest.mark.parametrize(
  'value',
  [
    *(None, '', 3, 'https://example.com/', 'data:text/html;base64,AAAA'),
    *(sketch._PREFIX + '?', sketch._PREFIX + 'AAAA', sketch._PREFIX),
    as_message(np.zeros((280, 280))),
  ],
)
def test_what_is_no_drawing_is_refused(value):
  with pytest.raises(uploads.UploadError):
    sketch.read(value)


def test_only_networks_of_digits_get_a_sketch_pad():
  digits = tuple('0123456789')
  assert sketch.is_for('nfnet_digits', digits)
  assert sketch.is_for('nfnet_digits', None)
  assert not sketch.is_for('nfnet_digits', ('cat', 'dog'))
  assert not sketch.is_for('nfnet_f0', None)
