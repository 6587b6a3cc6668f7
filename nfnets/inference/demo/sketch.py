"""A drawing as one of scikit-learn's digits: 8x8 pixels, grey on black."""

import base64
import binascii
from typing import Any

import numpy as np
from PIL import Image

from nfnets.inference.demo import uploads

_PREFIX = 'data:image/png;base64,'
_SIDE = 32  # Of the bitmaps that the digits were made from.
_CELL = 4  # Of a bitmap; its pixels are counted, which makes a grey value.
_INK = 128


def is_for(name: str, class_names: tuple[str, ...] | None) -> bool:
  """Returns whether a network knows digits, as far as one can tell."""
  digits = tuple('0123456789')
  return name == 'nfnet_digits' and (class_names or digits) == digits


def read(value: Any) -> np.ndarray:
  """Returns a drawing as the digits of the dataset are, uint8 [8, 8, 3].

  The ink's box is made 32 pixels high or wide and put in the middle of a
  bitmap, whose cells of 4x4 pixels are counted.

  Args:
    value: a PNG as a data: URL, dark on light; the message of a browser.

  Raises:
    UploadError: if there is no ink, or it is something else.
  """
  if not isinstance(value, str) or not value.startswith(_PREFIX):
    raise uploads.UploadError('Draw a digit first.')
  try:
    content = base64.b64decode(value.removeprefix(_PREFIX), validate=True)
  except binascii.Error as error:
    raise uploads.UploadError('This drawing is damaged.') from error
  pixels = uploads.decode(content)
  ink = Image.fromarray(pixels).convert('L').point(lambda x: 255 * (x < _INK))
  box = ink.getbbox()
  if box is None:
    raise uploads.UploadError('Draw a digit first.')
  return from_ink(np.asarray(ink.crop(box)))


def from_ink(ink: np.ndarray) -> np.ndarray:
  """Returns the digit of a drawing, 255 where there is ink, [h, w]."""
  h, w = ink.shape
  scale = _SIDE / max(h, w)
  h, w = max(round(h * scale), 1), max(round(w * scale), 1)
  small = np.asarray(Image.fromarray(ink).resize((w, h))) >= _INK
  bitmap = np.zeros((_SIDE, _SIDE), bool)
  top, left = (_SIDE - h) // 2, (_SIDE - w) // 2
  bitmap[top : top + h, left : left + w] = small
  cells = bitmap.reshape(_SIDE // _CELL, _CELL, -1, _CELL).sum(axis=(1, 3))
  grey = np.uint8(np.round(cells * (255 / _CELL**2)))
  return np.repeat(grey[..., None], 3, axis=-1)
