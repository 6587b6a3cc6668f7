"""Reads pickles as data: nothing that they name is imported or called.

A pickle is a program for a small stack machine, and may ask that machine to
import and call anything. Here the machine gets only the instructions that
containers, numbers, strings and bytes need, and each name and call becomes a
`Node` that says what it was. `read_tree` and `torch_file` look for arrays in
these nodes. The machine is the one that the standard library has in Python: the
one in C ends the process on a key of nested tuples.
"""

import math
import mmap
import pickle
import pickletools
from typing import Any

import numpy as np

from nfnets.errors import UserError

# What JAX computes with: no strings, objects, records or complex numbers.
NUMERIC = frozenset('i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split())
_MAX_DIMS = 32
_MAX_SIZE = 2**48
# A network has some thousands of arrays, of about 40 instructions each.
_MAX_INSTRUCTIONS = 1_000_000
# What the tree may take, as a multiple of the file; and a leaf, but for its
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
# Others call, or build what no file of weights has.
_INSTRUCTIONS = (
  'PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 '
  'BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES '
  'BINBYTES8 EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS '
  'SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL '
  'STACK_GLOBAL BUILD BINPERSID'
).split()
# The names with a meaning, and what their nodes are called. The files of 2021
# were written with dill, which finds some of NumPy's functions by their names.
# Versions of NumPy differ in where they keep them, and in protocol 5 arrays are
# made by another one. Python 3 writes bytes in protocol 2 as encoded text.
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
  """A dict of a pickle, or a name, or a call that was not made.

  Attributes:
    name: the name, as in `_KNOWN` or else in full.
    args: what it is called with; None for the name alone.
    state: what is to be put into the result.
  """

  __slots__ = ('args', 'name', 'state')
  __match_args__ = ('name', 'args', 'state')

  def __init__(self, name: str, args: tuple | None = None):
    super().__init__()
    self.name, self.args, self.state = name, args, None

  def __setitem__(self, key: Any, value: Any) -> None:
    # Others could be chosen to have the same hash, or to be nested too deeply.
    is_small = type(key) is int and abs(key) < 2**31
    if not is_small and type(key) is not str:
      key = f'{describe(key)} for a key', len(self)
    super().__setitem__(key, value)

  def __setstate__(self, state: Any) -> None:
    self.state = state

  def append(self, value: Any) -> None:
    """Ignores the items of what is not needed."""

  extend = append


class Unpickler(_MACHINE):
  """Reads one pickle; `has_inert` allows names that are not in `_KNOWN`."""

  def __init__(self, file: Any, has_inert: bool):
    super().__init__(file)
    self._has_inert = has_inert
    self._count = 0

  def __getitem__(self, code: int) -> Any:
    """Returns the function of an instruction, as `dispatch` does."""
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
    """Returns what stands for a name."""
    full = f'{module}.{name}'
    shown = ascii(full[:200])[1:-1]
    if full not in _KNOWN and not self._has_inert:
      raise UserError(
        f'asks for {shown}, which no file of weights needs; nothing of it was '
        f'run. {_HINT}'
      )
    return Node(_KNOWN.get(full, shown))

  def persistent_load(self, pid: Any) -> Node:
    """Returns what stands for a piece of memory of PyTorch's."""
    return Node('storage', (pid,))

  def _call(self) -> None:
    """Replaces a name and its arguments by what stands for the call."""
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

  # No attribute, with which the bytes in the memo would stay.
  dispatch = property(lambda self: self)
  functions = {
    **{name: _MACHINE.dispatch[_CODES[name]] for name in _INSTRUCTIONS},
    'BYTEARRAY8': _MACHINE.dispatch[_CODES['BINBYTES8']],
    'EMPTY_DICT': lambda self: self.append(Node('dict', ())),
    'REDUCE': _call,
    'NEWOBJ': _call,
  }


def describe(value: Any) -> str:
  """Returns what to call a value in a message, and nothing of its content."""
  is_node = isinstance(value, Node)
  return f'a value of type {value.name if is_node else type(value).__name__}'


def is_dict(value: Any) -> bool:
  """Returns whether this is a dict, ordered or not."""
  return isinstance(value, Node) and (value.name, value.args) == ('dict', ())


def is_shape(shape: Any) -> bool:
  """Returns whether NumPy could make an array of this shape."""
  return (
    isinstance(shape, tuple)
    and len(shape) <= _MAX_DIMS
    and all(type(n) is int and 0 <= n < _MAX_SIZE for n in shape)
    and math.prod(n or 1 for n in shape) <= _MAX_SIZE
  )


def read_tree(file: mmap.mmap) -> dict[str, dict[str, np.ndarray]]:
  """Reads the released format, {module: {name: array}}, of writable arrays.

  Args:
    file: the whole file. It returns no more than it has, whatever is claimed.

  Raises:
    UserError: if it is anything else; other errors if it is damaged.
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
      # A pickle can name one array, or a whole dict of them, again and again.
      budget -= _LEAF_BYTES + params[module][name].nbytes
      if budget < 0:
        raise UserError('has the same arrays over and over')
  return params


def _array(node: Node) -> np.ndarray:
  """Returns the array that a call would have made."""
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
  # Takes the bytes as its memory, and gives them the machine's order.
  array.__setstate__((1, shape, dtype, order, data))
  return array if axes in ([], [None]) else array.transpose(*axes)


def _dtype(node: Any) -> np.dtype:
  match node:
    case Node(
      'dtype',
      (str(code), *_),
      # Version, byte order, then what only records, dates and the like have.
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
