"""Reads pickles of data, without calling what they name.

A pickle is a program for a small stack machine, and may ask that machine to
import and call anything. This one knows the instructions that containers,
numbers, strings and bytes need. What a pickle imports is looked up in a table
of our own functions, which take the place of NumPy's or PyTorch's; a name that
is not in the table ends the reading. Lengths that a file claims are compared
with what is left of it before memory is taken, so a file of n bytes costs a
small multiple of n.
"""

from collections.abc import Callable, Mapping
import io
import struct
from typing import Any, BinaryIO

import numpy as np

# A network has some thousands of arrays, of about 40 instructions each.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_NAME = 1000  # Characters.


class File:
  """A file that is never asked for more bytes than it has."""

  def __init__(self, file: BinaryIO, size: int):
    self.raw = file
    self.size = size
    self.position = 0

  def rewind(self) -> None:
    """Goes back to the first byte."""
    self.raw.seek(0)
    self.position = 0

  def _check(self, count: int, available: int) -> None:
    if not 0 <= count <= available:
      raise ValueError(
        f'ends too early, after {self.size} bytes: a download that stopped, or '
        'a damaged file'
      )

  def read(self, count: int) -> bytes:
    """Returns the next bytes."""
    self._check(count, self.size - self.position)
    data = self.raw.read(count)
    self._check(count, len(data))
    self.position += count
    return data

  def read_array(self, count: int) -> np.ndarray:
    """Returns the next bytes as uint8 [count], writable and in memory once."""
    # numpy.empty would ask for huge pages, which can take long to find.
    return np.frombuffer(io.BytesIO(self.read(count)).getbuffer(), np.uint8)

  def read_text(self, count: int) -> str:
    """Returns the next bytes, which are UTF-8."""
    return self._decode(self.read(count))

  def read_number(self, layout: str) -> Any:
    """Returns the next number, in the words of `struct`."""
    return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

  def read_line(self) -> str:
    """Returns the text up to the next end of a line."""
    line = self.raw.readline(_MAX_NAME)
    self.position += len(line)
    if not line.endswith(b'\n'):
      self._check(_MAX_NAME, len(line))
      raise self.damaged()
    return self._decode(line[:-1])

  def _decode(self, data: bytes) -> str:
    try:
      return data.decode()
    except UnicodeDecodeError as error:
      raise self.damaged() from error

  def damaged(self) -> ValueError:
    """Returns the error of a pickle that no pickler wrote."""
    return ValueError(f'is damaged at or before byte {self.position}')


class Bytes:
  """Bytes of a pickle: `data` is uint8 [n]."""

  def __init__(self, data: np.ndarray):
    self.data = data


class Name:
  """A function or class that a pickle names; nothing of it is imported."""

  def __init__(self, name: str, call: Callable[[tuple], Any] | None):
    self.name = name
    self.call = call


class Module:
  """A module that a pickle names."""

  def __init__(self, name: str):
    self.name = name


class StandIn:
  """What a function of ours gives in place of a library's object."""

  kind: str  # What to call it in a message.


class Stateful(StandIn):
  """What stands for an object that gets its state after it was made."""

  def set_state(self, state: Any) -> None:
    """Takes the state.

    Raises:
      ValueError: if it is not what such an object has.
    """
    raise NotImplementedError


class _OrderedDict(dict, Stateful):
  """Stands for collections.OrderedDict, whose attributes are left out."""

  kind = 'a dict'

  def set_state(self, state: Any) -> None:
    if not isinstance(state, dict):
      raise ValueError('has a damaged dict')


def _ordered_dict(args: tuple) -> _OrderedDict:
  # Python 3 makes it empty and sets the items afterwards, as those of a dict.
  if args:
    raise ValueError('has a damaged dict')
  return _OrderedDict()


# For the table of what a pickle may name.
ORDERED_DICT = {'collections.OrderedDict': _ordered_dict}


class Unpickler:
  """Runs one pickle of protocol 2 to 5."""

  def __init__(
    self,
    file: File,
    known: Mapping[str, Callable[[tuple], Any] | None],
    hint: str,
    persistent_load: Callable[[Any], Any] | None = None,
  ):
    """Prepares to read.

    Args:
      file: where the pickle is, from its first byte on.
      known: what the pickle may name, 'module.name', and the function of ours
        that is called with the arguments in its place; None for a class that
        is an argument itself.
      hint: a sentence on what such a file should hold.
      persistent_load: is called with a persistent id, and returns its object.
    """
    self._file = file
    self._known = known
    self._hint = hint
    self._persistent_load = persistent_load
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}

  def find(self, module: Any, name: Any) -> Name:
    """Returns what stands for a name.

    Raises:
      ValueError: if no file of weights needs it.
    """
    if not isinstance(module, str) or not isinstance(name, str):
      raise self._file.damaged()
    full = f'{module}.{name}'
    if full not in self._known:
      shown = ascii(full[:200])[1:-1]
      raise ValueError(
        f'asks for {shown}, which no file of weights needs; nothing of it was '
        f'run. {self._hint}'
      )
    return Name(full, self._known[full])

  def load(self) -> Any:
    """Returns the object, with our functions' results for what it names.

    Raises:
      ValueError: if the pickle is damaged, or asks for anything else.
    """
    for _ in range(_MAX_INSTRUCTIONS):
      code = self._file.read(1)
      if code == b'.':
        return self._pop()
      self._run(code)
    raise ValueError(
      f'has more than {_MAX_INSTRUCTIONS} pickle instructions, which no file '
      f'of weights needs. {self._hint}'
    )

  def _run(self, code: bytes) -> None:
    """Runs one instruction, named as in the standard library's pickletools."""
    file, push = self._file, self._stack.append
    match code:
      case b'\x80':  # PROTO
        protocol = file.read_number('<B')
        if not 2 <= protocol <= 5:
          raise ValueError(f'is a pickle of protocol {protocol}, not 2 to 5')
      case b'\x95':  # FRAME
        file.read(8)
      case b'(':  # MARK
        self._marks.append(len(self._stack))

      case b'N':  # NONE
        push(None)
      case b'\x88':  # NEWTRUE
        push(True)
      case b'\x89':  # NEWFALSE
        push(False)
      case b'K':  # BININT1
        push(file.read_number('<B'))
      case b'M':  # BININT2
        push(file.read_number('<H'))
      case b'J':  # BININT
        push(file.read_number('<i'))
      case b'\x8a':  # LONG1
        data = file.read(file.read_number('<B'))
        push(int.from_bytes(data, 'little', signed=True))
      case b'G':  # BINFLOAT
        push(file.read_number('>d'))
      case b'\x8c':  # SHORT_BINUNICODE
        push(file.read_text(file.read_number('<B')))
      case b'X':  # BINUNICODE
        push(file.read_text(file.read_number('<I')))
      case b'\x8d':  # BINUNICODE8
        push(file.read_text(file.read_number('<Q')))
      case b'C':  # SHORT_BINBYTES
        push(Bytes(file.read_array(file.read_number('<B'))))
      case b'B':  # BINBYTES
        push(Bytes(file.read_array(file.read_number('<I'))))
      case b'\x8e' | b'\x96':  # BINBYTES8, BYTEARRAY8
        push(Bytes(file.read_array(file.read_number('<Q'))))

      case b')':  # EMPTY_TUPLE
        push(())
      case b'\x85' | b'\x86' | b'\x87':  # TUPLE1, TUPLE2, TUPLE3
        items = [self._pop() for _ in range(code[0] - 0x84)]
        push(tuple(reversed(items)))
      case b't':  # TUPLE
        items = self._pop_to_mark()
        push(tuple(items))
      case b']':  # EMPTY_LIST
        push([])
      case b'a':  # APPEND
        self._append([self._pop()])
      case b'e':  # APPENDS
        self._append(self._pop_to_mark())
      case b'}':  # EMPTY_DICT
        push({})
      case b's':  # SETITEM
        value, key = self._pop(), self._pop()
        self._set_items([key, value])
      case b'u':  # SETITEMS
        self._set_items(self._pop_to_mark())

      case b'q':  # BINPUT
        self._memo[file.read_number('<B')] = self._top()
      case b'r':  # LONG_BINPUT
        self._memo[file.read_number('<I')] = self._top()
      case b'\x94':  # MEMOIZE
        self._memo[len(self._memo)] = self._top()
      case b'h':  # BINGET
        push(self._recall(file.read_number('<B')))
      case b'j':  # LONG_BINGET
        push(self._recall(file.read_number('<I')))

      case b'c':  # GLOBAL
        module = file.read_line()
        push(self.find(module, file.read_line()))
      case b'\x93':  # STACK_GLOBAL
        name, module = self._pop(), self._pop()
        push(self.find(module, name))
      case b'R':  # REDUCE
        args, function = self._pop(), self._pop()
        push(self._call(function, args))
      case b'b':  # BUILD
        state = self._pop()
        if not isinstance(self._top(), Stateful):
          raise file.damaged()
        self._top().set_state(state)
      case b'Q' if self._persistent_load:  # BINPERSID
        push(self._persistent_load(self._pop()))
      case _:
        raise self._unknown(code)

  def _floor(self) -> int:
    return self._marks[-1] if self._marks else 0

  def _top(self) -> Any:
    if len(self._stack) <= self._floor():
      raise self._file.damaged()
    return self._stack[-1]

  def _pop(self) -> Any:
    self._top()
    return self._stack.pop()

  def _pop_to_mark(self) -> list[Any]:
    if not self._marks:
      raise self._file.damaged()
    start = self._marks.pop()
    items = self._stack[start:]
    del self._stack[start:]
    return items

  def _recall(self, index: int) -> Any:
    if index not in self._memo:
      raise self._file.damaged()
    return self._memo[index]

  def _append(self, items: list[Any]) -> None:
    if not isinstance(self._top(), list):
      raise self._file.damaged()
    self._top().extend(items)

  def _set_items(self, items: list[Any]) -> None:
    target = self._top()
    if not isinstance(target, dict) or len(items) % 2:
      raise self._file.damaged()
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Large numbers could be chosen so that all have the same hash.
      small = isinstance(key, int) and abs(key) < 2**31
      if not small and not isinstance(key, str):
        raise ValueError(f'has {kind(key)} for a key, not a string')
      target[key] = value

  def _call(self, function: Any, args: Any) -> Any:
    if not isinstance(function, Name) or not isinstance(args, tuple):
      raise self._file.damaged()
    if function.call is None:
      raise ValueError(f'calls {function.name}, which holds no weights')
    return function.call(args)

  def _unknown(self, code: bytes) -> ValueError:
    import pickletools

    opcode = pickletools.code2op.get(code.decode('latin-1'))
    if opcode is None:
      return self._file.damaged()
    return ValueError(
      f'has the pickle instruction {opcode.name} at byte '
      f'{self._file.position - 1}, which no file of weights needs; it was not '
      f'run. {self._hint}'
    )


def kind(value: Any) -> str:
  """Returns what to call a value in a message."""
  match value:
    case Name() | Module():
      return value.name
    case StandIn():
      return value.kind
    case Bytes():
      return 'bytes'
    case None:
      return 'None'
    case _:
      return f'a value of type {type(value).__name__}'
