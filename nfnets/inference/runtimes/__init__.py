"""What computes a network: JAX, or the ONNX graph of it on another runtime.

A runner has `runtime` and `precision`, its names, and `run(output, images)`,
where `output` is one of `OUTPUTS`. Several threads may call it at once.
"""

RUNTIMES = ('auto', 'jax', 'onnxruntime', 'openvino')
PRECISIONS = ('float32', 'bfloat16')
OUTPUTS = ('logits', 'pool', 'features')


class RuntimeMissingError(ValueError):
  """A runtime is not installed, or cannot do it; the message says what can."""
