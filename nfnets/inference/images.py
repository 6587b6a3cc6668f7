"""Image files: those in a folder, and decoding whatever Pillow reads."""

import functools
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


def find_images(*paths: str) -> list[str]:
  """Returns the images that paths stand for.

  In a folder these are the files, sorted, at any depth, whose suffix is that of
  an image. Hidden files and folders and links to folders are left out.

  Args:
    *paths: files, which need not exist, and folders; here or as gs://.

  Returns:
    Paths that begin with those that were given. Folders that cannot be listed,
    and those without images, are among them: `read_image` says what is wrong.

  Raises:
    OSError: if a bucket cannot be listed.
    PathError: for other schemes.
  """
  return [image for path in paths for image in _find(path)]


def _find(path: str) -> list[str]:
  if paths_lib.is_remote(path):
    names = paths_lib.names(path)
    return [
      f'{path.rstrip("/")}/{name}' for name in names if _is_shown(name)
    ] or [path]
  paths_lib.path(path)  # Refuses other schemes.
  if not os.path.isdir(path):
    return [path]
  found, errors = [], []
  for folder, folders, names in os.walk(path, onerror=errors.append):
    folders[:] = [name for name in folders if not name.startswith('.')]
    found += [
      os.path.join(folder, name)
      for name in names
      if not name.startswith('.') and is_image_name(name)
    ]
  found += [error.filename for error in errors]
  return sorted(found) or [path]


def _is_shown(name: str) -> bool:
  """Tells whether a file in a bucket is an image that is not hidden."""
  return is_image_name(name) and not any(
    part.startswith('.') for part in name.split('/')
  )


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


def read_image(path: str) -> bytes | np.ndarray:
  """Reads an image as `nfnets.Model.preprocess` takes it.

  Images are turned as their EXIF orientation says. Transparent ones are laid on
  white. 16-bit grey is scaled to 8 bits. Of several frames the first is taken.

  Args:
    path: a file.

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
      return decode(io.BytesIO(paths_lib.read_bytes(path)))
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
      os.listdir(path)
      raise ImageError('no image in this folder')
    if not stat.S_ISREG(mode):  # Opening a pipe would wait for its other end.
      raise ImageError('not a file')
    with open(path, 'rb') as file:
      return decode(file)
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


def decode(file: BinaryIO) -> bytes | np.ndarray:
  """Decodes an image file that is open; see `read_image`."""
  try:
    with Image.open(file) as image:
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
