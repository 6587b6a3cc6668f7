"""Finds settings with which a recipe fits, and the largest batch."""

import bisect
from collections.abc import Callable
from typing import Any

from nfnets import network

# Makes the plan with another `remat`, `accumulate_steps` or `batch`.
Attempt = Callable[..., dict[str, Any]]

# Resolution of `remat`, as a fraction of the blocks. Compiling a deep network
# takes minutes.
_PART = 24
_MOST_IMAGES = 2048


def changes(
  first: dict[str, Any], attempt: Attempt
) -> list[tuple[str, dict[str, Any]]]:
  """Find the smallest change of each setting that makes a recipe fit.

  Args:
    first: the plan that does not fit.
    attempt: makes other plans.

  Returns:
    Names of settings and the plans with them, fastest first.
  """
  batch, parts = first['batch'], first['accumulate_steps']
  factors = [k for k in range(2, batch + 1) if batch % k == 0]
  blocks = first['blocks']
  remat = min(network.count_remat(first['remat']), blocks)
  spacing = max(1, blocks // _PART)
  values = {
    'remat': [
      min(n, blocks) for n in range(remat + spacing, blocks + spacing, spacing)
    ],
    'accumulate_steps': [k for k in factors if k > parts and k % parts == 0],
    'batch': [batch // k for k in factors if batch // k % parts == 0],
  }
  found = [(name, _least(name, values[name], attempt)) for name in values]
  return sorted(
    ((name, plan) for name, plan in found if plan is not None),
    key=lambda item: -item[1]['images_per_second'] / item[1]['devices'],
  )


def _least(
  name: str, values: list[int], attempt: Attempt
) -> dict[str, Any] | None:
  """Find the first value that fits by bisection; return its plan or None."""
  plans = {}

  def fits(value: int) -> bool:
    plans[value] = attempt(**{name: value})
    return plans[value]['fits']

  # The first value often suffices, e.g. half of the images.
  if values and not fits(values[0]):
    bisect.bisect_left(values, True, lo=1, key=fits)
  fitting = [v for v in values if v in plans and plans[v]['fits']]
  return plans[fitting[0]] if fitting else None


def largest_batch(
  first: dict[str, Any], attempt: Attempt
) -> dict[str, Any] | None:
  """Find the largest batch that fits by bisection; return its plan or None.

  Tries powers of two and then multiples of 128. Larger batches may fit, because
  memory is not monotonic in the batch size: the compiler may recompute.

  Args:
    first: the plan of any batch.
    attempt: makes other plans.
  """
  plans = {first['batch']: first}

  def is_too_large(batch: int) -> bool:
    plans[batch] = attempt(batch=batch)
    return not plans[batch]['fits']

  for sizes in (
    [2**n for n in range(_MOST_IMAGES.bit_length())],
    range(128, _MOST_IMAGES, 128),
  ):
    largest = max((b for b in plans if plans[b]['fits']), default=0)
    limit = min(
      (b for b in plans if b > largest and not plans[b]['fits']),
      default=_MOST_IMAGES + 1,
    )
    between = [
      b
      for b in sizes
      if largest < b < limit and b % first['accumulate_steps'] == 0
    ]
    bisect.bisect_left(between, True, key=is_too_large)
  return max(
    (plan for plan in plans.values() if plan['fits']),
    key=lambda plan: plan['batch'],
    default=None,
  )
