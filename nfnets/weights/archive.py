"""Zip archives, and .npz files of plain numbers in them.

What an archive says about sizes is checked before memory is taken: a few bytes
can claim, and even unpack to, more than there is.
"""

import re
import struct
from typing import BinaryIO
import zipfile
import zlib

import numpy as np

from nfnets.weights import haiku_pickle

# Weights hardly shrink when they are packed; zeros do.
_MAX_PACKING = 100
_MAX_HEADER = 10_000  # Bytes; a few hundred are usual.
_CHUNK = 2**20  # Bytes.
# As NumPy writes it since 1.0, of versions 1 and 2 of the format.
_HEADER = re.compile(
  r"\{'descr': '([<>|=])(\w{1,20})', 'fortran_order': (False|True), "
  r"'shape': \(((?:\d{1,10}(?:, )?)*),?\), \}\s*"
)


class Archive:
  """The members of a zip archive, by name."""

  def __init__(self, file: BinaryIO, size: int):
    """Reads the table of contents.

    Raises:
      ValueError: if it is damaged, or claims more than there can be.
    """
    self.size = size
    try:
      self._zip = zipfile.ZipFile(file)
      self._members = {m.filename: m for m in self._zip.infolist()}
    except _ERRORS as error:
      raise ValueError(
        'is a zip archive without a readable table of contents: a download '
        'that stopped, or a damaged file'
      ) from error
    if len(self._members) != len(self._zip.infolist()):
      raise ValueError('is a zip archive with two files of the same name')
    claimed = 0
    for name, member in self._members.items():
      packed = member.compress_type == zipfile.ZIP_DEFLATED
      if not packed and (
        member.compress_type != zipfile.ZIP_STORED
        or member.compress_size != member.file_size
      ):
        raise ValueError(f'has {_shown(name)} packed in an unknown way')
      claimed += member.file_size / (_MAX_PACKING if packed else 1)
    if claimed > size:
      raise ValueError(
        f'is a zip archive of {size} bytes that claims to hold much more'
      )

  @property
  def names(self) -> list[str]:
    """Names of the members."""
    return list(self._members)

  def read(self, name: str) -> np.ndarray:
    """Returns the bytes of a member, uint8 [n], writable.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    if name not in self._members:
      raise ValueError(f'has no {_shown(name)}, which it should')
    data = np.empty(self._members[name].file_size, np.uint8)
    done = 0
    try:
      with self._zip.open(self._members[name]) as file:
        # At the end the checksum is compared.
        while count := file.readinto(data[done : done + _CHUNK]):
          done += count
    except _ERRORS as error:
      raise ValueError(f'is damaged in {_shown(name)}: {error}') from error
    if done != data.size:
      raise ValueError(f'is damaged in {_shown(name)}: it ends too early')
    return data


# What the standard library raises for damaged archives.
_ERRORS = (
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  EOFError,
  OSError,
  RuntimeError,
  ValueError,
)


def _shown(name: str) -> str:
  return ascii(name)[:200]


def read_npz(members: Archive) -> dict[str, np.ndarray]:
  """Reads {key: array} from what numpy.savez wrote, writable.

  Raises:
    ValueError: if it is damaged, or holds anything but numbers.
  """
  return {
    name.removesuffix('.npy'): _array(name, members.read(name))
    for name in members.names
  }


def read_bytes(members: Archive, key: str) -> bytes | None:
  """Reads an array of bytes from what numpy.savez wrote, and nothing else.

  Args:
    members: the archive.
    key: of the array.

  Returns:
    The bytes; None if there is no such array.

  Raises:
    ValueError: if it is damaged, or of another type.
  """
  name = f'{key}.npy'
  if name not in members.names:
    return None
  array = _array(name, members.read(name))
  if array.dtype != np.uint8 or array.ndim != 1:
    raise ValueError(f'has {_shown(name)}, which is not an array of bytes')
  return array.tobytes()


def _array(name: str, content: np.ndarray) -> np.ndarray:
  """Returns the array of the bytes of an .npy file."""
  start = content[:12].tobytes()
  layout = {b'\x93NUMPY\x01\x00': '<H', b'\x93NUMPY\x02\x00': '<I'}.get(
    start[:8]
  )
  if layout is None or len(start) < 12:
    raise ValueError(f'has {_shown(name)}, which is not an array of NumPy')
  begin = 8 + struct.calcsize(layout)
  (length,) = struct.unpack(layout, start[8:begin])
  end = begin + length
  if end > min(content.size, _MAX_HEADER):
    raise ValueError(f'has {_shown(name)}, whose header is damaged')
  header = content[begin:end].tobytes().decode('latin-1')
  match = _HEADER.fullmatch(header)
  if match is None or match[2] not in haiku_pickle.NUMERIC:
    raise ValueError(
      f'has {_shown(name)}, which is not an array of numbers: '
      f'{ascii(header.strip()[:100])}'
    )
  order, code, fortran, shape = match.groups()
  dtype = np.dtype(order + code)
  shape = tuple(int(n) for n in shape.split(',') if n.strip())
  haiku_pickle.check_shape(shape, dtype.itemsize, content.size - end)
  order = 'F' if fortran == 'True' else 'C'
  array = np.ndarray(shape, dtype, content, offset=end, order=order)
  # NumPy's own headers end where numbers are aligned; others need not.
  copy = not array.flags.aligned
  return array.astype(dtype.newbyteorder('='), order='K', copy=copy)
