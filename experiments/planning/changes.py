"""What to change where a recipe does not fit; the largest batch that does."""

from collections.abc import Callable
import dataclasses
from typing import Any

from experiments.planning import estimate, search, workload
from nfnets import base

# Makes a plan with other settings: `remat`, `accumulate_steps`, `batch`.
Attempt = Callable[..., estimate.Plan]

# The number of recomputed blocks may be too large by one in so many: compiling
# a deep network takes minutes.
_PART = 24
_MOST_IMAGES = 2048


@dataclasses.dataclass(frozen=True)
class Change:
  """A setting, or two, with which a recipe fits.

  Attributes:
    settings: names and values.
    plan: with these.
  """

  settings: dict[str, Any]
  plan: estimate.Plan

  @property
  def images_per_device_second(self) -> float:
    """How fast a device is with it; 0 where that is not known."""
    seconds = self.plan.step_seconds
    return self.plan.work.batch / seconds if seconds else 0.0

  def to_json(self) -> dict[str, Any]:
    """Returns the settings and what comes of them."""
    numbers = self.plan.to_json()
    names = ('devices', 'fits', 'peak_gib', 'step_ms', 'images_per_second')
    return {**self.settings, **{name: numbers[name] for name in names}}


def find(first: estimate.Plan, attempt: Attempt) -> list[Change]:
  """Returns the least changes of each kind that make a recipe fit.

  Args:
    first: the plan that does not fit.
    attempt: makes others.

  Returns:
    At most one with `remat`, one with `accumulate_steps`, one with `batch`; the
    fastest first.
  """
  changes = []
  for name, values in _values(first.work).items():
    if name == 'remat':
      within = max(1, len(values) // _PART)
      found = _first_that_fits(name, values, first, attempt, within, within)
    else:
      # Half of the images is the first to try, and mostly the last.
      found = _next_that_fits(name, values[1:], attempt)
    if found is not None:
      changes.append(found)
  return sorted(changes, key=lambda c: -c.images_per_device_second)


def largest_batch(first: estimate.Plan, attempt: Attempt) -> Change | None:
  """Returns the largest batch of each device that fits, or None.

  Args:
    first: the plan of some batch, whether it fits or not.
    attempt: makes others.
  """
  parts = first.work.recipe.config.accumulate_steps
  now = first.work.batch
  # Eight is what a TPU takes at a time; from 128 on, an eighth more or less.
  sizes = (b for b in range(8, _MOST_IMAGES + 1, 8) if b % _grain(b) == 0)
  sizes = sorted({now, *(b for b in sizes if b % parts == 0)}, reverse=True)
  # Twice as many images, or half of them, make a line that leads on.
  if first.fits:
    sizes = [b for b in sizes if b >= now]
    step = max(1, sum(b <= 2 * now for b in sizes) - 1)
  else:
    sizes = [b for b in sizes if b <= now]
    step = sum(b > now / 2 for b in sizes)
  return _first_that_fits('batch', sizes, first, attempt, step=step)


def _grain(batch: int) -> int:
  return max(8, 2 ** (batch.bit_length() - 4))


def _values(work: workload.Workload) -> dict[str, list[int]]:
  """Returns the settings to change, and their values from the present one."""
  config, batch = work.recipe.config, work.batch
  blocks, parts = sum(work.depths), config.accumulate_steps
  divisors = [k for k in range(1, batch + 1) if batch % k == 0]
  return {
    'remat': list(
      range(min(base.count_remat(config.remat), blocks), blocks + 1)
    ),
    'accumulate_steps': [k for k in divisors if k % parts == 0],
    'batch': [batch // k for k in divisors if batch // k % parts == 0],
  }


def _next_that_fits(name, values, attempt) -> Change | None:
  for value in values:
    plan = attempt(**{name: value})
    if plan.fits:
      return Change({name: value}, plan)
  return None


def _first_that_fits(
  name, values, first, attempt, within=1, step=1
) -> Change | None:
  def point(value: int, plan: estimate.Plan) -> search.Point:
    return search.Point(value, plan.fits, plan.update.peak_bytes, plan)

  # The plan that there is has the last value if it fits, else the first.
  known = point(values[-1 if first.fits else 0], first)
  found, _ = search.first_that_fits(
    values,
    lambda value: point(value, attempt(**{name: value})),
    first.update.capacity_bytes,
    [known],
    within,
    step,
  )
  return found and Change({name: found.value}, found.result)
