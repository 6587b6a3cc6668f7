"""From compiled programs to memory, milliseconds and hours."""

import dataclasses
import math
from typing import Any

from experiments.planning import chips, compiling, program, workload

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a recipe needs on so many devices.

  Attributes:
    chip: the device.
    work: what the devices do.
    update: the compiled update.
    evaluation: the compiled step of evaluation; None if it was left out.
    cycles: estimated cycles of an update by part of the network; empty where
      the compiler gives none, or it does not fit.
    reduced_bytes: what the devices average in an update.
  """

  chip: chips.Chip
  work: workload.Workload
  update: compiling.Compiled
  evaluation: compiling.Compiled | None
  cycles: dict[str, int]
  reduced_bytes: int

  @property
  def num_chips(self) -> int:
    """How many chips the devices are on."""
    return math.ceil(self.work.devices / self.chip.devices_per_chip)

  @property
  def evaluation_peak_bytes(self) -> int | None:
    """Of evaluation, beside what training keeps meanwhile."""
    if self.evaluation is None:
      return None
    state = self.work.bytes
    # Its own arguments are the parameters, or their averages.
    return self.evaluation.peak_bytes + state['optimizer'] + state['averages']

  @property
  def fits(self) -> bool:
    """Whether training fits the memory, and evaluation."""
    if not self.update.fits:
      return False
    return self.evaluation is None or (
      self.evaluation.fits
      and self.evaluation_peak_bytes <= self.evaluation.capacity_bytes
    )

  @property
  def communication_seconds(self) -> float:
    """Of an update: the least that averaging over the chips takes.

    Each chip sends what it has twice, but for its own share, over all its links
    at once; nothing is computed meanwhile.
    """
    share = (self.num_chips - 1) / self.num_chips
    rate = self.chip.link_gb_per_s * 1e9
    return 2 * share * self.reduced_bytes / rate

  @property
  def step_seconds(self) -> float | None:
    """Of an update, estimated; None where the compiler estimates nothing."""
    if not self.cycles:
      return None
    computing = sum(self.cycles.values()) / (self.chip.clock_ghz * 1e9)
    return computing + self.communication_seconds

  def to_json(self) -> dict[str, Any]:
    """Returns all numbers, by the names that the command prints."""
    work, config = self.work, self.work.recipe.config
    results = {
      'model': config.model,
      'device': self.chip.name,
      'devices': work.devices,
      'chips': self.num_chips,
      'batch': work.batch,
      'train_batch_size': work.batch * work.devices,
      'image_size': config.image_size,
      'remat': config.remat,
      'accumulate_steps': config.accumulate_steps,
      'fits': self.fits,
      'peak_gib': _gib(self.update.peak_bytes),
      'capacity_gib': _gib(self.update.capacity_bytes),
      'memory_gib': {k: _gib(v) for k, v in self.memory().items()},
      'steps': work.num_steps,
      'compile_seconds': round(self.update.seconds, 1),
      **self._times(),
    }
    if self.evaluation is not None:
      results['eval_batch'] = work.eval_batch
      results['eval_peak_gib'] = _gib(self.evaluation_peak_bytes)
      results['compile_seconds'] += round(self.evaluation.seconds, 1)
    return results

  def memory(self) -> dict[str, int]:
    """Returns the bytes of each device by what they hold.

    `temporary` and `code` are the compiler's, 0 where it does not fit. The
    first has the `activations` that the backward pass needs, as JAX writes it,
    and the `gradients` in float32: mostly not at the same time, so these are no
    sum.
    """
    parts = self.update.parts
    return {
      **self.work.bytes,
      'temporary': parts.get('temporary', 0),
      'activations': self.work.activations,
      'gradients': self.work.bytes['parameters'],
      'code': parts.get('code', 0),
    }

  def _times(self) -> dict[str, Any]:
    seconds, work = self.step_seconds, self.work
    if seconds is None:
      names = ('step_ms', 'mfu', 'images_per_second', 'hours', 'chip_hours')
      return dict.fromkeys(names)
    flops = work.flops_per_image * work.batch
    hours = work.num_steps * seconds / 3600
    return {
      'step_ms': _round(1e3 * seconds),
      'communication_ms': _round(1e3 * self.communication_seconds),
      'mfu': _round(flops / seconds / self.chip.peak_flops),
      'images_per_second': _round(work.batch * work.devices / seconds),
      'hours': _round(hours),
      'chip_hours': _round(hours * self.num_chips),
      'cycles': self.cycles,
    }


def plan(
  chip: chips.Chip, work: workload.Workload, evaluates: bool = True
) -> Plan:
  """Compiles what a recipe does, and reads the programs.

  Args:
    chip: the device.
    work: what the devices do.
    evaluates: whether evaluation is compiled, too; it is not where training
      does not fit.

  Raises:
    compiling.CompilerMissingError: without the compiler.
  """
  update = compiling.compile_for(chip, work.update())
  evaluation, cycles, reduced = None, {}, 0
  if update.fits and evaluates:
    evaluation = compiling.compile_for(chip, work.evaluation())
  if update.text and chip.clock_ghz:
    compiled = program.Program(update.text)
    cycles = compiled.cycles(work.depths)
    reduced = compiled.reduced_bytes()
  return Plan(chip, work, update, evaluation, cycles, reduced)


def _round(value: float) -> float:
  return float(f'{value:.5g}')


def _gib(size: int) -> float:
  return round(size / _GIB, 3)
