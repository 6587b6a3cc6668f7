"""Tests of the search for what fits."""

import pytest

from experiments.planning import search


class Memory:
  """A compiler that knows what every value needs; counts what it is asked."""

  def __init__(self, needs, capacity=16.0):
    self.needs, self.capacity, self.asked = needs, capacity, []

  def __call__(self, value):
    self.asked.append(value)
    need = self.needs[value]
    return search.Point(value, need <= self.capacity, need, f'plan {value}')

  def first(self, known=(), **options):
    values = list(self.needs)
    found, _ = search.first_that_fits(values, self, 16.0, known, **options)
    return found

  def point(self, value):
    return search.Point(value, self.needs[value] <= 16, self.needs[value])


def _falling(first, steps):
  needs, need = {}, first
  for value, step in enumerate(steps):
    needs[value] = need
    need -= step
  return needs


# Like F5's: the last stages keep little.
_F5 = _falling(18.5, [0.01] * 18 + [0.1] * 36 + [0.02] * 19)


@pytest.mark.parametrize(
  'needs',
  [
    _F5,
    _falling(100.0, [1.0] * 200),
    _falling(16.5, [0.6] + [1e-3] * 99),
    _falling(17.0, [1e-3] * 98 + [10.0, 1.0]),
    _falling(30.0, [0.5] * 29),
    {64: 40.0, 32: 17.0, 16: 9.0, 8: 5.0},
  ],
)
def test_the_first_that_fits_is_found_in_few_attempts(needs):
  memory = Memory(needs)
  found = memory.first(known=[memory.point(next(iter(needs)))])
  expected = next(value for value, need in needs.items() if need <= 16)
  assert (found.value, found.result) == (expected, f'plan {expected}')
  assert len(memory.asked) == len(set(memory.asked))
  # Twice what bisection alone would take, at most; and the last value's.
  assert len(memory.asked) <= 2 * len(needs).bit_length() + 1


def test_a_line_finds_what_is_linear_at_once():
  memory = Memory(_falling(100.0, [0.5] * 200))
  assert memory.first(known=[memory.point(0)]).value == 168
  assert len(memory.asked) <= 4


def test_what_needs_little_is_found_without_the_last_values():
  memory = Memory(_falling(16.4, [0.15] * 72))
  known = [memory.point(0)]
  assert memory.first(known=known, within=3, step=3).value == 3
  assert memory.asked == [3]


def test_the_largest_batch_is_found_from_a_small_one():
  """Though most of what that needs is not for images."""
  sizes = [*range(2048, 256, -64), *range(256, 24, -8)]
  memory = Memory({b: 1.4 + 0.0287 * b for b in sizes})
  known = [memory.point(32)]
  assert memory.first(known=known, step=4).value == 448
  assert memory.asked == [64, 448, 512]


def test_what_is_known_is_not_asked_again():
  memory = Memory(_F5)
  known = [memory.point(value) for value in (0, 24, 40, 72)]
  assert memory.first(known).value == 42
  assert not {0, 24, 40, 72} & set(memory.asked)


def test_the_answer_may_be_a_little_behind_for_less_work():
  memory = Memory(_F5)
  found = memory.first(known=[memory.point(0)], within=4)
  assert found.fits and 0 <= found.value - 42 < 4
  exact = Memory(_F5)
  assert exact.first(known=[exact.point(0)]).value == 42
  assert len(memory.asked) <= len(exact.asked)


def test_nothing_may_fit():
  memory = Memory({1: 40.0, 2: 30.0, 3: 20.0})
  assert memory.first() is None
  assert memory.asked[-1] == 3
  before = list(memory.asked)
  assert memory.first(known=[memory.point(3)]) is None
  assert memory.asked == before


def test_the_first_value_may_fit():
  memory = Memory({1: 12.0, 2: 11.0, 3: 10.0})
  assert memory.first().value == 1
