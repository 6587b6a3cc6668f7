"""Pictures: which files they are, and reading whatever Pillow reads."""

import contextlib
import functools
import glob
import io
import os
import stat
import threading
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from nfnets import messages
from nfnets import paths as paths_lib
from nfnets.errors import ImageError

with contextlib.suppress(ImportError):
  import pillow_heif

  pillow_heif.register_heif_opener()

# Formats that Pillow knows by name and cannot decode.
_STUBS = frozenset({'BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF'})

# Formats that people have and Pillow does not read, at least by itself.
_HEIC = (
  'a HEIC picture, which needs the package pillow-heif: pip install ".[heic]" '
  'in the folder of this project, or convert it to JPEG'
)
_SVG = 'an SVG drawing, which has no pixels: convert it to PNG'
_UNREADABLE = {'.heic': _HEIC, '.heif': _HEIC, '.hif': _HEIC, '.svg': _SVG}
_HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'mif1', b'msf1')
_HEAD = 4096  # Bytes in which an SVG drawing has its first tag.
# Files and folders that systems put beside pictures, in lower case: thumbnails,
# bins, snapshots and settings.
_IGNORED = frozenset(
  {
    '__macosx',
    '@eadir',
    '#recycle',
    '@recycle',
    '@recently-snapshot',
    '$recycle.bin',
    'system volume information',
    'lost+found',
    'thumbs.db',
    'desktop.ini',
  }
)

# Images of more pixels than this are decoded one at a time: one takes 200 MB
# and more.
LARGE_PIXELS = 64_000_000
_ALONE = threading.RLock()

# {EXIF orientation: transposition that turns the image upright}.
# (ImageOps.exif_transpose also rewrites EXIF data, and fails if it is odd.)
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
_FILLING = bytes(range(1, 255)) * 8
# Markers of EXIF data in a PNG.
_EXIF_IN_PNG = (b'eXIf', b'Raw profile type exif')


def is_image_name(name: str) -> bool:
  """Return whether the suffix of a file's name is that of an image."""
  suffix = os.path.splitext(name)[1].lower()
  return suffix in _suffixes() or suffix in _UNREADABLE


def why_unreadable(name: str) -> str | None:
  """Return what to do about a format that is not read, by a file's name."""
  suffix = os.path.splitext(name)[1].lower()
  return None if suffix in _suffixes() else _UNREADABLE.get(suffix)


def identify_unreadable(head: bytes) -> str | None:
  """Return the same by the beginning of a file that Pillow does not read."""
  if head[4:8] == b'ftyp' and head[8:12] in _HEIC_BRANDS:
    return _HEIC
  head = head[:_HEAD].lower()
  return _SVG if b'<svg' in head and b'<html' not in head else None


def is_ignored_name(name: str) -> bool:
  """Return whether a file or folder is never a picture, a class or a list."""
  return name.startswith('.') or name.lower() in _IGNORED


def alone(num_pixels: int) -> Any:
  """Return a context that one thread at a time enters with a large image."""
  if num_pixels > LARGE_PIXELS:
    return _ALONE
  return contextlib.nullcontext()


@functools.cache
def _suffixes() -> frozenset[str]:
  kinds = Image.registered_extensions().items()
  return frozenset(
    suffix
    for suffix, kind in kinds
    if kind in Image.OPEN and kind not in _STUBS
  )


def read(
  image: str | os.PathLike[str] | bytes | Image.Image | np.ndarray,
  check: bool = True,
) -> bytes | np.ndarray:
  """Read a picture: the same pixels for every command and for training.

  Pictures are turned as their EXIF orientation says. Transparent ones are laid
  on white. 16 bits are scaled to 8. Of several frames the first is taken.

  Args:
    image: a path; an encoded file; an image of Pillow; or uint8 or uint16
      pixels, [H, W] or [H, W, C] with 1 channel (grey), 2 (grey and alpha), 3
      (RGB) or 4 (RGB and alpha).
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
  if isinstance(image, str | os.PathLike):
    return read_image(os.fspath(image), check)
  if isinstance(image, bytes):
    return decode(io.BytesIO(image), check)
  if isinstance(image, Image.Image):
    return _pixels(image)
  pixels = np.asarray(image)
  channels = pixels.shape[2] if pixels.ndim == 3 else 1
  is_picture = pixels.size and pixels.ndim in (2, 3) and 1 <= channels <= 4
  if pixels.dtype not in (np.uint8, np.uint16) or not is_picture:
    raise ImageError(
      'expected is an encoded picture, a path, or uint8 or uint16 pixels, '
      '[H, W] or [H, W, 1 to 4] (grey, grey and alpha, RGB, RGB and alpha), '
      f'not {pixels.dtype} {list(pixels.shape)}'
    )
  if pixels.dtype == np.uint16:
    pixels = np.uint8(pixels >> 8)
  if channels == 1:
    pixels = pixels.reshape(pixels.shape[:2])
  return pixels if channels == 3 else _pixels(Image.fromarray(pixels))


def read_image(path: str, check: bool = True) -> bytes | np.ndarray:
  """Read a file; see `read`."""
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
  except OSError as error:
    is_pattern = isinstance(error, FileNotFoundError) and glob.has_magic(path)
    pattern = ', nor any that matches' if is_pattern else ''
    raise ImageError(f'{messages.one_line(error)}{pattern}') from error


def is_plain(content: bytes) -> bool:
  """Return whether TensorFlow decodes an image as `decode` would have it.

  So it is for the JPEGs that `decode` leaves encoded, and for PNGs of grey or
  RGB without transparency. Only the header is looked at, so the rest may be
  damaged; for what is no image it is false.
  """
  try:
    with Image.open(io.BytesIO(content), formats=('JPEG', 'PNG')) as image:
      if image.format != 'PNG':
        return _is_plain_jpeg(image) and content.endswith(_END_OF_JPEG)
      # Wherever EXIF data are: Pillow would have to decode the image to tell.
      has_exif = any(mark in content for mark in _EXIF_IN_PNG)
      is_opaque = not image.has_transparency_data
      return image.mode in ('L', 'RGB') and is_opaque and not has_exif
  except Exception:  # Decoders raise many kinds; `decode` says what is wrong.
    return False


def num_pixels(file: BinaryIO) -> int:
  """Return how many pixels an image file says it has; 0 if it is none."""
  try:
    with Image.open(file) as image:
      return image.width * image.height
  except Exception:  # Decoders raise many kinds; `decode` says what is wrong.
    return 0


def has_right_checksums(content: bytes) -> bool:
  """Return whether the checksums of a PNG are right; some do not check."""
  try:
    with Image.open(io.BytesIO(content)) as image:
      image.verify()
  except Exception:  # Decoders raise many kinds.
    return False
  return True


def decode(
  file: BinaryIO, check: bool = True, keep_jpeg: bool = True
) -> bytes | np.ndarray:
  """Decode an image file that is open; see `read`.

  Args:
    file: the file.
    check: see `read`.
    keep_jpeg: whether a plain JPEG is returned encoded.
  """
  try:
    with Image.open(file) as image, alone(image.width * image.height):
      if check or image.format != 'JPEG':
        image.load()
      if keep_jpeg and _is_plain_jpeg(image):
        file.seek(0)
        encoded = file.read()
        if encoded.endswith(_END_OF_JPEG):
          if check and _is_cut_short(image, encoded):
            raise ImageError('cannot be decoded: its data end too early')
          return encoded
      return _pixels(image)
  except ImageError:
    raise
  except UnidentifiedImageError as error:
    file.seek(0)
    head = file.read(_HEAD)
    what = identify_unreadable(head) or 'not an image that Pillow reads'
    raise ImageError(what if head else 'an empty file') from error
  # Damaged data lead Pillow's many decoders into all kinds of exceptions.
  except Exception as error:
    reason = messages.one_line(error).rstrip('.')
    raise ImageError(f'cannot be decoded: {reason}') from error


def _turn(image: Image.Image) -> Image.Transpose | None:
  return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))


def _is_plain_jpeg(image: Image.Image) -> bool:
  # TensorFlow prints a warning of other versions, each time.
  has_known_version = image.info.get('jfif_version', (1, 1))[0] == 1
  is_jpeg = image.format == 'JPEG' and image.mode != 'CMYK'
  return is_jpeg and has_known_version and _turn(image) is None


def _is_cut_short(image: Image.Image, encoded: bytes) -> bool:
  """Return whether a decoded JPEG lacks data in front of its end.

  Decoders make grey of it, and some of them print a warning each time.
  """
  corner = image.width - 1, image.height - 1
  if set(np.atleast_1d(image.getpixel(corner)).tolist()) != {128}:
    return False
  # If the data are all there, nothing decodes what follows them.
  longer = encoded.removesuffix(_END_OF_JPEG) + _FILLING + _END_OF_JPEG
  with Image.open(io.BytesIO(longer)) as other:
    return not np.array_equal(np.asarray(other), np.asarray(image))


def _pixels(image: Image.Image) -> np.ndarray:
  turn, rgb = _turn(image), _to_rgb(image)
  return np.asarray(rgb if turn is None else rgb.transpose(turn))


def _to_rgb(image: Image.Image) -> Image.Image:
  """Return an image of any mode as 'RGB'."""
  if image.mode == 'F' or image.mode.startswith('I'):
    image = _to_8_bits(image)
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return image.convert('RGB')


def _to_8_bits(image: Image.Image) -> Image.Image:
  """Scale grey of 16 bits, which Pillow would clip at 255."""
  pixels = np.asarray(image)
  # These formats' 16 bits come as 'I', 32-bit integers.
  is_widened = image.mode == 'I' and image.format in ('PNG', 'PPM')
  if not (is_widened or image.mode.startswith('I;16')):
    raise ImageError(
      'has 32 bits per channel, and nothing says which values are black and '
      'white; save it with 8 or 16 bits'
    )
  return Image.fromarray(np.uint8(pixels >> 8))
