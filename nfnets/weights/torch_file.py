"""PyTorch's .pth files as NumPy arrays, without PyTorch.

`torch.save` writes a pickle in which each tensor is a call that names a piece
of memory (a storage), a shape and strides. Since version 1.6 it is a zip
archive of the pickle and one file for each storage; before, several pickles
one after another, then the storages.
"""

from collections.abc import Callable
import functools
import io
import math
from typing import Any

import numpy as np

from nfnets.weights import archive, haiku_pickle, unpickle

# The first pickle of a file of the older format, as bytes.
LEGACY_START = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
  'torch.DoubleStorage': 'f8',
  'torch.FloatStorage': 'f4',
  'torch.HalfStorage': 'f2',
  'torch.BFloat16Storage': 'bfloat16',
  'torch.LongStorage': 'i8',
  'torch.IntStorage': 'i4',
  'torch.ShortStorage': 'i2',
  'torch.CharStorage': 'i1',
  'torch.ByteStorage': 'u1',
}
# Where a checkpoint of training keeps the state dict, what is averaged first.
_WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
# What wrapping a model puts before the names of its tensors.
_PREFIXES = ('_orig_mod.', 'module.', '_orig_mod.')
_HINT = 'Save the state dict of the model alone: model.state_dict().'


class _Storage(unpickle.StandIn):
  """Stands for a torch storage: `dtype`, its key and how many numbers."""

  kind = 'a storage'

  def __init__(self, dtype: str, key: str, size: int):
    self.dtype = dtype
    self.key = key
    self.size = size

  @property
  def itemsize(self) -> int:
    return 2 if self.dtype == 'bfloat16' else np.dtype(self.dtype).itemsize


class _Tensor(unpickle.StandIn):
  """Stands for a tensor: a storage and where in it the numbers are."""

  kind = 'a tensor'

  def __init__(
    self,
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
  ):
    self.storage = storage
    self.offset = offset
    self.shape = shape
    self.strides = strides

  def numpy(self, data: np.ndarray, order: str) -> np.ndarray:
    """Returns its numbers; bfloat16 as float32, which has the same values.

    Args:
      data: all bytes of the storage, uint8.
      order: byte order, '<' or '>'.
    """
    is_bfloat16 = self.storage.dtype == 'bfloat16'
    dtype = np.dtype(order + ('u2' if is_bfloat16 else self.storage.dtype))
    array = np.ndarray(
      self.shape,
      dtype,
      data,
      offset=self.offset * dtype.itemsize,
      strides=[n * dtype.itemsize for n in self.strides],
    )
    if is_bfloat16:
      return (array.astype(np.uint32, order='C') << 16).view(np.float32)
    # Not a piece of a larger storage, which it would keep in memory.
    copy = array.nbytes < data.size
    return array.astype(dtype.newbyteorder('='), order='C', copy=copy)


def _storage(pid: Any) -> _Storage:
  match pid:
    # Then None, in the older format: what it is a part of.
    case (
      'storage',
      unpickle.Name(name=name),
      str() as key,
      str(),
      size,
      *rest,
    ):
      if (
        name in _DTYPES
        and type(size) is int
        and 0 <= size < haiku_pickle.MAX_SIZE
        and rest in ([], [None])
      ):
        return _Storage(_DTYPES[name], key, size)
  raise ValueError('has a tensor whose storage is damaged')


def _rebuild_tensor(args: tuple) -> _Tensor:
  match args:
    # Then whether it has a gradient, hooks and what else is known of it.
    case (
      _Storage() as storage,
      offset,
      tuple() as shape,
      tuple() as strides,
      *_,
    ):
      sizes = [offset, *shape, *strides]
      if not len(shape) == len(strides) <= haiku_pickle.MAX_DIMS or not all(
        type(n) is int and 0 <= n < haiku_pickle.MAX_SIZE for n in sizes
      ):
        raise ValueError('has a tensor with an impossible shape')
      count = math.prod(shape)
      last = sum((n - 1) * k for n, k in zip(shape, strides, strict=True))
      if count > storage.size or (count and offset + last >= storage.size):
        raise ValueError(
          f'has a tensor of shape {list(shape)} that reaches beyond its '
          f'storage of {storage.size} numbers'
        )
      if not count:  # Its offset and strides may be anything.
        offset, strides = 0, (0,) * len(shape)
      return _Tensor(storage, offset, shape, strides)
    case _:
      raise ValueError('has a tensor whose parts are damaged')


def _rebuild_parameter(args: tuple) -> _Tensor:
  match args:
    case (_Tensor() as tensor, *_):
      return tensor
    case _:
      raise ValueError('has a parameter that is no tensor')


_KNOWN = {
  **unpickle.ORDERED_DICT,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  **dict.fromkeys(_DTYPES),
}


def read_zip(members: archive.Archive) -> dict[str, np.ndarray]:
  """Reads {name: array} from an archive that torch.save wrote.

  Raises:
    ValueError: if it is damaged, or holds anything but a state dict.
  """
  pickle = next(n for n in members.names if n.endswith('/data.pkl'))
  root = pickle.removesuffix('data.pkl')
  content = members.read(pickle).tobytes()
  file = unpickle.File(io.BytesIO(content), len(content))
  tree = unpickle.Unpickler(file, _KNOWN, _HINT, _storage).load()
  order = '<'
  if f'{root}byteorder' in members.names:
    name = members.read(f'{root}byteorder').tobytes()
    order = '>' if name == b'big' else '<'

  @functools.cache
  def read(key: str) -> np.ndarray:
    return members.read(f'{root}data/{key}')

  return _arrays(tree, read, order, members.size)


def read_legacy(file: unpickle.File) -> dict[str, np.ndarray]:
  """Reads {name: array} from a file that torch.save wrote before 1.6.

  Raises:
    ValueError: if it is damaged, or holds anything but a state dict.
  """
  storages = {}

  def storage(pid: Any) -> _Storage:
    found = _storage(pid)
    return storages.setdefault(found.key, found)

  magic, protocol, system, tree, keys = (
    unpickle.Unpickler(file, _KNOWN, _HINT, storage).load() for _ in range(5)
  )
  if (
    magic != _LEGACY_MAGIC
    or protocol != _LEGACY_PROTOCOL
    or not isinstance(system, dict)
    or not isinstance(keys, list)
  ):
    raise file.damaged()
  order = '<' if system.get('little_endian', True) else '>'
  data = {}
  for key in keys:
    if not isinstance(key, str) or key not in storages:
      raise file.damaged()
    count = file.read_number(f'{order}q')
    if count != storages[key].size:
      raise file.damaged()
    data[key] = file.read_array(count * storages[key].itemsize)
  return _arrays(tree, data.get, order, file.size)


def _arrays(
  tree: Any,
  read: Callable[[str], np.ndarray | None],
  order: str,
  budget: int,
) -> dict[str, np.ndarray]:
  """Returns the arrays of a pickle's tensors.

  Args:
    tree: what was pickled.
    read: returns the bytes of the storage of this key.
    order: byte order of the storages, '<' or '>'.
    budget: bytes in all that the tensors may have: several can share a storage,
      but hardly more than two.
  """
  if isinstance(tree, dict):
    wrapped = [tree[k] for k in _WRAPPERS if isinstance(tree.get(k), dict)]
    tree = wrapped[0] if wrapped else tree
  if not isinstance(tree, dict):
    raise ValueError(f'holds {unpickle.kind(tree)}, not a dict. {_HINT}')
  budget *= 2
  arrays = {}
  for name, tensor in tree.items():
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      raise ValueError(
        f'holds {unpickle.kind(tensor)} under {ascii(name)[:200]}, not a '
        f'tensor. {_HINT}'
      )
    budget -= math.prod(tensor.shape) * tensor.storage.itemsize
    if budget < 0:
      raise ValueError('has tensors that take more bytes than the file')
    data = read(tensor.storage.key)
    if data is None or (
      data.size != tensor.storage.size * tensor.storage.itemsize
    ):
      raise ValueError(f'has another storage for {ascii(name)[:200]} than said')
    arrays[name] = tensor.numpy(data, order)
  return clean_names(arrays)


def clean_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the dict without what wrapping a model puts before the names."""

  def clean(name: str) -> str:
    for prefix in _PREFIXES:
      name = name.removeprefix(prefix)
    return name

  return {clean(name): array for name, array in arrays.items()}
