"""Comparing an ONNX file, as ONNX Runtime runs it, with the network in JAX."""

from collections.abc import Callable
import statistics
import time
from typing import Any

import numpy as np
import onnxruntime

_NUM_INPUTS = 10
_BATCH = 3


def compare(network: Any, path: str) -> dict[str, float]:
  """Runs ten random inputs, one by one, and a batch of some of them.

  Args:
    network: the network in JAX.
    path: the ONNX file.

  Returns:
    `relative_difference`, the largest norm of a difference between the outputs
    for one image, as a part of the norm of JAX's output; `max_difference`, the
    largest absolute one; `onnxruntime_ms` and `jax_ms`, the median times for
    one image. Infinite where ONNX Runtime gave no finite output.
  """
  session = onnxruntime.InferenceSession(
    path, providers=['CPUExecutionProvider']
  )
  run_jax = network.logits if network.model.num_classes else network.embed
  runs: dict[str, Callable[[np.ndarray], Any]] = {
    'onnxruntime_ms': lambda x: session.run(None, {'images': x})[0],
    'jax_ms': lambda x: np.asarray(run_jax(x)),
  }
  size = network.model.test_size
  rng = np.random.default_rng(0)
  inputs = rng.standard_normal((_NUM_INPUTS, 1, size, size, 3), np.float32)
  outputs = {name: [] for name in runs}
  times = {name: [] for name in runs}
  for run in runs.values():
    run(inputs[0])  # Compiles.
  for x in inputs:
    for name, run in runs.items():
      start = time.perf_counter()
      outputs[name].append(run(x))
      times[name].append(1e3 * (time.perf_counter() - start))
  batch = runs['onnxruntime_ms'](np.concatenate(inputs[:_BATCH]))
  # In float64, where no norm overflows.
  actual = np.float64(np.concatenate([*outputs['onnxruntime_ms'], batch]))
  expected = np.float64(
    np.concatenate([*outputs['jax_ms'], *outputs['jax_ms'][:_BATCH]])
  )
  differences = actual - expected
  norms = np.linalg.norm(expected, axis=1)
  relative = np.linalg.norm(differences, axis=1) / np.maximum(norms, 1e-30)
  worst = float(np.max(relative)), float(np.max(np.abs(differences)))
  if not np.isfinite(worst).all():
    worst = float('inf'), float('inf')
  return {
    'relative_difference': worst[0],
    'max_difference': worst[1],
    **{name: round(statistics.median(ms), 3) for name, ms in times.items()},
  }
