"""Random access to the pictures of a folder, as to the records of a dataset.

What TensorFlow decodes by itself (see `images.is_plain`) is handed on as it is,
so that from a JPEG only the crop is decoded. Everything else is decoded by
Pillow, but not before a place in a batch needs it: many examples are read
ahead, and photos of 12 megapixels take 36 MB each. Of pictures of more than
`images.LARGE_PIXELS`, one is decoded at a time, and training reads a smaller
copy from the cache.
"""

from collections.abc import Callable, Sequence
import io
import os
import pathlib
from typing import Any, NamedTuple
import warnings

from absl import logging
import numpy as np
from PIL import Image
import tensorflow as tf

from nfnets import messages, paths
from nfnets.data import byte_ranges
from nfnets.errors import ImageError, UserError
from nfnets.inference import images

# Precede large pictures and those that Pillow has to decode. No picture begins
# so.
_LARGE, _FOR_PILLOW = b'\0large\0', b'\0for Pillow\0'

# The pixels of the copies of large pictures, which are JPEGs. The smallest crop
# of training, 8 % of them, has a side of 579 pixels: more than networks take.
REDUCED_PIXELS = 2**22
_QUALITY = 95

# Pillow warns of oddities in files that it reads all the same.
warnings.filterwarnings('ignore', module=r'PIL\.')


class Picture(NamedTuple):
  """A picture in a folder.

  Attributes:
    path: Path of the file, relative to the folder.
    label: The name of its class.
    split: 'train', 'validation' or 'test'.
    size: In bytes.
    mtime_ns: When the file was last changed.
    digest: A number made of its bytes, which practically no others have.
    pixels: Number of pixels; 0 if its header cannot be read.
    error: Why it cannot be decoded, '' if it can; None if that was not tried.
  """

  path: str
  label: str
  split: str
  size: int
  mtime_ns: int
  digest: int = 0
  pixels: int = 0
  error: str | None = None


class PictureFiles(byte_ranges.LocalFiles):
  """Pictures with labels, numbered through, safe to use from several threads.

  Attributes:
    mean_bytes: The size of a picture, on average.
  """

  def __init__(
    self,
    root: str,
    pictures: Sequence[Picture],
    labels: Sequence[int],
    reduces: bool = False,
  ):
    """Open nothing yet.

    Args:
      root: The folder of the pictures.
      pictures: All that there are.
      labels: The label of each.
      reduces: Whether to read smaller copies of large pictures.
    """
    super().__init__()
    self._root, self._reduces = root, reduces
    self._pictures, self._labels = pictures, labels
    self.mean_bytes = sum(p.size for p in pictures) / max(len(pictures), 1)

  def where(self, index: int) -> str:
    return os.path.join(self._root, self._pictures[index].path)

  def _read_one(self, part: int) -> bytes:
    """Return a serialized example with 'label' and 'image', for `decode`."""
    index, content = int(part), None
    path, picture = self.where(index), self._pictures[index]
    is_large = picture.pixels > images.LARGE_PIXELS
    if is_large and self._reduces:
      content = _reduced(path, picture)
    if content is None:
      content = super()._read_one(byte_ranges.Range(path))
      if len(content) != picture.size:
        raise UserError(
          f'{path} has changed since the folder was listed: it has '
          f'{len(content)} bytes instead of {picture.size}.'
        )
      if not images.is_plain(content):
        content = _FOR_PILLOW + content
      if is_large:
        content = _LARGE + content
    return tf.train.Example(
      features=tf.train.Features(
        feature={
          'image': tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[content])
          ),
          'label': tf.train.Feature(
            int64_list=tf.train.Int64List(value=[self._labels[index]])
          ),
        }
      )
    ).SerializeToString()


def decode(image: tf.Tensor, process: Callable | None = None) -> tf.Tensor:
  """Turn an image of `PictureFiles` into one that TensorFlow decodes.

  Args:
    image: string [].
    process: From such an image to float32; one large image at a time is
      decoded and processed.

  Returns:
    string []: itself, or what Pillow decoded, as BMP; or what `process`
    returns.

  Raises:
    tf.errors.OpError: When it is run, if this is not a readable image.
  """

  def without(mark: bytes, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    has_mark = tf.strings.substr(image, 0, len(mark)) == mark
    start = tf.where(has_mark, len(mark), 0)
    return has_mark, tf.strings.substr(image, start, -1)

  is_large, image = without(_LARGE, image)

  def decoded() -> tf.Tensor:
    by_pillow, content = without(_FOR_PILLOW, image)
    return tf.cond(
      by_pillow,
      lambda: tf.ensure_shape(_call(_to_bmp, content, tf.string), []),
      lambda: image,
    )

  def one_at_a_time(content: bytes) -> np.ndarray:
    with images.alone(images.LARGE_PIXELS + 1):
      if content.startswith(_FOR_PILLOW):
        content = images.read(content.removeprefix(_FOR_PILLOW))
      return process(tf.constant(content)).numpy()

  if process is None:
    return decoded()
  return tf.cond(
    is_large,
    lambda: _call(one_at_a_time, image, tf.float32),
    lambda: process(decoded()),
  )


def find_error(content: bytes) -> str:
  """Return why training could not decode a picture, or ''."""
  try:
    images.read(content)
  except ImageError as error:
    return str(error)
  # TensorFlow, which decodes these, would fail, and say so in its own way.
  is_png = content.startswith(b'\x89PNG') and images.is_plain(content)
  if is_png and not images.has_right_checksums(content):
    return 'its checksums are wrong'
  return ''


def copies_folder() -> pathlib.Path:
  """Return the folder of the smaller copies of large pictures."""
  return paths.cache_folder(f'reduced-{REDUCED_PIXELS}')


def _reduced(path: str, picture: Picture) -> bytes | None:
  """Return the smaller copy of a large picture, or None if it is damaged."""
  copy = copies_folder() / f'{picture.digest:016x}.jpg'
  with images.alone(picture.pixels):
    try:
      return copy.read_bytes()
    except OSError:
      pass  # It is made now.
    try:
      pixels = images.read_image(path, check=False)
      if isinstance(pixels, bytes):
        image = Image.open(io.BytesIO(pixels))
      else:
        image = Image.fromarray(pixels)
      scale = (REDUCED_PIXELS / picture.pixels) ** 0.5
      # Reads a JPEG at half or a quarter of its size, if that is enough.
      image.thumbnail([max(1, round(scale * side)) for side in image.size])
    except (ImageError, OSError):
      return None
    file = io.BytesIO()
    image.convert('RGB').save(file, 'JPEG', quality=_QUALITY)
    try:
      copy.parent.mkdir(parents=True, exist_ok=True)
      paths.write_bytes(copy, file.getvalue())
    except OSError as error:
      logging.log_first_n(
        logging.WARNING,
        'Smaller copies of large images cannot be kept in %s (%s), and are '
        'made again each time.',
        1,
        copy.parent,
        error.strerror,
      )
    return file.getvalue()


def _call(
  function: Callable[[bytes], Any], content: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
  """Call Python; errors are those of TensorFlow, without a traceback."""

  def call(content: bytes | np.ndarray) -> tuple[Any, bytes]:
    content = np.asarray(content, object).item()  # Not bytes when run eagerly.
    try:
      return function(content), b''
    except (ImageError, tf.errors.OpError) as error:
      failed = b'' if dtype == tf.string else np.float32(0)
      return failed, messages.one_line(error).encode()

  result, reason = tf.numpy_function(
    call, [content], [dtype, tf.string], stateful=False
  )
  with tf.control_dependencies([tf.Assert(reason == b'', [reason])]):
    return tf.identity(result)


def _to_bmp(content: bytes) -> bytes:
  image = images.read(content)
  if isinstance(image, bytes):  # A JPEG after all.
    return image
  bitmap = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(bitmap, 'BMP')
  return bitmap.getvalue()
