"""Random access to image files, as to the records of a dataset.

What TensorFlow decodes by itself (see `images.is_plain`) is handed on as it is,
so that from a JPEG only the crop is decoded. Everything else is decoded by
Pillow, but not before a place in a batch needs it: many examples are read
ahead, and photos of 12 megapixels take 36 MB each.
"""

from collections.abc import Sequence
from concurrent import futures
import io
import os
import warnings

import numpy as np
from PIL import Image
import tensorflow as tf

from nfnets.data.errors import DatasetError
from nfnets.inference import images

_READ_THREADS = 16
_FILES_PER_READ = 4

# Precedes files that Pillow has to decode. No image begins like this.
_FOR_PILLOW = b'\0for Pillow\0'


class ImageFiles:
  """Image files with labels, numbered through.

  Safe to use from several threads.
  """

  parallel_reads = 4

  def __init__(
    self,
    root: str,
    paths: Sequence[str],
    labels: Sequence[int],
    sizes: Sequence[int],
  ):
    """Opens nothing yet.

    Args:
      root: A folder.
      paths: The files, relative to it.
      labels: The label of each.
      sizes: The bytes of each, when the folder was listed.
    """
    self._root = root
    self._paths, self._labels, self._sizes = paths, labels, sizes
    self.mean_bytes = sum(sizes) / max(len(sizes), 1)
    self._pool = futures.ThreadPoolExecutor(_READ_THREADS, 'records')
    # Of oddities in files that it reads all the same.
    warnings.filterwarnings('ignore', module=r'PIL\.')

  def __len__(self) -> int:
    return len(self._paths)

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """Reads the files of these numbers, several at a time.

    Args:
      indices: Integers in [0, len(self)).

    Returns:
      Serialized examples with 'image', which `decode` takes, and 'label', in
      the order of `indices`.

    Raises:
      DatasetError: A file is gone, or not what it was when it was listed.
    """
    chunks = [
      indices[i : i + _FILES_PER_READ]
      for i in range(0, len(indices), _FILES_PER_READ)
    ]

    def read_chunk(chunk: Sequence[int]) -> list[bytes]:
      return [self._read_one(int(i)) for i in chunk]

    parts = self._pool.map(read_chunk, chunks)
    return [example for part in parts for example in part]

  def where(self, index: int) -> str:
    """Says in words where an example is, for messages."""
    return os.path.join(self._root, self._paths[index])

  def stop(self) -> None:
    """Does nothing: no read waits for long."""

  def close(self) -> None:
    """Ends the threads. Reading after that is an error."""
    self._pool.shutdown(wait=True)

  def _read_one(self, index: int) -> bytes:
    try:
      with open(self.where(index), 'rb', buffering=0) as file:
        content = file.readall()
    except OSError as error:
      raise DatasetError(
        f'{self.where(index)} cannot be read ({error.strerror}), but was there '
        'when the folder was listed.'
      ) from error
    if len(content) != self._sizes[index]:
      raise DatasetError(
        f'{self.where(index)} has changed since the folder was listed: it has '
        f'{len(content)} bytes instead of {self._sizes[index]}.'
      )
    if not images.is_plain(content):
      content = _FOR_PILLOW + content
    feature = {
      'image': tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
      'label': tf.train.Feature(
        int64_list=tf.train.Int64List(value=[self._labels[index]])
      ),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def decode(image: tf.Tensor) -> tf.Tensor:
  """Turns an image of `ImageFiles` into one that TensorFlow decodes.

  Args:
    image: string [].

  Returns:
    string []: itself, or what Pillow decoded, as BMP.

  Raises:
    tf.errors.OpError: When it is run, if this is not a readable image.
  """

  def by_pillow() -> tf.Tensor:
    content = tf.strings.substr(image, len(_FOR_PILLOW), -1)
    # An exception would be logged with its traceback.
    bitmap, reason = tf.numpy_function(
      _to_bmp, [content], [tf.string, tf.string], stateful=False
    )
    with tf.control_dependencies([tf.Assert(reason == b'', [reason])]):
      return tf.ensure_shape(bitmap, [])

  start = tf.strings.substr(image, 0, len(_FOR_PILLOW))
  return tf.cond(start == _FOR_PILLOW, by_pillow, lambda: image)


def _to_bmp(content: bytes | np.ndarray) -> tuple[bytes, bytes]:
  """Returns an image and nothing, or nothing and what is wrong with it."""
  content = np.asarray(content, object).item()  # Not bytes when run eagerly.
  try:
    image = images.decode(io.BytesIO(content))
  except images.ImageError as error:
    return b'', str(error).encode()
  if isinstance(image, bytes):  # A JPEG after all.
    return image, b''
  bitmap = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(bitmap, 'BMP')
  return bitmap.getvalue(), b''
