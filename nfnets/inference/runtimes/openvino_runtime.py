"""OpenVINO as a runtime of an ONNX graph, on the CPU."""

from collections.abc import Sequence
import queue
import sys
import threading
from typing import Any

import numpy as np

_HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}


_lock = threading.Lock()
# Parts of the package that convert models of others. They take half of the
# time that importing it takes, and tell their maker that it was imported.
_LEFT_OUT = ('openvino.tools.ovc', 'openvino_telemetry')


def load() -> Any:
  """Returns the module openvino, imported without what reports its use."""
  with _lock:
    if 'openvino' not in sys.modules:
      absent = [name for name in _LEFT_OUT if name not in sys.modules]
      sys.modules.update(dict.fromkeys(absent))
      try:
        import openvino
      finally:
        for name in absent:
          del sys.modules[name]
    import openvino

  return openvino


def has_bfloat16() -> bool:
  """Returns whether this CPU has instructions for bfloat16."""
  capabilities = load().Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
  return 'BF16' in capabilities


class Session:
  """Runs one graph; several threads may call it at once."""

  def __init__(
    self, path: str, precision: str, threads: int | None, throughput: bool
  ):
    """Reads and compiles a graph.

    Args:
      path: of an ONNX file.
      precision: 'float32' or 'bfloat16'.
      threads: how many may compute; all cores if None.
      throughput: whether to compute parts of a batch side by side, each with
        few threads, which gives more images per second and later answers.
    """
    core = load().Core()
    config: dict[str, Any] = {
      'INFERENCE_PRECISION_HINT': _HINTS[precision],
      'PERFORMANCE_HINT': 'THROUGHPUT' if throughput else 'LATENCY',
    }
    if threads:
      config['INFERENCE_NUM_THREADS'] = threads
    compiled = core.compile_model(core.read_model(path), 'CPU', config)
    self._parts = 1
    if throughput:
      self._parts = compiled.get_property('OPTIMAL_NUMBER_OF_INFER_REQUESTS')
    self._compiled = compiled
    self._idle: queue.SimpleQueue = queue.SimpleQueue()
    self._names = [output.get_any_name() for output in compiled.outputs]

  def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the graph's outputs, by name, for images [B, H, W, 3]."""
    count = max(1, min(self._parts, len(images)))
    requests = [self._request() for _ in range(count)]
    for request, part in zip(
      requests, np.array_split(images, count), strict=True
    ):
      request.start_async({0: part}, share_inputs=True)
    for request in requests:
      request.wait()
    results = {
      name: _join([request.get_output_tensor(i).data for request in requests])
      for i, name in enumerate(self._names)
    }
    for request in requests:
      self._idle.put(request)
    return results

  def _request(self) -> Any:
    try:
      return self._idle.get_nowait()
    except queue.Empty:
      return self._compiled.create_infer_request()


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Copies what the next images will overwrite."""
  return np.concatenate(parts) if len(parts) > 1 else np.array(parts[0])
