"""Reads pickles as data, without importing or calling anything.

A pickle is a program for a stack machine that can import and call any function.
This machine supports only the instructions for containers, numbers, strings and
bytes. Each name and call becomes a `Node`. `read_tree` and `torch_file` find
arrays in these nodes. The base class is the standard library's unpickler in
Python, because the one in C crashes on keys of nested tuples.
"""

import math
import mmap
import pickle
import pickletools
from typing import Any

import numpy as np

from nfnets.errors import UserError

# The dtypes of weights: no strings, objects, records or complex numbers.
NUMERIC = frozenset('i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split())
_MAX_DIMS = 32
_MAX_SIZE = 2**48
# A network has some thousands of arrays, of about 40 instructions each.
_MAX_INSTRUCTIONS = 1_000_000
# Maximum size of the tree / size of the file, and bytes of a leaf besides its
# array.
_MAX_SHARING = 4
_LEAF_BYTES = 30
_DAMAGED = 'has an array whose parts are damaged'
_HINT = (
  'A file of weights holds dicts of NumPy arrays; jax.device_get makes such '
  'arrays from those of JAX'
)

_MACHINE = pickle._Unpickler
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_CODES = {name: code for code, name in _NAMES.items()}
# Other instructions make calls, or values that no file of weights has.
_INSTRUCTIONS = (
  'PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 '
  'BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES '
  'BINBYTES8 EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS '
  'SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL '
  'STACK_GLOBAL BUILD BINPERSID'
).split()
# {supported name: name of its node}. dill wrote the files of 2021 and looks up
# some NumPy functions by name. Their modules depend on the NumPy version, and
# protocol 5 uses another function. With protocol 2, Python 3 writes bytes as
# encoded text.
_KNOWN = {
  'collections.OrderedDict': 'dict',
  'builtins.bytes': 'bytes',
  '__builtin__.bytes': 'bytes',
  '_codecs.encode': 'bytes',
  'numpy.dtype': 'dtype',
  'numpy.ndarray': 'ndarray',
  **{
    f'numpy.{core}.{name}': 'array'
    for core in ('core', '_core')
    for name in (
      'multiarray._reconstruct',
      'multiarray.scalar',
      '_multiarray_umath._reconstruct',
      '_multiarray_umath.scalar',
      'numeric._frombuffer',
    )
  },
  **{
    f'dill.{module}.{name}': node
    for module in ('_dill', 'dill')
    for name, node in (
      ('_import_module', 'module'),
      ('_get_attr', 'attribute'),
      ('_load_type', 'type'),
      ('_create_array', 'array'),
    )
  },
  'haiku._src.data_structures.FlatMapping': 'mapping',
  'haiku._src.data_structures.frozendict': 'mapping',
  'torch._utils._rebuild_tensor': 'tensor',
  'torch._utils._rebuild_tensor_v2': 'tensor',
  'torch._utils._rebuild_parameter': 'parameter',
}


class Node(dict):
  """A dict, a name, or a call that was not executed.

  Attributes:
    name: the value in `_KNOWN`, or the full name.
    args: arguments of the call. None: only a name.
    state: argument of __setstate__.
  """

  __slots__ = ('args', 'name', 'state')
  __match_args__ = ('name', 'args', 'state')

  def __init__(self, name: str, args: tuple | None = None):
    super().__init__()
    self.name, self.args, self.state = name, args, None

  def __setitem__(self, key: Any, value: Any) -> None:
    # Other keys could have hash collisions or be nested too deeply.
    is_small = type(key) is int and abs(key) < 2**31
    if not is_small and type(key) is not str:
      key = f'{describe(key)} for a key', len(self)
    super().__setitem__(key, value)

  def __setstate__(self, state: Any) -> None:
    self.state = state

  def append(self, value: Any) -> None:
    """Ignore the items of unsupported containers."""

  extend = append


class Unpickler(_MACHINE):
  """Reads one pickle. `has_inert` allows names that are not in `_KNOWN`."""

  def __init__(self, file: Any, has_inert: bool):
    super().__init__(file)
    self._has_inert = has_inert
    self._count = 0

  def __getitem__(self, code: int) -> Any:
    """Return the function of an instruction, like `dispatch`."""
    self._count += 1
    if self._count > _MAX_INSTRUCTIONS:
      raise UserError(
        f'has more than {_MAX_INSTRUCTIONS} pickle instructions, which no file '
        'of weights needs'
      )
    name = _NAMES.get(code, code)
    if name not in self.functions:
      raise UserError(
        f'has the pickle instruction {name}, which no file of weights needs; '
        f'it was not run. {_HINT}'
      )
    return self.functions[name]

  def find_class(self, module: str, name: str) -> Node:
    """Return the node of a name."""
    full = f'{module}.{name}'
    shown = ascii(full[:200])[1:-1]
    if full not in _KNOWN and not self._has_inert:
      raise UserError(
        f'asks for {shown}, which no file of weights needs; nothing of it was '
        f'run. {_HINT}'
      )
    return Node(_KNOWN.get(full, shown))

  def persistent_load(self, pid: Any) -> Node:
    """Return the node of a PyTorch storage."""
    return Node('storage', (pid,))

  def _call(self) -> None:
    """Replace a name and its arguments by the node of the call."""
    args = self.stack.pop()
    match self.stack.pop(), args:
      case Node('attribute', None), (
        Node('module', (str(module), *_)),
        str(name),
      ):
        node = self.find_class(module, name)
      case Node('type', None), (str(name),):
        name = name.removesuffix('Type').lower()
        node = self.find_class('builtins', name)
      case Node('mapping', None), (Node('dict', ()) as node,):
        pass
      case Node(name, None), tuple():
        node = Node(name, args)
      case _:
        raise UserError('is damaged: it calls what is no function')
    self.append(node)

  # A property: an attribute would be a cycle that keeps the memo alive.
  dispatch = property(lambda self: self)
  functions = {
    **{name: _MACHINE.dispatch[_CODES[name]] for name in _INSTRUCTIONS},
    'BYTEARRAY8': _MACHINE.dispatch[_CODES['BINBYTES8']],
    'EMPTY_DICT': lambda self: self.append(Node('dict', ())),
    'REDUCE': _call,
    'NEWOBJ': _call,
  }


def describe(value: Any) -> str:
  """Describe the type of a value for a message, without its content."""
  is_node = isinstance(value, Node)
  return f'a value of type {value.name if is_node else type(value).__name__}'


def is_dict(value: Any) -> bool:
  """Return whether a value is a dict, ordered or not."""
  return isinstance(value, Node) and (value.name, value.args) == ('dict', ())


def is_shape(shape: Any) -> bool:
  """Return whether NumPy supports this shape."""
  return (
    isinstance(shape, tuple)
    and len(shape) <= _MAX_DIMS
    and all(type(n) is int and 0 <= n < _MAX_SIZE for n in shape)
    and math.prod(n or 1 for n in shape) <= _MAX_SIZE
  )


def read_tree(file: mmap.mmap) -> dict[str, dict[str, np.ndarray]]:
  """Read the released format, {module: {name: array}}, with writable arrays.

  Args:
    file: the mapped file.

  Raises:
    UserError: if the file has another content; other errors if it is damaged.
  """
  tree = Unpickler(file, has_inert=False).load()
  if not is_dict(tree):
    raise UserError(f'holds {describe(tree)}, not a dict of modules')
  params, budget = {}, _MAX_SHARING * len(file)
  for module, leaves in tree.items():
    shown = ascii(module)[:200]
    if not isinstance(module, str) or not is_dict(leaves):
      raise UserError(
        f'holds {describe(leaves)} under {shown}, not a dict of the arrays of '
        'a module'
      )
    params[module] = {}
    for name, leaf in leaves.items():
      if not isinstance(name, str) or getattr(leaf, 'name', '') != 'array':
        raise UserError(
          f'holds {describe(leaf)} under {ascii(name)[:200]} of module '
          f'{shown}, not a NumPy array'
        )
      params[module][name] = _array(leaf)
      # A pickle can refer to an array or a dict many times.
      budget -= _LEAF_BYTES + params[module][name].nbytes
      if budget < 0:
        raise UserError('has the same arrays over and over')
  return params


def _array(node: Node) -> np.ndarray:
  """Build the array of a call."""
  axes = [None]
  match node.args, node.state:
    case (Node('ndarray'), (0,), _), (1, shape, dtype, order, data):
      pass
    case (dtype, data), None:  # A scalar.
      shape, order = (), False
    case (Node('array', None), tuple() as args, state, _), None:  # dill's.
      node = Node('array', args)
      node.state = state
      return _array(node)
    case (data, dtype, shape, order, *axes), None:
      order = order == 'F'
    case _:
      raise UserError(_DAMAGED)
  dtype, data = _dtype(dtype), _bytes(data)
  if not is_shape(shape):
    raise UserError('has an array with an impossible shape')
  if math.prod(shape) * dtype.itemsize != len(data):
    raise UserError(
      f'has an array of shape {list(shape)} with {len(data)} bytes, not '
      f'{dtype.itemsize} for each number'
    )
  array = np.empty(0)
  # Uses the bytes as its memory, in native byte order.
  array.__setstate__((1, shape, dtype, order, data))
  return array if axes in ([], [None]) else array.transpose(*axes)


def _dtype(node: Any) -> np.dtype:
  match node:
    case Node(
      'dtype',
      (str(code), *_),
      # Version, byte order, and fields of records and dates.
      (3, '<' | '>' | '=' | '|' as order, None, None, None, -1, -1, int()),
    ) if code in NUMERIC:
      return np.dtype(code).newbyteorder(order)
    case Node('dtype', (str(code), *_)):
      raise UserError(
        f'has an array of dtype {ascii(code[:50])}, which is damaged or not of '
        'numbers'
      )
  raise UserError(_DAMAGED)


def _bytes(data: Any) -> bytes:
  match data:
    case bytes():
      return data
    case Node('bytes', ()):
      return b''
    case Node('bytes', (str(text), 'latin1')):
      return text.encode('latin1')
  raise UserError(_DAMAGED)
