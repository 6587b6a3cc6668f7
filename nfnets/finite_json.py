"""Results as JSON, which knows neither NaN nor infinity: these become null."""

import json
import math
import sys
from typing import Any

import numpy as np


def dumps(value: Any, **options: Any) -> str:
  """Returns a value as JSON, with null for numbers that are not finite.

  Args:
    value: what `json.dumps` takes, or scalars of NumPy in it.
    **options: of `json.dumps`.
  """
  return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
  """Returns a value with None for numbers in it that are not finite."""
  if isinstance(value, dict):
    return {key: finite(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    found = map(finite, value)
    return list(found) if isinstance(value, list) else tuple(found)
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def print_results(results: dict[str, Any]) -> int:
  """Prints the last line of a command; returns its exit status.

  That is 1 if a number is not finite, which standard error says then.
  """
  print(dumps(results), flush=True)
  names = [key for key, value in results.items() if finite(value) != value]
  if not names:
    return 0
  print(
    f'error: not finite: {", ".join(names)}. The weights may hold such '
    'numbers, or too large ones.',
    file=sys.stderr,
  )
  return 1
