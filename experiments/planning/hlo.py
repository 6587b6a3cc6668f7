"""Parses the text of a compiled step: estimated cycles and communication.

The TPU compiler annotates most instructions with an estimate of their cycles.
The body of a loop appears once.
"""

from collections.abc import Iterator
import math
import re

from nfnets import module_names

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
# Name, shape, opcode, and the first operand if there is one.
_INSTRUCTION = re.compile(
  r'%?([\w.\-]+) = (.+?) ([\w\-]+)\((?:[^%]*?%([\w.\-]+))?'
)
_CALLED = re.compile(
  r'\b(body|to_apply|branch_computations)=(\{[^}]*\}|[^\s,]+)'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COLLECTIVES = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  'collective-permute',
)
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_BYTES = {'bf16': 2, 'f16': 2, 'f64': 8, 'pred': 1, 's8': 1, 'u8': 1}


class HloText:
  """The text of a compiled step.

  Attributes:
    computations: {name: lines of its instructions}.
    entry: name of the entry computation.
  """

  def __init__(self, text: str):
    """Parse the text."""
    self.computations: dict[str, list[str]] = {}
    self.entry = ''
    for line in text.splitlines()[1:]:
      start = _COMPUTATION.match(line)
      if start:
        lines = self.computations[start[2]] = []
        self.entry = start[2] if start[1] else self.entry
      elif ' = ' in line:
        lines.append(line)

  def walk(self, name: str, times: int = 1) -> Iterator[tuple[str, int]]:
    """Yield the lines that run, and how often. All branches count.

    Args:
      name: name of a computation.
      times: number of times that it runs.
    """
    for line in self.computations.get(name, ()):
      yield line, times
      for kind, called in _CALLED.findall(line):
        trips = self._trips(line) if kind == 'body' else 1
        for inner in re.findall(r'[\w.\-]+', called):
          yield from self.walk(inner, times * trips)

  def _trips(self, loop: str) -> int:
    """Return the trip count of a loop that counts from 0, or 1 if unknown."""
    known = _TRIPS.search(loop)
    if known:
      return int(known[1])
    lines = self.computations[re.search(r'condition=%?([\w.\-]+)', loop)[1]]
    for operand in re.findall(r'%[\w.\-]+', lines[-1].partition(' = ')[2]):
      for line in lines:
        constant = re.search(rf'{operand} = .* constant\((\d+)\)', line)
        if constant and 'direction=LT' in lines[-1]:
          return int(constant[1])
    return 1

  def cycles(self, depths: tuple[int, ...] = ()) -> dict[str, int]:
    """Return the estimated cycles per part of the network, largest first.

    Args:
      depths: number of blocks of each stage.
    """
    found: dict[str, int] = {}
    origins: dict[str, str] = {}
    for line, times in self.walk(self.entry):
      name, _, _, operand = _INSTRUCTION.search(line).groups()
      origin = _OP_NAME.search(line)
      # Instructions without a name mostly change a layout. They belong to the
      # part of their operand.
      origins[name] = origin[1] if origin else origins.get(operand, '')
      cycles = _CYCLES.search(line)
      if cycles:
        part = part_of(origins[name], depths)
        found[part] = found.get(part, 0) + times * int(cycles[1])
    return dict(sorted(found.items(), key=lambda item: -item[1]))

  def reduced_bytes(self) -> int:
    """Return the bytes in collective operations."""
    total = 0
    for line, times in self.walk(self.entry):
      _, shape, opcode, _ = _INSTRUCTION.search(line).groups()
      if opcode.removesuffix('-start') in _COLLECTIVES:
        total += times * sum(
          _BYTES.get(dtype, 4) * math.prod(map(int, filter(None, s.split(','))))
          for dtype, s in _ARRAY.findall(shape)
        )
    return total


def part_of(op_name: str, depths: tuple[int, ...]) -> str:
  """Return the part of the network or of the step that an operation belongs to.

  Args:
    op_name: e.g. 'jit(f)/transpose(jvp(NFNet))/nf_block_3/conv1/add'.
    depths: number of blocks of each stage.
  """
  for name in op_name.split('/'):
    block = module_names.block(name)
    if block is not None:
      ends = (sum(depths[: i + 1]) for i in range(len(depths)))
      stages = (i for i, end in enumerate(ends, start=1) if block < end)
      return f'stage {next(stages, len(depths))}'
    if module_names.is_stem(name):
      return 'stem'
    if name in ('final_conv', 'linear', 'fc'):
      return 'head'
  # The pooling before the last layer has no module.
  if re.search(r'jvp\(\w+\)', op_name):
    return 'head'
  if not op_name:
    return 'other'
  return 'images, casts, loss' if 'jvp(' in op_name else 'optimizer'
