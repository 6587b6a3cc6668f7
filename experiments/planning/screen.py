"""What people see of a plan: one screen."""

from experiments.planning import changes, estimate, workload

_GIB = 2**30
# How many times its estimate a step of the paper's took on TPU v3, at least and
# at most (docs/planning.md).
_MEASURED_OVER_ESTIMATED = 1.25, 1.41


def describe(plan: estimate.Plan, name: str) -> str:
  """Returns a plan in lines of at most 80 characters.

  Args:
    plan: the plan.
    name: of the recipe.
  """
  work, chip = plan.work, plan.chip
  config = work.recipe.config
  lines = [
    f'{name} on {work.devices} x {chip.name} ({plan.num_chips} '
    f'chip{"s" * (plan.num_chips > 1)}), {work.batch} images of '
    f'{config.image_size} px each, {work.batch * work.devices} in all',
    '',
    *_memory(plan),
  ]
  if plan.step_seconds is not None:
    lines += ['', *_time(plan), '', *_cycles(plan)]
  return '\n'.join(lines)


def name_settings(work: workload.Workload) -> str:
  """Returns a line on what is to be compiled."""
  config = work.recipe.config
  return (
    f'{work.batch} images on each of {work.devices}, remat={config.remat}, '
    f'accumulate_steps={config.accumulate_steps}'
  )


def summarize(plan: estimate.Plan) -> str:
  """Returns a line on a plan: whether it fits, and how long an update takes."""
  update = plan.update
  line = (
    f'{"fits" if plan.fits else "does not fit"}: {_gib(update.peak_bytes)} of '
    f'{_gib(update.capacity_bytes)} GiB'
  )
  if plan.step_seconds is not None:
    line += f', {1e3 * plan.step_seconds:,.1f} ms'
  return f'{line} (compiled in {update.seconds:.0f} s)'


def describe_changes(found: list[changes.Change]) -> str:
  """Returns what makes a recipe fit, the cheapest first."""
  if not found:
    return 'Nothing that was tried makes it fit: it needs a larger device.'
  return '\n'.join(['it fits with, the cheapest first:', *map(_change, found)])


def describe_largest_batch(found: changes.Change | None) -> str:
  """Returns which batch is the largest that fits."""
  if found is None:
    return 'No batch fits: see what does without --search.'
  return f'the largest batch that fits:\n{_change(found)}'


def _change(change: changes.Change) -> str:
  plan = change.plan
  settings = ' '.join(f'--{k}={v}' for k, v in change.settings.items())
  line = (
    f'  {settings:<22}{_gib(plan.update.peak_bytes)} of '
    f'{_gib(plan.update.capacity_bytes)} GiB'
  )
  if plan.step_seconds is None:
    return line
  return (
    f'{line}, {1e3 * plan.step_seconds:,.0f} ms, '
    f'{change.images_per_device_second:,.1f} images/s of each'
  )


def _memory(plan: estimate.Plan) -> list[str]:
  update = plan.update
  verdict = 'fits' if plan.fits else 'DOES NOT FIT'
  lines = [
    f'memory: {verdict}; {_gib(update.peak_bytes)} of '
    f'{_gib(update.capacity_bytes)} GiB per device (by the compiler)'
  ]
  memory = plan.memory()
  lines += [
    f'  {name:<12}{_gib(memory[name]):>9}'
    for name in ('parameters', 'optimizer', 'averages', 'batch')
  ]
  if update.parts:
    lines += [
      f'  {name:<12}{_gib(memory[name]):>9}' for name in ('temporary', 'code')
    ]
  lines.append(
    '  (temporary, estimated: activations '
    f'{_gib(memory["activations"])} that the backward pass needs,\n'
    f'  and then gradients {_gib(memory["gradients"])})'
  )
  if plan.evaluation is not None:
    lines.append(
      f'  evaluation, {plan.work.eval_batch} images each: '
      f'{_gib(plan.evaluation_peak_bytes)}'
    )
  return lines


def _time(plan: estimate.Plan) -> list[str]:
  numbers = plan.to_json()
  return [
    'time, estimated by the compiler and not measured:',
    f'  step        {numbers["step_ms"]:>9,.1f} ms, of which averaging at '
    f'least {numbers["communication_ms"]:,.1f}',
    f'  of the peak {100 * numbers["mfu"]:>9.1f} %',
    f'  images/s    {numbers["images_per_second"]:>9,.0f}',
    f'  run         {numbers["hours"]:>9,.1f} hours, '
    f'{numbers["chip_hours"]:,.0f} chip-hours, for {plan.work.num_steps:,} '
    'steps',
    "  Likely more: the paper's steps on TPU v3 took "
    '{} to {} times as long.'.format(*_MEASURED_OVER_ESTIMATED),
  ]


def _cycles(plan: estimate.Plan) -> list[str]:
  total = sum(plan.cycles.values())
  return [
    f'cycles of a step, {total / 1e6:,.1f} M, estimated:',
    *(
      f'  {part:<20}{cycles / 1e6:>9,.1f} M {100 * cycles / total:>5.1f} %'
      for part, cycles in plan.cycles.items()
    ),
  ]


def _gib(size: int) -> str:
  return f'{size / _GIB:.2f}'
