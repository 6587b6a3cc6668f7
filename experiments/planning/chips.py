"""The devices that a run can be planned for: sizes, clocks, peaks, links.

A device is what JAX calls one: of TPU v3, a core, of which a chip has two; else
a whole chip. Sources: Google's pages on TPU v3, v4, v5e, v5p and v6e (peaks,
memory, links); the clocks are those that give the published peaks.
`capacity_gib` is what the compiler has to offer, in its own words ("exceeds
available HBM"): the memory without what the runtime keeps.
"""

import dataclasses
import difflib

from nfnets.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device.

  Attributes:
    name: for the command line.
    topology: of the devices that a program is compiled for, as the compiler
      names them: few, but more than one.
    options: of the topology.
    devices_per_chip: how many devices a chip is.
    clock_ghz: of a device.
    macs_per_cycle: multiply-adds of bfloat16 that its matrix units begin in a
      cycle.
    memory_gib: of a device, as published.
    capacity_gib: what of it a program can have.
    link_gb_per_s: what a chip sends to its neighbours at the same time, over
      all its links, in 10^9 bytes per second.
  """

  name: str
  topology: str
  devices_per_chip: int
  clock_ghz: float
  macs_per_cycle: int
  memory_gib: float
  capacity_gib: float
  link_gb_per_s: float
  options: tuple[tuple[str, str], ...] = ()

  @property
  def peak_flops(self) -> float:
    """Operations per second of a device, in bfloat16; an addition is one."""
    return 2 * self.macs_per_cycle * self.clock_ghz * 1e9


# Two matrix units of 128x128 in a core of v3; four in one of the two cores of
# v4 and v5p, which act as one device; four in v5e, and four of 256x256 in v6e.
_V3, _V5E, _V4, _V6E = 2 * 128**2, 4 * 128**2, 8 * 128**2, 4 * 256**2

CHIPS = {
  chip.name: chip
  for chip in (
    Chip('tpu_v3', 'v3:1x1', 2, 0.94, _V3, 16, 15.48, 328),
    Chip(
      'tpu_v4',
      'v4:1x2x1',
      1,
      1.05,
      _V4,
      32,
      30.75,
      300,
      # Else its two cores are two devices.
      (('chip_config_name', 'megacore'),),
    ),
    Chip('tpu_v5e', 'v5e:1x2', 1, 1.5, _V5E, 16, 15.75, 200),
    Chip('tpu_v5p', 'v5p:1x2x1', 1, 1.75, _V4, 95, 95.73, 600),
    Chip('tpu_v6e', 'v6e:1x2', 1, 1.75, _V6E, 32, 31.24, 400),
  )
}


def get(name: str) -> Chip:
  """Returns the device of that name.

  Raises:
    UserError: if there is none.
  """
  if name in CHIPS:
    return CHIPS[name]
  close = difflib.get_close_matches(name, CHIPS, n=1, cutoff=0.5)
  hint = f' Did you mean {close[0]}?' if close else ''
  raise UserError(
    f'There is no device {name!r}.{hint} The devices are {", ".join(CHIPS)}.',
    2,
  )
