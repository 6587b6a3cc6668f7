"""From compiled steps to memory, milliseconds and hours."""

import math
from typing import Any

from experiments.planning import chips, compiling, hlo, workload

_GIB = 2**30


def plan(
  chip: chips.Chip, work: workload.Workload, evaluates: bool = True
) -> dict[str, Any]:
  """Compiles what a recipe does, and returns its numbers by name.

  Of `memory_gib`, `temporary` and `code` are the compiler's, 0 where the update
  does not fit. The first has the `activations` that the backward pass needs, as
  JAX writes it, and the `gradients` in float32: mostly not at the same time, so
  these are no sum. Times are None where the update does not fit.

  Args:
    chip: the device.
    work: what the devices do.
    evaluates: whether evaluation is compiled, too; it is not where training
      does not fit.

  Raises:
    UserError: without the compiler.
  """
  config = work.recipe.config
  update = compiling.compile_for(chip, work.update())
  num_chips = math.ceil(work.devices / chip.devices_per_chip)
  memory = {
    **work.bytes,
    'temporary': update.parts.get('temporary', 0),
    'activations': work.activations,
    'gradients': work.bytes['parameters'],
    'code': update.parts.get('code', 0),
  }
  numbers = {
    'model': config.model,
    'device': chip.name,
    'devices': work.devices,
    'chips': num_chips,
    'batch': work.batch,
    'train_batch_size': work.batch * work.devices,
    'image_size': config.image_size,
    'blocks': sum(work.depths),
    'remat': config.remat,
    'accumulate_steps': config.accumulate_steps,
    'fits': update.fits,
    'peak_gib': _gib(update.peak_bytes),
    'capacity_gib': _gib(update.capacity_bytes),
    'memory_gib': {k: _gib(v) for k, v in memory.items()},
    'steps': work.num_steps,
    'compile_seconds': round(update.seconds, 1),
    **_times(chip, num_chips, work, update.text),
  }
  if update.fits and evaluates:
    evaluation = compiling.compile_for(chip, work.evaluation())
    # Its own arguments are the parameters, or their averages; training keeps
    # the rest meanwhile.
    peak = evaluation.peak_bytes
    peak += work.bytes['optimizer'] + work.bytes['averages']
    numbers['fits'] = evaluation.fits and peak <= evaluation.capacity_bytes
    numbers['eval_batch'] = work.eval_batch
    numbers['eval_peak_gib'] = _gib(peak)
    numbers['compile_seconds'] += round(evaluation.seconds, 1)
  return numbers


def _times(chip, num_chips: int, work, text: str) -> dict[str, Any]:
  if not text:
    names = ('step_ms', 'mfu', 'images_per_second', 'hours', 'chip_hours')
    return dict.fromkeys(names)
  compiled = hlo.HloText(text)
  cycles = compiled.cycles(work.depths)
  # Each chip sends what it has twice, but for its own share, over all its links
  # at once, at the least; nothing is computed meanwhile.
  share = (num_chips - 1) / num_chips
  sent = 2 * share * compiled.reduced_bytes()
  communication = sent / (chip.link_gb_per_s * 1e9)
  seconds = sum(cycles.values()) / (chip.clock_ghz * 1e9) + communication
  flops = work.flops_per_image * work.batch
  hours = work.num_steps * seconds / 3600
  return {
    'step_ms': _round(1e3 * seconds),
    'communication_ms': _round(1e3 * communication),
    'mfu': _round(flops / seconds / chip.peak_flops),
    'images_per_second': _round(work.batch * work.devices / seconds),
    'hours': _round(hours),
    'chip_hours': _round(hours * num_chips),
    'cycles': cycles,
  }


def _round(value: float) -> float:
  return float(f'{value:.5g}')


def _gib(size: int) -> float:
  return round(size / _GIB, 3)
