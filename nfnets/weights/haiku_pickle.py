"""The released format: a pickle of {module: {name: NumPy array}}.

The files of 2021 were written with dill, which finds some of NumPy's functions
by `dill._dill._get_attr(dill._dill._import_module(...), ...)`; plain pickles
name them. Versions of NumPy differ in where they keep them, and in protocol 5
arrays are made by another one. Python 3 writes bytes in protocol 2 as a string
that is to be encoded in Latin-1.
"""

import math
from typing import Any

import numpy as np

from nfnets.weights import unpickle

# What JAX computes with: no strings, objects, records or complex numbers.
NUMERIC = frozenset(
  'i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split()  # As NumPy names them.
)
MAX_DIMS = 32
MAX_SIZE = 2**48
# What the tree may take, as a multiple of the file; and a leaf, but for its
# array.
_MAX_SHARING = 4
_LEAF_BYTES = 30
_HINT = (
  'A file of weights holds dicts of NumPy arrays; jax.device_get makes such '
  'arrays from those of JAX.'
)


class _DType(unpickle.Stateful):
  """Stands for numpy.dtype."""

  kind = 'a dtype'

  def __init__(self, code: str):
    self._code = code
    self._order = '='

  def set_state(self, state: Any) -> None:
    # Version, byte order, then what only records, dates and the like have.
    match state:
      case (3, '<' | '>' | '=' | '|' as order, None, None, None, -1, -1, int()):
        self._order = order
      case _:
        raise ValueError('has an array whose dtype is damaged')

  def numpy(self) -> np.dtype:
    return np.dtype(self._order + self._code)


class _Array(unpickle.Stateful):
  """Stands for numpy.ndarray; `value` is None until the state comes."""

  @property
  def kind(self) -> str:
    return 'an array' + (' without its numbers' if self.value is None else '')

  def __init__(self, arrays: 'Arrays'):
    self._arrays = arrays
    self.value: np.ndarray | None = None

  def set_state(self, state: Any) -> None:
    match state:
      case (1, tuple() as shape, dtype, int() as fortran, data):
        order = 'F' if fortran else 'C'
        self.value = self._arrays.make(dtype, shape, order, data)
      case _:
        raise ValueError('has an array whose parts are damaged')


class Arrays:
  """What takes the place of NumPy's functions in one pickle."""

  def __init__(self, file: unpickle.File):
    # Bytes that may still be made. A pickle may use the same bytes again and
    # again; an honest one has them once, and in protocol 2 encodes them too.
    self._budget = 2 * file.size
    self.known = {
      'builtins.bytes': self._empty_bytes,
      '__builtin__.bytes': self._empty_bytes,
      '_codecs.encode': self._encode,
      'numpy.dtype': self._dtype,
      'numpy.ndarray': None,
    }
    for core in ('numpy.core', 'numpy._core'):
      for module in ('multiarray', '_multiarray_umath'):
        self.known[f'{core}.{module}._reconstruct'] = self._reconstruct
        self.known[f'{core}.{module}.scalar'] = self._scalar
      self.known[f'{core}.numeric._frombuffer'] = self._from_buffer

  def make(self, dtype: Any, shape: Any, order: str, data: Any) -> np.ndarray:
    """Returns the array of these parts, in the machine's byte order.

    Raises:
      ValueError: if they do not belong together.
    """
    if not isinstance(dtype, _DType) or not isinstance(data, unpickle.Bytes):
      raise ValueError('has an array whose parts are damaged')
    dtype = dtype.numpy()
    check_shape(shape, dtype.itemsize, data.data.size)
    self._spend(data.data.size)
    array = np.ndarray(shape, dtype, data.data, order=order)
    return array.astype(dtype.newbyteorder('='), order='K', copy=False)

  def _spend(self, count: int) -> None:
    self._budget -= count
    if self._budget < 0:
      raise ValueError('has arrays that take more bytes than the file')

  def _empty_bytes(self, args: tuple) -> unpickle.Bytes:
    if args:
      raise ValueError('calls bytes with arguments')
    return unpickle.Bytes(np.empty(0, np.uint8))

  def _encode(self, args: tuple) -> unpickle.Bytes:
    match args:
      case (str() as text, 'latin1'):
        self._spend(len(text))
        try:
          data = bytearray(text, 'latin-1')
        except UnicodeEncodeError as error:
          raise ValueError('has bytes that are damaged') from error
        return unpickle.Bytes(np.frombuffer(data, np.uint8))
      case _:
        raise ValueError('calls _codecs.encode for something else than bytes')

  def _dtype(self, args: tuple) -> _DType:
    match args:
      case (str() as code, int(), int()) if code in NUMERIC:
        return _DType(code)
      case (str() as code, *_) if code not in NUMERIC:
        raise ValueError(
          f'has an array of dtype {ascii(code[:50])}, not of numbers'
        )
      case (unpickle.Name() as name, *_):
        raise ValueError(f'has an array of dtype {name.name}, not of numbers')
      case _:
        raise ValueError('has an array whose dtype is damaged')

  def _reconstruct(self, args: tuple) -> _Array:
    match args:
      case (unpickle.Name(name='numpy.ndarray'), (0,), unpickle.Bytes()):
        return _Array(self)
      case _:
        raise ValueError('has an array whose parts are damaged')

  def _scalar(self, args: tuple) -> _Array:
    match args:
      case (dtype, data):
        return self._filled(dtype, (), 'C', data)
      case _:
        raise ValueError('has a number whose parts are damaged')

  def _from_buffer(self, args: tuple) -> _Array:
    match args:
      case (data, dtype, shape, 'C' | 'F' as order):
        return self._filled(dtype, shape, order, data)
      case (data, dtype, shape, 'K', tuple() as axes):
        array = self._filled(dtype, shape, 'C', data)
        if {type(n) for n in axes} - {int}:
          raise ValueError('has an array whose axes are damaged')
        # A ValueError if they are not each of the axes once.
        array.value = array.value.transpose(axes)
        return array
      case _:
        raise ValueError('has an array whose parts are damaged')

  def _filled(self, dtype: Any, shape: Any, order: str, data: Any) -> _Array:
    array = _Array(self)
    array.value = self.make(dtype, shape, order, data)
    return array


class _Dill:
  """What takes the place of dill's functions in one pickle."""

  def __init__(self):
    self.known = {}
    for module in ('dill._dill', 'dill.dill'):
      self.known[f'{module}._import_module'] = self._import_module
      self.known[f'{module}._get_attr'] = self._get_attr
      self.known[f'{module}._load_type'] = self._load_type
      self.known[f'{module}._create_array'] = self._create_array
    # Set when there is a machine, whose table of names decides.
    self.find = None

  def _import_module(self, args: tuple) -> unpickle.Module:
    match args:
      case (str() as name,) | (str() as name, bool()):
        return unpickle.Module(name)
      case _:
        raise ValueError('has a damaged call of dill')

  def _get_attr(self, args: tuple) -> unpickle.Name:
    match args:
      case (unpickle.Module() as module, str() as name):
        return self.find(module.name, name)
      case _:
        raise ValueError('has a damaged call of dill')

  def _load_type(self, args: tuple) -> unpickle.Name:
    match args:
      case (str() as name,):
        return self.find('builtins', name.removesuffix('Type').lower())
      case _:
        raise ValueError('has a damaged call of dill')

  def _create_array(self, args: tuple) -> _Array:
    match args:
      case (unpickle.Name() as function, tuple() as inner, state, None) if (
        function.name.endswith('._reconstruct')
      ):
        array = function.call(inner)
        array.set_state(state)
        return array
      case _:
        raise ValueError('has a damaged call of dill')


def _mapping(args: tuple) -> dict:
  match args:
    case (dict() as mapping,):
      return mapping
    case _:
      raise ValueError('has a Haiku mapping that is not made from one dict')


def check_shape(shape: Any, itemsize: int, size: int) -> None:
  """Compares the shape of an array with the bytes that are there for it.

  Raises:
    ValueError: if it is no shape, or another number of bytes.
  """
  if (
    not isinstance(shape, tuple)
    or len(shape) > MAX_DIMS
    or any(type(n) is not int or not 0 <= n < MAX_SIZE for n in shape)
    or math.prod(n or 1 for n in shape) > MAX_SIZE
  ):
    raise ValueError('has an array with an impossible shape')
  if math.prod(shape) * itemsize != size:
    raise ValueError(
      f'has an array of shape {list(shape)} with {size} bytes, not '
      f'{itemsize} for each number'
    )


def read(file: unpickle.File) -> dict[str, dict[str, np.ndarray]]:
  """Reads {module: {name: array}}, of writable arrays.

  Raises:
    ValueError: if it is anything else.
  """
  dill = _Dill()
  known = {**Arrays(file).known, **dill.known, **unpickle.ORDERED_DICT}
  for name in ('FlatMapping', 'frozendict'):
    known[f'haiku._src.data_structures.{name}'] = _mapping
  unpickler = unpickle.Unpickler(file, known, _HINT)
  dill.find = unpickler.find
  tree = unpickler.load()
  if not isinstance(tree, dict):
    raise ValueError(f'holds {unpickle.kind(tree)}, not a dict of modules')
  params, size = {}, 0
  for module, leaves in tree.items():
    params[module] = _leaves(module, leaves)
    # A pickle can name one array, or a whole dict of them, again and again.
    size += sum(_LEAF_BYTES + leaf.nbytes for leaf in params[module].values())
    if size > _MAX_SHARING * file.size:
      raise ValueError('has the same arrays over and over')
  return params


def _leaves(module: Any, leaves: Any) -> dict[str, np.ndarray]:
  shown = ascii(module)[:200]
  if not isinstance(module, str) or not isinstance(leaves, dict):
    raise ValueError(
      f'holds {unpickle.kind(leaves)} under {shown}, not a dict of the arrays '
      'of a module'
    )
  for name, leaf in leaves.items():
    value = leaf.value if isinstance(leaf, _Array) else None
    if not isinstance(name, str) or value is None:
      raise ValueError(
        f'holds {unpickle.kind(leaf)} under {ascii(name)[:200]} of module '
        f'{shown}, not a NumPy array'
      )
  return {name: leaf.value for name, leaf in leaves.items()}
