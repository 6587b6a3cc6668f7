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

  Bisects; every other time at the place where a line through what the two ends
  need meets the capacity, because memory is nearly linear in most settings.

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
  if high == len(values):
    if low >= high - 1 or not at(high - 1).fits:
      return None, list(tried.values())
    high -= 1
  interpolates = True
  while high - low > within:
    middle = (low + high) // 2
    if interpolates and low >= 0:
      middle = _meeting_point(low, high, at(low).need, at(high).need, capacity)
    # A line that misses is not trusted twice.
    interpolates = not interpolates
    if at(middle).fits:
      high = middle
    else:
      low = middle
  return at(high), list(tried.values())


def _meeting_point(
  low: int, high: int, low_need: float, high_need: float, capacity: float
) -> int:
  """Returns the place in between where the need may begin to be met."""
  if low_need <= high_need:
    return (low + high) // 2
  share = (low_need - capacity) / (low_need - high_need)
  place = math.ceil(low + share * (high - low))
  return min(max(place, low + 1), high - 1)
