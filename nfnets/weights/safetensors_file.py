"""Files of safetensors; errors are worded to follow the file's name.

The package is imported when there is such a file, because `import nfnets` does
without it.
"""

import os

import numpy as np

from nfnets.weights import haiku_pickle

Path = str | os.PathLike[str]

# What safetensors calls the types that NumPy has; bfloat16 comes on top.
_DTYPES = frozenset('I8 I16 I32 I64 U8 U16 U32 U64 F16 F32 F64 BF16'.split())
# The entry of the format's own metadata that is ours.
_METADATA = 'nfnets'


def read(path: Path) -> dict[str, np.ndarray]:
  """Reads {name: array}; bfloat16 becomes float32.

  Raises:
    ValueError: if it is damaged, or has a type that NumPy has not.
  """
  import safetensors

  arrays = {}
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      for name in file.keys():  # noqa: SIM118  It is no dict.
        part = file.get_slice(name)
        dtype, shape = part.get_dtype(), part.get_shape()
        if dtype not in _DTYPES:
          raise ValueError(
            f'has {ascii(name)[:200]} of type {dtype}, which is not read'
          )
        # Without numbers, a shape may be so large that NumPy refuses it.
        if 0 in shape:
          haiku_pickle.check_shape(tuple(shape), 1, 0)
        array = file.get_tensor(name)
        arrays[name] = array.astype(np.float32) if dtype == 'BF16' else array
  except safetensors.SafetensorError as error:
    raise ValueError(_damaged(error)) from error
  return arrays


def names(path: Path) -> list[str]:
  """Returns the names of the arrays.

  Raises:
    ValueError: if the file is damaged.
  """
  import safetensors

  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      return list(file.keys())
  except safetensors.SafetensorError as error:
    raise ValueError(_damaged(error)) from error


def read_metadata(path: Path) -> bytes | None:
  """Reads what `write` was given as metadata; None if there was nothing.

  Raises:
    ValueError: if the file is damaged.
  """
  import safetensors

  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      text = (file.metadata() or {}).get(_METADATA)
  except safetensors.SafetensorError as error:
    raise ValueError(_damaged(error)) from error
  return None if text is None else text.encode()


def write(
  path: Path, arrays: dict[str, np.ndarray], metadata: bytes | None
) -> None:
  """Writes a new file, which only its owner may read.

  Args:
    path: the file.
    arrays: {name: array}.
    metadata: ASCII, or None.

  Raises:
    OSError: if it cannot be written.
  """
  import safetensors.numpy

  entries = None if metadata is None else {_METADATA: metadata.decode('ascii')}
  try:
    safetensors.numpy.save_file(arrays, path, entries)
  except safetensors.SafetensorError as error:
    raise OSError(f'{path} could not be written: {error}') from error


def _damaged(error: Exception) -> str:
  return (
    'is a .safetensors file that is damaged, or a download that stopped: '
    f'{str(error)[:200]}'
  )
