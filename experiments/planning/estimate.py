"""Estimates memory, step time and hours from compiled steps."""

import math
from typing import Any

from experiments.planning import chips, compiling, hlo, workload

_GIB = 2**30


def plan(
  chip: chips.Chip, work: workload.Workload, evaluates: bool = True
) -> dict[str, Any]:
  """Compile the steps of a recipe, and return memory and times by name.

  In `memory_gib`, the compiler provides `temporary` and `code`; they are 0 if
  the update does not fit. `temporary` includes the `activations` for the
  backward pass (JAX's estimate) and the float32 `gradients`, mostly at
  different times. Times are None if the update does not fit.

  Args:
    chip: the device.
    work: the work of the devices.
    evaluates: compile the evaluation step too, if training fits.

  Raises:
    UserError: if the compiler is not installed.
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
    # Its arguments are the parameters or their averages. The rest of the train
    # state also stays in memory.
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
  # A ring all-reduce sends each byte twice, except for the chip's own share.
  # This assumes all links at full speed and no overlap with computation.
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
