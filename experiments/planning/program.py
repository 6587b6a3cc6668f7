"""Reads a compiled program, as XLA writes it: where its cycles go, and dtypes.

The TPU compiler writes its own estimate of the cycles beside most instructions;
a loop's body is written once, however often it runs.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import re

# The parts that cycles are counted by; stages are 'stage 1' and so on.
STEM, HEAD, LOSS, OPTIMIZER, OTHER = (
  'stem',
  'head',
  'images, casts, loss',
  'optimizer',
  'other',
)

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRANSFERS = {'infeed', 'outfeed', 'send', 'recv', 'send-done', 'recv-done'}
_COLLECTIVE = re.compile(
  r'(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
  r'(-start)?$'
)
_BLOCK = re.compile(r'^(?:\w*block(?:_v\d)?)(?:_(\d+))?$')
_FLOATS = {'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8}
_BYTES = {**_FLOATS, 'pred': 1, 's8': 1, 'u8': 1, 's32': 4, 'u32': 4}
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a program.

  Attributes:
    name: of the result.
    shape: of the result, as XLA writes it.
    opcode: such as 'fusion'.
    operands: names.
    line: all of it.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  line: str

  @property
  def cycles(self) -> int:
    """The compiler's estimate, 0 where it gives none."""
    found = _CYCLES.search(self.line)
    return int(found[1]) if found else 0

  @property
  def op_name(self) -> str:
    """What it came from, as JAX names it."""
    found = _OP_NAME.search(self.line)
    return found[1] if found else ''

  @property
  def num_bytes(self) -> int:
    """Of the result, without what layouts add."""
    total = 0
    for dtype, sizes in _ARRAY.findall(self.shape):
      size = _BYTES.get(dtype, 4)
      for n in filter(None, sizes.split(',')):
        size *= int(n)
      total += size
    return total


class Program:
  """A compiled program.

  Attributes:
    header: its first line, which says what is aliased.
    computations: instructions by the names of computations.
    entry: the name of the first computation.
  """

  def __init__(self, text: str):
    """Reads the text of a compiled program."""
    lines = text.splitlines()
    self.header = lines[0]
    self.entry = ''
    self.computations: dict[str, list[Instruction]] = {}
    current = None
    for line in lines[1:]:
      start = _COMPUTATION.match(line)
      if start:
        current = self.computations.setdefault(start[2], [])
        if start[1]:
          self.entry = start[2]
      elif line == '}':
        current = None
      elif current is not None and ' = ' in line:
        current.append(_parse(line))

  def walk(
    self, name: str | None = None, times: int = 1
  ) -> Iterator[tuple[Instruction, int]]:
    """Yields what runs, and how often; of branches, all.

    Args:
      name: of the computation to begin with; the entry if None.
      times: how often that runs.
    """
    for instruction in self.computations.get(name or self.entry, ()):
      yield instruction, times
      if instruction.opcode == 'while':
        body = _attribute(instruction, 'body')
        yield from self.walk(body, times * self._trips(instruction))
      elif instruction.opcode == 'conditional':
        for branch in re.findall(
          r'[\w.\-]+', _BRANCHES.search(instruction.line)[1]
        ):
          yield from self.walk(branch, times)
      elif instruction.opcode == 'call':
        yield from self.walk(_attribute(instruction, 'to_apply'), times)

  def _trips(self, loop: Instruction) -> int:
    """Returns how often a loop runs that counts from 0, as JAX's do, or 1."""
    known = _TRIPS.search(loop.line)
    if known:
      return int(known[1])
    condition = self.computations[_attribute(loop, 'condition')]
    lines = {instruction.name: instruction.line for instruction in condition}
    for name in condition[-1].operands:
      constant = re.search(r' constant\((\d+)\)', lines.get(name, ''))
      if constant and 'direction=LT' in condition[-1].line:
        return int(constant[1])
    return 1

  def cycles(self, depths: Iterable[int] = ()) -> dict[str, int]:
    """Returns the estimated cycles by part of the network, largest first.

    Args:
      depths: the number of blocks of each stage.
    """
    found: dict[str, int] = {}
    depths = tuple(depths)
    origins: dict[str, str] = {}
    for instruction, times in self.walk():
      # What has no name changes a layout, mostly, and goes with its operand.
      operand = instruction.operands[0] if instruction.operands else ''
      origin = instruction.op_name or origins.get(operand, '')
      origins[instruction.name] = origin
      if instruction.cycles:
        part = part_of(origin, depths)
        found[part] = found.get(part, 0) + times * instruction.cycles
    return dict(sorted(found.items(), key=lambda item: -item[1]))

  def reduced_bytes(self) -> int:
    """Returns the bytes that devices give each other, once."""
    return sum(
      times * instruction.num_bytes
      for instruction, times in self.walk()
      if _COLLECTIVE.match(instruction.opcode)
    )

  def convolution_dtypes(self) -> dict[str, int]:
    """Returns how many convolutions and products take operands of a dtype.

    The wider of the two counts; the result may be wider still.
    """
    found: dict[str, int] = {}
    for instructions in self.computations.values():
      dtypes = {i.name: i.shape.partition('[')[0] for i in instructions}
      for instruction in instructions:
        if instruction.opcode in ('convolution', 'dot'):
          operands = [dtypes.get(name, '') for name in instruction.operands[:2]]
          widest = max(operands, key=lambda dtype: _FLOATS.get(dtype, 0))
          found[widest] = found.get(widest, 0) + 1
    return found

  def host_transfers(self) -> list[str]:
    """Returns the names of instructions that talk to the host."""
    return [
      instruction.name
      for instructions in self.computations.values()
      for instruction in instructions
      if instruction.opcode in _TRANSFERS
      or 'is_host_transfer=true' in instruction.line
    ]

  def num_donated(self) -> int:
    """Returns how many results take the memory of an argument."""
    return len(
      re.findall(r'\(\d+, \{[\d, ]*\}, (?:may|must)-alias\)', self.header)
    )


def part_of(op_name: str, depths: tuple[int, ...]) -> str:
  """Returns the part of the network, or of the step, that a name is of.

  Args:
    op_name: such as 'jit(f)/transpose(jvp(NFNet))/nf_block_3/conv1/add'.
    depths: the number of blocks of each stage.
  """
  if not op_name:
    return OTHER
  names = op_name.split('/')
  for name in names:
    block = _BLOCK.match(name)
    if block:
      return _stage(int(block[1] or 0), depths)
    if name.startswith('stem') or name == 'initial_conv':
      return STEM
    if name in ('final_conv', 'linear', 'fc'):
      return HEAD
  # Of the network itself, between its modules: the pool before the last layer.
  if re.search(r'jvp\(\w+\)', op_name):
    return HEAD
  return LOSS if 'jvp(' in op_name else OPTIMIZER


def _stage(block: int, depths: tuple[int, ...]) -> str:
  for stage, depth in enumerate(depths, start=1):
    if block < depth:
      return f'stage {stage}'
    block -= depth
  return OTHER


def _parse(line: str) -> Instruction:
  name, _, rest = line.strip().removeprefix('ROOT ').partition(' = ')
  shape, rest = _split_shape(rest)
  opcode, _, rest = rest.partition('(')
  operands = re.findall(r'%([\w.\-]+)', rest[: _closing(rest)])
  return Instruction(
    name.lstrip('%'), shape, opcode.strip(), tuple(operands), line
  )


def _attribute(instruction: Instruction, name: str) -> str:
  """Returns the name of the computation that an instruction calls."""
  return re.search(rf'\b{name}=%?([\w.\-]+)', instruction.line)[1]


def _split_shape(text: str) -> tuple[str, str]:
  """Splits what follows '=': a shape, or several in parentheses."""
  if not text.startswith('('):
    shape, _, rest = text.partition(' ')
    return shape, rest
  end = _closing(text[1:]) + 2
  return text[:end], text[end:].lstrip()


def _closing(text: str) -> int:
  """Returns where the parenthesis closes that was opened before the text."""
  depth = 1
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)
