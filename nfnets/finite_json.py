"""Writes results as JSON, with null for NaN and infinity."""

import json
import math
import sys
from typing import Any

import numpy as np


def dumps(value: Any, **options: Any) -> str:
  """Return a value as JSON, with null for non-finite numbers.

  Args:
    value: JSON values and NumPy scalars.
    **options: options of `json.dumps`.
  """
  return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
  """Replace the non-finite numbers in a value by None."""
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
  """Print the results of a command as its last line; return the exit status.

  The status is 1, with an error message, if a number is not finite.
  """
  print(dumps(results), flush=True)
  names = [key for key, value in results.items() if finite(value) != value]
  if not names:
    return 0
  print(
    f'error: not finite: {", ".join(names)}. The weights may contain '
    'non-finite or very large numbers.',
    file=sys.stderr,
  )
  return 1
