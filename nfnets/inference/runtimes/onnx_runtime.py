"""ONNX Runtime as a runtime of an ONNX graph, on the CPU."""

import numpy as np
import onnxruntime


class Session:
  """Runs one graph; several threads may call it at once."""

  def __init__(
    self, path: str, precision: str, threads: int | None, throughput: bool
  ):
    """Reads a graph and prepares to run it.

    Args:
      path: of an ONNX file.
      precision: 'float32', which is all that it has on a CPU.
      threads: how many may compute; all cores if None.
      throughput: makes no difference: one call takes all threads.
    """
    del precision, throughput
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors.
    options.intra_op_num_threads = threads or 0
    self._session = onnxruntime.InferenceSession(
      path, options, providers=['CPUExecutionProvider']
    )
    self._names = [output.name for output in self._session.get_outputs()]

  def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the graph's outputs, by name, for images [B, H, W, 3]."""
    results = self._session.run(None, {'images': images})
    return dict(zip(self._names, results, strict=True))
