"""Reads PyTorch's .pth files as NumPy arrays, without PyTorch.

`torch.save` writes a zip archive with a pickle and one file per storage. In the
pickle, each tensor is a call with a storage, a shape and strides. The format
before version 1.6 is not supported.

Training checkpoints also contain optimizer state, command-line arguments
(argparse.Namespace) and NumPy scalars. These are ignored, and raise an error
only in the place of a tensor.
"""

from collections.abc import Callable
import functools
import io
import logging
import math
import re
import zipfile

import numpy as np

from nfnets.errors import UserError
from nfnets.weights import pickles
from nfnets.weights.pickles import Node

_BFLOAT16 = 'torch.BFloat16Storage'
_DTYPES = {
  'torch.DoubleStorage': 'f8',
  'torch.FloatStorage': 'f4',
  'torch.HalfStorage': 'f2',
  _BFLOAT16: 'u2',
  'torch.LongStorage': 'i8',
  'torch.IntStorage': 'i4',
  'torch.ShortStorage': 'i2',
  'torch.CharStorage': 'i1',
  'torch.ByteStorage': 'u1',
  'torch.BoolStorage': 'u1',
}
# Keys of the state dict in a checkpoint, averaged weights first, in timm's
# order.
_WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
# Prefixes of torch.compile, DDP and attributes of Lightning modules.
_PREFIXES = re.compile(r'\A(?:(?:_orig_mod|module|model|net|backbone)\.)+')
_HINT = 'Save the state dict of the model alone: model.state_dict()'
_log = logging.getLogger(__name__)


def read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  """Read {name: array} from an archive of torch.save.

  Raises:
    UserError: if there is no state dict; other errors if the file is damaged.
  """
  names = archive.namelist()
  pickle = next(name for name in names if name.endswith('/data.pkl'))
  root = pickle.removesuffix('data.pkl')
  file = io.BytesIO(archive.read(pickle))
  tree = pickles.Unpickler(file, has_inert=True).load()
  order = '<'
  if f'{root}byteorder' in names and archive.read(f'{root}byteorder') == b'big':
    order = '>'
  if not pickles.is_dict(tree):
    raise UserError(f'holds {pickles.describe(tree)}, not a dict. {_HINT}')
  found = [k for k in _WRAPPERS if pickles.is_dict(tree.get(k))]
  if len(found) > 1:
    others = ' and '.join(found[1:])
    _log.info('Reading %s of the checkpoint, not %s.', found[0], others)
  tree = tree[found[0]] if found else tree

  @functools.cache
  def read_storage(key):
    return bytearray(archive.read(f'{root}data/{key}'))

  # Tensors can share a storage, and bfloat16 doubles in size.
  arrays, budget = {}, 4 * sum(m.file_size for m in archive.infolist())
  for name, tensor in tree.items():
    match tensor:
      case Node('parameter', (inner, *_)):
        tensor = inner
    if not isinstance(name, str) or getattr(tensor, 'name', '') != 'tensor':
      raise UserError(
        f'holds {pickles.describe(tensor)} under {ascii(name)[:200]}, not a '
        f'tensor. {_HINT}'
      )
    arrays[name] = _array(tensor, read_storage, order)
    budget -= arrays[name].nbytes
    if budget < 0:
      raise UserError('has tensors that take more bytes than the file')
  return clean_names(arrays)


def clean_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Remove prefixes of wrapped models from the names.

  If this makes names equal, e.g. of two models, all names stay.
  """
  cleaned = {_PREFIXES.sub('', name): x for name, x in arrays.items()}
  return cleaned if len(cleaned) == len(arrays) else arrays


def _array(
  tensor: Node, read_storage: Callable[[str], bytearray], order: str
) -> np.ndarray:
  """Return the values of a tensor; bfloat16 as float32.

  Args:
    tensor: the call.
    read_storage: a function from the name of a storage to its bytes.
    order: byte order, '<' or '>'.
  """
  match tensor.args:
    case (
      Node('storage', (('storage', Node(kind), str(key), str(), int(size)),)),
      offset,
      shape,
      strides,
      *_,
    ) if kind in _DTYPES:
      pass
    case (Node('storage', ((_, Node(kind), *_),)), *_) if kind not in _DTYPES:
      raise UserError(f'has a tensor of {kind}, which is not read here')
    case _:
      raise UserError('has a tensor whose parts are damaged')
  if not pickles.is_shape(shape) or not all(
    pickles.is_shape((n,)) for n in (offset, *strides)
  ):
    raise UserError('has a tensor with an impossible shape')
  dtype, data = np.dtype(_DTYPES[kind]).newbyteorder(order), read_storage(key)
  count = math.prod(shape)
  end = sum((n - 1) * k for n, k in zip(shape, strides, strict=True)) + offset
  is_inside = not count or (count <= size and end < size)
  if size * dtype.itemsize != len(data) or not is_inside:
    raise UserError(
      f'has a tensor of shape {list(shape)} that reaches beyond its storage of '
      f'{len(data)} bytes'
    )
  if not count:  # Offset and strides do not matter.
    return np.zeros(shape, dtype.newbyteorder('='))
  offset, *strides = (n * dtype.itemsize for n in (offset, *strides))
  array = np.ndarray(shape, dtype, data, offset, strides)
  if kind == _BFLOAT16:
    return (array.astype(np.uint32, order='C') << 16).view(np.float32)
  # Copy a part of a larger storage, so that the storage can be freed.
  copy = array.nbytes < len(data)
  return array.astype(dtype.newbyteorder('='), order='C', copy=copy)
