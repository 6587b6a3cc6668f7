"""How the parts of accelerator.py time what JAX runs, and print it."""

from collections.abc import Callable
import json
import statistics
import time
from typing import Any

import jax

_REPEATS = 5


def emit(**result: Any) -> None:
  """Prints a result as a line of JSON."""
  print(json.dumps(result), flush=True)


def median_seconds(run: Callable[[int], None], seconds: float) -> float:
  """Returns the median time of a call, of several groups of calls.

  Args:
    run: makes that many calls and waits for the last one.
    seconds: how long a group takes, about.
  """
  run(1)  # Compiles what is left to compile, and warms up.
  start = time.perf_counter()
  run(1)
  count = max(1, int(seconds / (time.perf_counter() - start)))
  times = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    run(count)
    times.append((time.perf_counter() - start) / count)
  return statistics.median(times)


def loop(fn: Callable[..., Any], *args: Any) -> Callable[[int], None]:
  """Returns a function that calls a compiled one so many times."""

  def run(count):
    for _ in range(count):
      out = fn(*args)
    jax.block_until_ready(out)

  return run
