"""Image files: which they are, and decoding whatever Pillow reads."""

import functools
import glob
import io
import os
import stat
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from nfnets import paths as paths_lib

# Formats that Pillow knows by name and cannot decode.
_STUBS = frozenset({'BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF'})

# What turns an image upright, by its EXIF orientation. (ImageOps.exif_transpose
# also writes EXIF data anew, and fails where these are odd.)
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# TensorFlow decodes no JPEG without it.
_END_OF_JPEG = b'\xff\xd9'
# What begins EXIF data in a PNG.
_EXIF_IN_PNG = (b'eXIf', b'Raw profile type exif')


class ImageError(ValueError):
  """An image cannot be read; the message says why, without its path."""


def is_image_name(name: str) -> bool:
  """Returns whether the suffix of a file's name is that of an image."""
  return os.path.splitext(name)[1].lower() in _suffixes()


@functools.cache
def _suffixes() -> frozenset[str]:
  kinds = Image.registered_extensions().items()
  return frozenset(
    suffix
    for suffix, kind in kinds
    if kind in Image.OPEN and kind not in _STUBS
  )


def read_image(path: str, check: bool = True) -> bytes | np.ndarray:
  """Reads an image as `nfnets.Model.preprocess` takes it.

  Images are turned as their EXIF orientation says. Transparent ones are laid on
  white. 16-bit grey is scaled to 8 bits. Of several frames the first is taken.

  Args:
    path: a file.
    check: whether to decode what is returned encoded, to see if it is damaged.

  Returns:
    uint8 [H, W, 3]. A JPEG that needs none of the above is returned encoded, as
    the published preprocessing has a decoder of its own, whose pixels differ
    from Pillow's by up to about 6 of 255.

  Raises:
    ImageError: if this is no image, a damaged one, one of more than
      `2 * PIL.Image.MAX_IMAGE_PIXELS` pixels, or one whose pixels have no
      known range (32 bits per channel).
  """
  try:
    if paths_lib.is_remote(path):
      return decode(io.BytesIO(paths_lib.read_bytes(path)), check)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
      os.listdir(path)
      raise ImageError('no image in this folder')
    if not stat.S_ISREG(mode):  # Opening a pipe would wait for its other end.
      raise ImageError('not a file')
    with open(path, 'rb') as file:
      return decode(file, check)
  except FileNotFoundError as error:
    pattern = ', nor any that matches' if glob.has_magic(path) else ''
    raise ImageError(f'{error.strerror}{pattern}') from error
  except OSError as error:
    raise ImageError(error.strerror or str(error)) from error


def is_plain(content: bytes) -> bool:
  """Returns whether TensorFlow decodes an image as `decode` would have it.

  So it is for the JPEGs that `decode` leaves encoded, and for PNGs of grey or
  RGB without transparency. Only the header is looked at, so the rest may be
  damaged; for what is no image it is false.
  """
  try:
    with Image.open(io.BytesIO(content), formats=('JPEG', 'PNG')) as image:
      if image.format == 'PNG':
        is_opaque = not image.has_transparency_data
        return (
          image.mode in ('L', 'RGB')
          and is_opaque
          and not any(
            # Wherever it is: Pillow would have to decode the image to tell.
            mark in content
            for mark in _EXIF_IN_PNG
          )
        )
      return _is_plain_jpeg(image, _turn(image)) and content.endswith(
        _END_OF_JPEG
      )
  except Exception:  # As many kinds as in `decode`, which says what is wrong.
    return False


def decode(file: BinaryIO, check: bool = True) -> bytes | np.ndarray:
  """Decodes an image file that is open; see `read_image`."""
  try:
    with Image.open(file) as image:
      if check or image.format != 'JPEG':
        image.load()
      turn = _turn(image)
      if _is_plain_jpeg(image, turn):
        file.seek(0)
        encoded = file.read()
        if encoded.endswith(_END_OF_JPEG):
          return encoded
      rgb = _to_rgb(image)
      return np.asarray(rgb if turn is None else rgb.transpose(turn))
  except ImageError:
    raise
  except UnidentifiedImageError as error:
    what = 'not an image that Pillow reads' if file.tell() else 'an empty file'
    raise ImageError(what) from error
  # Damaged data lead Pillow's many decoders into all kinds of exceptions.
  except Exception as error:
    reason = ' '.join(str(error).split()).rstrip('.') or type(error).__name__
    raise ImageError(f'cannot be decoded: {reason}') from error


def _turn(image: Image.Image) -> Image.Transpose | None:
  return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))


def _is_plain_jpeg(image: Image.Image, turn: Image.Transpose | None) -> bool:
  return turn is None and image.format == 'JPEG' and image.mode != 'CMYK'


def _to_rgb(image: Image.Image) -> Image.Image:
  """Returns an image of any mode as 'RGB'."""
  if image.mode == 'F' or image.mode.startswith('I'):
    image = _to_8_bits(image)
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return image.convert('RGB')


def _to_8_bits(image: Image.Image) -> Image.Image:
  """Scales grey of 16 bits, which Pillow would clip at 255."""
  pixels = np.asarray(image)
  # These formats' 16 bits come as 'I', 32-bit integers.
  is_widened = image.mode == 'I' and image.format in ('PNG', 'PPM')
  if not (is_widened or image.mode.startswith('I;16')):
    raise ImageError(
      'has 32 bits per channel, and nothing says which values are black and '
      'white; save it with 8 or 16 bits'
    )
  return Image.fromarray(np.uint8(pixels >> 8))
