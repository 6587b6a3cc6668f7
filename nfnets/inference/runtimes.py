"""What computes a network: JAX, or ONNX Runtime or OpenVINO its ONNX graph.

Sessions are opened for one network. Several threads may call `run` at once.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import importlib.util
import logging
import os
import pathlib
import queue
import threading
from typing import Any

import numpy as np

from nfnets import imagenet, messages
from nfnets.errors import UserError
from nfnets.inference import graphs

RUNTIMES = ('auto', 'jax', 'onnxruntime', 'openvino')
PRECISIONS = ('float32', 'bfloat16')
TITLES = {'jax': 'JAX', 'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}
# The extra of this project that brings a runtime.
_EXTRAS = {'openvino': 'openvino', 'onnxruntime': 'onnx'}
# The fastest first, by whether the CPU has AVX-512; docs/runtimes.md has the
# numbers.
_FASTEST = {
  True: ('openvino', 'onnxruntime'),
  False: ('onnxruntime', 'openvino'),
}
_CPUINFO = '/proc/cpuinfo'
_importing = threading.Lock()
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Runtime:
  """What computes, and how.

  Attributes:
    name: 'jax', 'onnxruntime' or 'openvino'.
    precision: 'float32' or 'bfloat16'.
    threads: number of threads. None: all cores.
    throughput: whether many images matter rather than the time of one call.
  """

  name: str = 'jax'
  precision: str = 'float32'
  threads: int | None = None
  throughput: bool = False


def choose(
  name: str,
  precision: str = 'float32',
  threads: int | None = None,
  throughput: bool = False,
) -> Runtime:
  """Return the runtime to take; see `Runtime`.

  Args:
    name: one of `RUNTIMES`. 'auto' is JAX where it sees an accelerator, and
      else the fastest one for this CPU that is installed.
    precision: one of `PRECISIONS`.
    threads: not for JAX.
    throughput: makes no difference but for OpenVINO.

  Raises:
    UserError: for other names, or if it is not installed or does not have the
      precision.
  """
  for what, value, known in (
    ('runtime', name, RUNTIMES),
    ('precision', precision, PRECISIONS),
  ):
    if value not in known:
      raise UserError(f'No {what} {value!r}; there are {", ".join(known)}.')
  if name == 'auto':
    name = 'jax'
    if not _has_accelerator():
      for other in _FASTEST[_has_avx512()]:
        if not _missing(other) and _can(other, precision):
          name = other
          break
  if missing := _missing(name):
    raise UserError(
      f'{TITLES[name]} needs packages that are not installed: '
      f'{", ".join(missing)}; pip install ".[{_EXTRAS[name]}]" in the folder '
      'of this project.'
    )
  if not _can(name, precision):
    raise UserError(
      f'{TITLES[name]} does not compute in {precision} on this CPU; JAX does, '
      'and OpenVINO where the CPU has instructions for it.'
    )
  if threads is not None and name == 'jax':
    raise UserError(
      'JAX takes all cores; a number of threads is for OpenVINO and ONNX '
      'Runtime.'
    )
  if threads is not None and threads < 1:
    raise UserError(f'There must be at least one thread, not {threads}.')
  return Runtime(name, precision, threads, throughput)


def _missing(name: str) -> list[str]:
  """Return the packages that a runtime lacks; onnx is for making the graph."""
  needed = () if name == 'jax' else (name, 'onnx')
  return [x for x in needed if importlib.util.find_spec(x) is None]


def _can(name: str, precision: str) -> bool:
  """Return whether a runtime that is installed has a precision here."""
  if precision == 'float32' or name == 'jax':
    return True
  return name == 'openvino' and openvino_has_bfloat16()


def _has_accelerator() -> bool:
  """Return whether JAX computes on anything but a CPU.

  JAX is not imported for that where there are no packages for accelerators.
  """
  if os.environ.get('JAX_PLATFORMS') == 'cpu' or not any(
    map(importlib.util.find_spec, ('jax_plugins', 'libtpu'))
  ):
    return False
  import jax

  return jax.default_backend() != 'cpu'


def _has_avx512() -> bool:
  try:
    return ' avx512f ' in pathlib.Path(_CPUINFO).read_text()
  except OSError:  # No Linux.
    return False


def _import_openvino() -> Any:
  """Return the module, imported without a report to its maker.

  It reports that it is imported, but not where CI says that this is a test.
  """
  with _importing:
    before = os.environ.get('CI')
    os.environ['CI'] = 'true'
    try:
      import openvino
    finally:
      os.environ.pop('CI')
      if before is not None:
        os.environ['CI'] = before
  return openvino


def openvino_has_bfloat16() -> bool:
  """Return whether this CPU has instructions for bfloat16."""
  core = _import_openvino().Core()
  return 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


class JaxSession:
  """Runs a model by its own functions."""

  def __init__(
    self, opened: Callable[[], tuple[Any, Any, Any]], runtime: Runtime
  ):
    """Prepare to run.

    Args:
      opened: returns the model, its parameters and its state.
      runtime: in bfloat16, the kernels are so once they are standardized, and
        so is what is computed with them.
    """
    self._opened = opened
    self.runtime = runtime

  @functools.cached_property
  def _weights(self) -> tuple[Any, Any]:
    import jax

    model, params, state = self._opened()
    if self.runtime.precision != 'float32':
      from nfnets.weights import folding

      params = folding.fold_weights(params, model)
    return jax.tree.map(self._cast, (params, state))

  def _cast(self, x: Any) -> Any:
    import jax.numpy as jnp

    x = jnp.asarray(x)
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(self.runtime.precision) if is_float else x

  def run(self, output: str, images: np.ndarray) -> Any:
    """Return logits, pooled features or maps for images [B, H, W, 3]."""
    import jax

    model, _, _ = self._opened()
    params, state = self._weights
    functions = {'pool': model.embed, 'features': model.features}
    function = functions.get(output, model.logits)
    result = function(params, self._cast(images), state)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), result)


class OnnxSession:
  """Runs one graph by ONNX Runtime, on the CPU."""

  def __init__(self, path: str, runtime: Runtime):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors.
    options.intra_op_num_threads = runtime.threads or 0
    self._session = onnxruntime.InferenceSession(
      path, options, providers=['CPUExecutionProvider']
    )
    self.facts = self._session.get_modelmeta().custom_metadata_map

  def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the graph's outputs, by name, for images [B, H, W, 3]."""
    names = [output.name for output in self._session.get_outputs()]
    return dict(
      zip(names, self._session.run(names, {'images': images}), strict=True)
    )


class OpenVinoSession:
  """Runs one graph by OpenVINO, on the CPU.

  For throughput, it computes parts of a batch side by side, each with few
  threads, which gives more images per second and later answers.
  """

  def __init__(self, path: str, runtime: Runtime):
    core = _import_openvino().Core()
    model = core.read_model(path)
    # The metadata of the ONNX file.
    self.facts = {
      name: value.astype(str)
      for name, value in model.get_rt_info('framework').astype(dict).items()
    }
    config = {
      'INFERENCE_PRECISION_HINT': {'float32': 'f32', 'bfloat16': 'bf16'}[
        runtime.precision
      ],
      'PERFORMANCE_HINT': 'THROUGHPUT' if runtime.throughput else 'LATENCY',
    }
    if runtime.threads:
      config['INFERENCE_NUM_THREADS'] = runtime.threads
    self._compiled = core.compile_model(model, 'CPU', config)
    self._parts = 1
    if runtime.throughput:
      name = 'OPTIMAL_NUMBER_OF_INFER_REQUESTS'
      self._parts = self._compiled.get_property(name)
    self._idle: queue.SimpleQueue = queue.SimpleQueue()

  def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the graph's outputs, by name, for images [B, H, W, 3]."""
    count = max(1, min(self._parts, len(images)))
    requests = [self._request() for _ in range(count)]
    parts = np.array_split(images, count)
    for request, part in zip(requests, parts, strict=True):
      request.start_async({0: part}, share_inputs=True)
    for request in requests:
      request.wait()
    # Copies, because the next images overwrite them.
    results = {
      output.get_any_name(): np.concatenate(
        [request.get_output_tensor(i).data for request in requests]
      )
      for i, output in enumerate(self._compiled.outputs)
    }
    for request in requests:
      self._idle.put(request)
    return results

  def _request(self) -> Any:
    try:
      return self._idle.get_nowait()
    except queue.Empty:
      return self._compiled.create_infer_request()


def open_graph(path: str, runtime: Runtime) -> OnnxSession | OpenVinoSession:
  """Return a session of an ONNX file."""
  sessions = {'onnxruntime': OnnxSession, 'openvino': OpenVinoSession}
  return sessions[runtime.name](path, runtime)


class GraphSession:
  """Runs the graphs of one network, which are in the cache or are made.

  Logits and embeddings come from one graph. Features, and images of another
  size, have their own, which is made when it is first asked for.
  """

  def __init__(
    self,
    runtime: Runtime,
    network: Callable[[], Any],
    weights: str,
    settings: Mapping[str, Any],
  ):
    """Read the graph for logits and embeddings, or make it.

    Args:
      runtime: OpenVINO or ONNX Runtime.
      network: returns the network in JAX, if need be.
      weights: the SHA-256 of the file of weights.
      settings: other settings of the network; JSON values.
    """
    self.runtime = runtime
    self._network = network
    self._key = functools.partial(graphs.key, weights, **settings)
    self._lock = threading.Lock()
    self._sessions: dict[Any, Any] = {}
    self.facts = self._session('answers', None).facts

  def run(self, output: str, images: np.ndarray) -> Any:
    """Return logits, pooled features or maps for images [B, H, W, 3]."""
    imagenet.check_images(images)
    images = np.ascontiguousarray(images, np.float32)
    size = images.shape[1:3]
    if size == (int(self.facts['image_size']),) * 2:
      size = None
    count = len(images)
    if not count:  # Runtimes have no batches of none.
      images = np.zeros((1, *images.shape[1:]), np.float32)
    kind = 'features' if output == 'features' else 'answers'
    results = self._session(kind, size).run(images)
    if output == 'features':
      return [results[f'stride_{2**i}'][:count] for i in range(1, 6)]
    return results['embedding' if output == 'pool' else output][:count]

  def _session(self, kind: str, size: tuple[int, int] | None) -> Any:
    with self._lock:
      if (kind, size) not in self._sessions:
        self._sessions[kind, size] = self._open(kind, size)
      return self._sessions[kind, size]

  def _open(
    self, kind: str, size: tuple[int, int] | None, again: bool = False
  ) -> Any:
    key = self._key(outputs=kind, shape=size)
    path = graphs.file(key, lambda path: self._write(path, kind, size), again)
    try:
      return open_graph(str(path), self.runtime)
    except Exception as error:  # Of a kind of its own for each runtime.
      if again:
        raise
      _log.warning('%s: %s. It is made again.', path, messages.one_line(error))
      return self._open(kind, size, again=True)

  def _write(self, path: str, kind: str, size: tuple[int, int] | None) -> None:
    network = self._network()
    title = TITLES[self.runtime.name]
    _log.info('Making the graph of %s that %s runs.', network.name, title)
    from nfnets.inference import onnx_graph

    outputs = ['features']
    if kind == 'answers':
      outputs = ['logits', 'pool'] if network.num_classes else ['pool']
    onnx_graph.write(network, path, False, outputs, True, size)
