"""The pictures that come in: uploads, drawings, and test images of a run."""

from collections import Counter
import io
import os
import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from nfnets import messages, paths
from nfnets.errors import ImageError
from nfnets.inference import images

MAX_BYTES = 20_000_000  # The server refuses larger files.
_MAX_PIXELS = 50_000_000
# Formats of cameras, screens and the web. Some other formats of Pillow start
# external programs.
_FORMATS = ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'PPM']
_FORMATS += ['HEIF'] if 'HEIF' in Image.OPEN else []
_NAMES = 'JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC'
_MOST_READ = 100  # Test images, in search of one of each class.
# scikit-learn's digits are made from bitmaps of 32x32 pixels, in cells of 4x4.
_BITMAP, _CELL = 32, 4


def read(path: str) -> bytes | np.ndarray:
  """Read an image as `nfnets.inference.images.read` does, within bounds.

  The header is read first, so that the memory for too many pixels is not taken.

  Raises:
    ImageError: for what is no image, or too large.
  """
  content = pathlib.Path(path).read_bytes()
  limit = f'at most {_MAX_PIXELS / 1e6:.0f} million pixels are taken'
  try:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
      width, height = image.size
  except UnidentifiedImageError as error:
    what = images.identify_unreadable(content) or f'no image in {_NAMES}'
    raise ImageError(what if content else 'empty') from error
  except Image.DecompressionBombError as error:
    raise ImageError(f'too large: {limit}') from error
  except Exception as error:  # Many kinds; see `images.decode`.
    raise ImageError('damaged at its beginning') from error
  if width * height > _MAX_PIXELS:
    raise ImageError(f'has {width:,} × {height:,} pixels; {limit}')
  return images.read(content)


def thumbnail(path: str) -> np.ndarray | None:
  """Return a small picture of a file; None if it cannot be read."""
  try:
    with open(path, 'rb') as file:
      picture = Image.fromarray(images.decode(file, keep_jpeg=False))
  except (ImageError, OSError):
    return None
  picture.thumbnail((256, 256))
  return np.asarray(picture)


def is_for_digits(name: str, class_names: tuple[str, ...] | None) -> bool:
  """Return whether a network knows digits, as far as one can tell."""
  digits = tuple('0123456789')
  return name == 'nfnet_digits' and (class_names or digits) == digits


def digit(drawing: np.ndarray) -> np.ndarray | None:
  """Return a drawing as the digits of the dataset are, uint8 [8, 8, 3].

  The ink's box is made 32 pixels high or wide and put in the middle of a
  bitmap, whose cells of 4x4 pixels are counted.

  Args:
    drawing: uint8 [H, W], dark on light. Without ink there is no digit.
  """
  ink = Image.fromarray(np.uint8(255 * (drawing < 128)))
  box = ink.getbbox()
  if box is None:
    return None
  ink = ink.crop(box)
  scale = _BITMAP / max(ink.size)
  w, h = (max(round(x * scale), 1) for x in ink.size)
  bitmap = Image.new('L', (_BITMAP, _BITMAP))
  bitmap.paste(ink.resize((w, h)), ((_BITMAP - w) // 2, (_BITMAP - h) // 2))
  cells = np.asarray(bitmap).reshape(_BITMAP // _CELL, _CELL, -1, _CELL)
  grey = np.uint8(np.round((cells >= 128).mean(axis=(1, 3)) * 255))
  return np.repeat(grey[..., None], 3, axis=-1)


def examples(run: str, folder: str, most: int = 10) -> list[tuple[str, str]]:
  """Copy test images of a run, of different classes where there are as many.

  Args:
    run: the folder of the run, or a file in it.
    folder: output folder, which is created.
    most: their number.

  Returns:
    The copies and the names of their classes; none if it is no run's folder.

  Raises:
    ValueError: if the run's dataset cannot be read.
  """
  is_name = '://' in run and not paths.is_remote(run)
  where = paths.path('.' if is_name else run)
  where = where if paths.is_dir(where) else where.parent
  if is_name or not paths.is_file(where / 'run.json'):
    return []
  from nfnets.data import builders, dataset
  from nfnets.inference import runs

  settings = runs.read_info(where)['settings']
  name = settings.get('which_dataset')
  if settings.get('fake_data') or not name:
    return []
  builder = dataset.load_builder(name, settings.get('data_dir') or None)
  names, copies = builders.class_names(builder), {}
  split, counts = builders.SplitReader(builder, 'test'), Counter()
  os.makedirs(folder)
  places = np.linspace(0, split.num_examples - 1, _MOST_READ, dtype=int)
  for i in np.unique(places):
    try:
      image, label = split.example(int(i))
      image = images.read(image)
    except ImageError:
      continue  # There are others.
    path = pathlib.Path(folder, f'{i}.png')
    if isinstance(image, bytes):  # A JPEG, which browsers recognize.
      path.write_bytes(image)
    else:
      Image.fromarray(image).save(path)
    copies[counts[label], label] = str(path), messages.printable(names[label])
    counts[label] += 1
    if len(counts) == most:
      break
  split.close()
  # The first ones of each class, in the order of the classes.
  chosen = sorted(copies)[:most]
  return [copies[x] for x in sorted(chosen, key=lambda x: x[::-1])]
