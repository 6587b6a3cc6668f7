"""Compiles programs for absent devices."""

import dataclasses
import importlib.util
import re
import time
from typing import Any

import jax
from jax.experimental import topologies
import numpy as np

from experiments.planning import chips, workload
from nfnets import conv
from nfnets.errors import UserError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled program, or the memory that it would need.

  Attributes:
    peak_bytes: peak memory of each device.
    capacity_bytes: available memory of each device.
    seconds: duration of the compilation.
    text: the program in XLA's text format. '' if it does not fit.
    parts: bytes of `arguments`, `temporary` memory and `code`. Empty if the
      program does not fit.
  """

  peak_bytes: int
  capacity_bytes: int
  seconds: float
  text: str = ''
  parts: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def fits(self) -> bool:
    """Whether the memory suffices."""
    return bool(self.text) and self.peak_bytes <= self.capacity_bytes


def devices(chip: chips.Chip) -> list[Any]:
  """Return JAX's descriptions of the devices.

  Raises:
    UserError: if the compiler is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      "Planning needs the TPU compiler: pip install 'nfnets[plan]'"
    )
  return topologies.get_topology_desc(
    platform='tpu', topology_name=chip.topology, **dict(chip.options)
  ).devices


def compile_for(chip: chips.Chip, program: workload.StepSpec) -> Compiled:
  """Compile the program of each device.

  Args:
    chip: the device.
    program: the program of each device.

  Raises:
    UserError: if the compiler is not installed.
  """
  mesh = jax.sharding.Mesh(np.array(devices(chip)), (workload.AXIS,))
  specs = tuple(
    jax.sharding.PartitionSpec(*([workload.AXIS] if is_split else []))
    for is_split in program.split
  )

  def function(*arguments):
    # Split arguments are stacked as in pmap: [devices, ...].
    arguments = (
      jax.tree.map(lambda x: x[0], x) if is_split else x
      for x, is_split in zip(arguments, program.split, strict=True)
    )
    return program.function(*arguments)

  def stack(leaf, spec):
    shape = (mesh.size, *leaf.shape) if len(spec) else leaf.shape
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

  arguments = (
    jax.tree.map(lambda x, spec=spec: stack(x, spec), tree)
    for tree, spec in zip(program.arguments, specs, strict=True)
  )
  mapped = jax.shard_map(
    function,
    mesh=mesh,
    in_specs=specs,
    out_specs=jax.sharding.PartitionSpec(),
    check_vma=False,
  )
  start = time.monotonic()
  # JAX's default backend is the CPU here, so 'auto' would be wrong.
  with conv.lowering('space_to_depth'):
    lowered = jax.jit(mapped, donate_argnums=program.donated).lower(*arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    found = out_of_memory(str(error))
    if found is None:
      raise
    return Compiled(*found, seconds=time.monotonic() - start)
  memory = compiled.memory_analysis()
  parts = {
    'arguments': memory.argument_size_in_bytes,
    'temporary': memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    'code': memory.generated_code_size_in_bytes,
  }
  return Compiled(
    peak_bytes=sum(parts.values()),
    capacity_bytes=int(chip.capacity_gib * _GIB),
    seconds=time.monotonic() - start,
    text=compiled.as_text(),
    parts=parts,
  )


_SIZES = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_SIZE = r'([\d.]+)([KMGT]?)i?B?'


def out_of_memory(message: str) -> tuple[int, int] | None:
  """Parse (needed bytes, available bytes) from an error; None for others."""
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  for pattern in (
    rf'Used {_SIZE} of {_SIZE} hbm',
    rf'\({_SIZE}\) exceeds available HBM \({_SIZE}\)',
  ):
    found = re.search(pattern, message, re.I)
    if found:
      wanted, wanted_unit, there, unit = found.groups()
      return (
        int(float(wanted) * _SIZES[wanted_unit.upper()]),
        int(float(there) * _SIZES[unit.upper()]),
      )
  return None
