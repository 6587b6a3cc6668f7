"""Formats a plan on one screen."""

from typing import Any

# Measured / estimated time of the paper's steps on TPU v3: minimum and maximum
# (docs/planning.md).
_MEASURED_OVER_ESTIMATED = 1.25, 1.41


def describe(plan: dict[str, Any], name: str) -> str:
  """Format a plan in lines of at most 80 characters.

  Args:
    plan: the result of `estimate.plan`.
    name: name of the recipe.
  """
  memory, verdict = (
    plan['memory_gib'],
    'fits' if plan['fits'] else 'DOES NOT FIT',
  )
  parts = ['parameters', 'optimizer', 'averages', 'batch']
  if plan['step_ms'] is not None:
    parts += ['temporary', 'code']
  lines = [
    f'{name} on {plan["devices"]} x {plan["device"]} ({plan["chips"]} '
    f'chip{"s" * (plan["chips"] > 1)}), {plan["batch"]} images of '
    f'{plan["image_size"]} px each, {plan["train_batch_size"]} in all',
    '',
    f'memory: {verdict}; {_peak(plan)} per device (by the compiler)',
    *(f'  {part:<12}{memory[part]:>9.2f}' for part in parts),
    f'  (temporary, estimated: activations {memory["activations"]:.2f} that '
    'the backward pass needs,\n'
    f'  and then gradients {memory["gradients"]:.2f})',
  ]
  if 'eval_batch' in plan:
    lines.append(
      f'  evaluation, {plan["eval_batch"]} images each: '
      f'{plan["eval_peak_gib"]:.2f}'
    )
  if plan['step_ms'] is None:
    return '\n'.join(lines)
  total = sum(plan['cycles'].values())
  least, most = _MEASURED_OVER_ESTIMATED
  return '\n'.join(
    [
      *lines,
      '',
      'time, estimated by the compiler and not measured:',
      f'  step        {plan["step_ms"]:>9,.1f} ms, of which averaging at '
      f'least {plan["communication_ms"]:,.1f}',
      f'  of the peak {100 * plan["mfu"]:>9.1f} %',
      f'  images/s    {plan["images_per_second"]:>9,.0f}',
      f'  run         {plan["hours"]:>9,.1f} hours, {plan["chip_hours"]:,.0f} '
      f'chip-hours, for {plan["steps"]:,} steps',
      f"  Likely more: the paper's steps on TPU v3 took {least} to {most} "
      'times as long.',
      '',
      f'cycles of a step, {total / 1e6:,.1f} M, estimated:',
      *(
        f'  {part:<20}{cycles / 1e6:>9,.1f} M {100 * cycles / total:>5.1f} %'
        for part, cycles in plan['cycles'].items()
      ),
    ]
  )


def summarize(plan: dict[str, Any]) -> str:
  """Format memory and step time of a plan in one line."""
  time = f', {plan["step_ms"]:,.1f} ms' if plan['step_ms'] is not None else ''
  return (
    f'{"fits" if plan["fits"] else "does not fit"}: {_peak(plan)}{time} '
    f'(compiled in {plan["compile_seconds"]:.0f} s)'
  )


def describe_change(name: str, plan: dict[str, Any]) -> str:
  """Format a plan with another value of a setting in one line."""
  setting = f'--{name}={plan[name]}'
  return (
    f'  {setting:<22}{_peak(plan)}, {plan["step_ms"]:,.0f} ms, '
    f'{plan["images_per_second"] / plan["devices"]:,.1f} images/s of each'
  )


def _peak(plan: dict[str, Any]) -> str:
  return f'{plan["peak_gib"]:.2f} of {plan["capacity_gib"]:.2f} GiB'
