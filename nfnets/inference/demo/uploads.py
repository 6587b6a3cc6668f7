"""What is taken of a file that somebody has sent: little on trust."""

import io
import os
import pathlib
from typing import Any
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from nfnets.inference import images

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
# What cameras, screens and the web make. Pillow knows others, some of which
# start other programs.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'PPM')
_NAMES = 'JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF'


class UploadError(ValueError):
  """A file is not taken; the message says why, in a sentence."""


def find(payload: Any, folder: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the file that a browser names as the one that it has sent.

  Args:
    payload: the message, which may hold anything.
    folder: where uploads are.

  Raises:
    UploadError: if that is no file inside of the folder.
  """
  path = payload.get('path') if isinstance(payload, dict) else None
  if isinstance(path, str) and '\0' not in path:
    found = pathlib.Path(os.path.realpath(path))
    if found.is_relative_to(os.path.realpath(folder)) and found.is_file():
      return found
  raise UploadError('That file is not here any more; choose it again.')


def name(payload: Any) -> str:
  """Returns what a file was called where it comes from, shortened."""
  original = payload.get('orig_name') if isinstance(payload, dict) else None
  return original[-80:] if isinstance(original, str) else 'image'


def read(path: pathlib.Path) -> bytes | np.ndarray:
  """Reads an image as `nfnets.inference.images.read_image` does, within bounds.

  Raises:
    UploadError: for what is no image, or too large.
  """
  try:
    size = path.stat().st_size
    if size > MAX_BYTES:
      raise UploadError(
        f'This file has {size / 1e6:,.0f} MB; at most {MAX_BYTES / 1e6:.0f} MB '
        'are taken.'
      )
    content = path.read_bytes()
  except OSError as error:
    raise UploadError('That file is not here any more.') from error
  return decode(content)


def decode(content: bytes) -> bytes | np.ndarray:
  """Decodes an image; see `read`."""
  if not content:
    raise UploadError('This file is empty.')
  _check_size(content)
  try:
    return images.decode(io.BytesIO(content))
  except images.ImageError as error:
    raise UploadError(f'This image {_predicate(str(error))}.') from error


def _check_size(content: bytes) -> None:
  """Raises UploadError for what is no image or has too many pixels.

  Only the header is read, so that the memory for the pixels is never taken.
  """
  too_large = f'at most {MAX_PIXELS / 1e6:.0f} million pixels are taken.'
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        width, height = image.size
  except Image.DecompressionBombError as error:
    raise UploadError(f'This image is too large: {too_large}') from error
  except UnidentifiedImageError as error:
    raise UploadError(f'This is no image in {_NAMES}.') from error
  except Exception as error:  # As many kinds as in `images.decode`.
    raise UploadError('The beginning of this image is damaged.') from error
  if width * height > MAX_PIXELS:
    raise UploadError(
      f'This image has {width:,} × {height:,} pixels; {too_large}'
    )


def _predicate(reason: str) -> str:
  return reason if reason.startswith(('has ', 'cannot ')) else f'is {reason}'
