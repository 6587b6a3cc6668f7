"""The devices that runs can be planned for: memory, clocks, peaks, links.

A device is a device of JAX: one of the two cores of a TPU v3 chip, or a whole
chip of another TPU. Peaks, memory and links are from Google's pages on TPU v3,
v4, v5e, v5p and v6e. The clocks follow from the published peaks. `capacity_gib`
is the "available HBM" in the compiler's messages: the memory without the part
that the runtime reserves.
"""

import dataclasses
import difflib

from nfnets.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device.

  Attributes:
    name: name on the command line.
    topology: the compiler's name of a small topology with several devices.
    options: options of the topology.
    devices_per_chip: number of devices per chip.
    clock_ghz: clock of a device.
    macs_per_cycle: bfloat16 multiply-adds of a device per cycle.
    memory_gib: published memory of a device.
    capacity_gib: memory of a device that a program can use.
    link_gb_per_s: bandwidth of a chip over all links, in 10^9 bytes per second.
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
    """Peak bfloat16 operations per second; a multiply-add counts as two."""
    return 2 * self.macs_per_cycle * self.clock_ghz * 1e9


# A v3 core has two matrix units of 128x128. v4 and v5p have two cores with four
# each, which act as one device. v5e has four, and v6e four of 256x256.
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
      # Otherwise the two cores are two devices.
      (('chip_config_name', 'megacore'),),
    ),
    Chip('tpu_v5e', 'v5e:1x2', 1, 1.5, _V5E, 16, 15.75, 200),
    Chip('tpu_v5p', 'v5p:1x2x1', 1, 1.75, _V4, 95, 95.73, 600),
    Chip('tpu_v6e', 'v6e:1x2', 1, 1.75, _V6E, 32, 31.24, 400),
  )
}


def get(name: str) -> Chip:
  """Return the device with this name.

  Raises:
    UserError: if the name is unknown.
  """
  if name in CHIPS:
    return CHIPS[name]
  close = difflib.get_close_matches(name, CHIPS, n=1, cutoff=0.5)
  hint = f' Did you mean {close[0]}?' if close else ''
  raise UserError(
    f'There is no device {name!r}.{hint} The devices are {", ".join(CHIPS)}.',
    2,
  )
