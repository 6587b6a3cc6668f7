"""Finds what fits, with few compilations."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Point:
  """What was tried.

  Attributes:
    value: of what is searched.
    fits: whether it fits.
    need: how much memory it needs.
    result: what else came of it.
  """

  value: int
  fits: bool
  need: float
  result: Any = None


def first_that_fits(
  values: Sequence[int],
  attempt: Callable[[int], Point],
  capacity: float,
  known: Iterable[Point] = (),
  within: int = 1,
) -> tuple[Point | None, list[Point]]:
  """Finds the first of some values that fits, where all later ones do.

  Goes ahead to one that fits, and then bisects; every other time at the place
  where a line through what the two ends need meets the capacity, because memory
  is nearly linear in most settings.

  Args:
    values: in the order of falling need.
    attempt: tries a value; takes long.
    capacity: what there is.
    known: what has been tried.
    within: how many places the answer may be behind the first.

  Returns:
    The first that fits, or None, and all that were tried, in that order.
  """
  tried = {point.value: point for point in known}

  def at(place: int) -> Point:
    value = values[place]
    if value not in tried:
      tried[value] = attempt(value)
    return tried[value]

  # The last that is known not to fit, and the first that is known to.
  low, high = -1, len(values)
  for place, value in enumerate(values):
    if value in tried:
      if tried[value].fits:
        high = min(high, place)
      else:
        low = max(low, place)
  # What does not fit is compiled in a third of the time, so the first that fits
  # is looked for from below, in growing steps.
  before, step = -1, within
  while high == len(values):
    if low == high - 1:
      return None, list(tried.values())
    place = low + step
    if before >= 0:
      meeting = _meeting_point(before, low, at, capacity)
      place = high - 1 if meeting is None else max(place, meeting)
    place = min(place, high - 1)
    if at(place).fits:
      high = place
    else:
      before, low = low, place
    step *= 2
  interpolates = True
  while high - low > within:
    middle = (low + high) // 2
    if interpolates and low >= 0:
      meeting = _meeting_point(low, high, at, capacity)
      if meeting is not None:
        middle = min(max(meeting, low + 1), high - 1)
    # A line that misses is not trusted twice.
    interpolates = not interpolates
    if at(middle).fits:
      high = middle
    else:
      low = middle
  return at(high), list(tried.values())


def _meeting_point(
  one: int, other: int, at: Callable[[int], Point], capacity: float
) -> int | None:
  """Returns the first place where the need meets the capacity if it is linear.

  None if the need does not fall from one place to the other.
  """
  need, fall = at(one).need, at(one).need - at(other).need
  if fall <= 0:
    return None
  return math.ceil(one + (need - capacity) / fall * (other - one))
