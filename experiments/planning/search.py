"""Finds what fits, with few compilations."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
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
  step: int = 1,
) -> tuple[Point | None, list[Point]]:
  """Finds the first of some values that fits, where all later ones do.

  Goes on from what is known in growing steps, to where a line through the last
  two meets the capacity, because memory is nearly linear in most settings. With
  one that fits and one that does not it bisects, every other time by that line.

  Args:
    values: rising or falling numbers, in the order of falling need.
    attempt: tries a value; takes long, and less where it does not fit.
    capacity: what there is.
    known: what has been tried.
    within: how many places the answer may be behind the first.
    step: how many places to go from what is known, at first.

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
  low, high, end = -1, len(values), len(values)
  for place, value in enumerate(values):
    if value in tried:
      if tried[value].fits:
        high = min(high, place)
      else:
        low = max(low, place)
  line, growing = None, within  # The line is two places.
  interpolates = True
  while low < end - 1 if high == end else high - low > within:
    if low >= 0 and high < end:
      line = (low, high) if interpolates else None
      # A line that misses is not trusted twice.
      interpolates = not interpolates
    meeting = line and _meeting_place(*map(at, line), values, capacity)
    if high == end:
      place = min(max(low + step, meeting or 0), end - 1)
    elif low < 0:
      place = max(min(high - step, high if meeting is None else meeting), 0)
    elif meeting is None:
      place = (low + high) // 2
    else:
      place = min(max(meeting, low + 1), high - 1)
    # After the first step a line says how far to go, and where it does not come
    # to an end at once, steps grow.
    step = growing
    if line is not None:
      growing *= 2
    if at(place).fits:
      line = (high, place) if high < end else None
      high = place
    else:
      line = (low, place) if low >= 0 else None
      low = place
  return (None if high == end else at(high)), list(tried.values())


def _meeting_place(
  one: Point, other: Point, values: Sequence[int], capacity: float
) -> int | None:
  """Returns the first place that fits, or the last, if the need is linear.

  None if the need does not fall from one point to the other, in the order of
  the values.
  """
  slope = (other.need - one.need) / (other.value - one.value)
  if slope * (values[-1] - values[0]) >= 0:
    return None
  for place, value in enumerate(values):
    if one.need + slope * (value - one.value) <= capacity:
      return place
  return len(values) - 1
