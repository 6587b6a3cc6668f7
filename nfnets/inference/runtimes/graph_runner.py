"""Running the ONNX graph of a network, which is in the cache or is made."""

from collections.abc import Callable, Mapping
import functools
import importlib
import logging
import threading
from typing import Any

import numpy as np

from nfnets.inference.runtimes import choice, graphs

_MODULES = {
  'onnxruntime': 'nfnets.inference.runtimes.onnx_runtime',
  'openvino': 'nfnets.inference.runtimes.openvino_runtime',
}
# The name in a graph of what a runner calls otherwise.
_POOL = 'embedding'
_log = logging.getLogger(__name__)


class Runner:
  """Runs graphs of one network; see the package.

  Logits and embeddings come from one graph. Features, and images of another
  size, have their own, which is made when it is first asked for.
  """

  def __init__(
    self,
    runtime: str,
    precision: str,
    threads: int | None,
    throughput: bool,
    network: Callable[[], Any],
    weights: str,
    settings: Mapping[str, Any],
  ):
    """Reads the graph for logits and embeddings, or makes it.

    Args:
      runtime: 'onnxruntime' or 'openvino'.
      precision: 'float32' or 'bfloat16'.
      threads: how many may compute; all cores if None.
      throughput: whether many images matter rather than the time of one call.
      network: returns the network with its weights, if need be.
      weights: the SHA-256 of the file of weights.
      settings: what else decides on the graph.
    """
    self.runtime = runtime
    self.precision = precision
    self._options = precision, threads, throughput
    self._network = network
    self._key = functools.partial(graphs.key, weights, **settings)
    self._lock = threading.Lock()
    self._sessions: dict[Any, Any] = {}
    module = importlib.import_module(_MODULES[runtime])
    self._open = module.Session
    graph = self._graph(('answers', None))
    self.facts = graph.facts
    self._sessions['answers', None] = self._open(
      str(graph.path), *self._options
    )

  def run(self, output: str, images: np.ndarray) -> Any:
    """Returns logits, pooled features or maps for images [B, H, W, 3].

    Raises:
      ValueError: if images are no such array, or there are no logits.
    """
    if output == 'logits' and not self.facts['num_classes']:
      raise ValueError(
        f'This {self.facts["name"]} has no last layer (num_classes=0), so it '
        'has no logits; it has embeddings and features.'
      )
    images = np.ascontiguousarray(images, np.float32)
    if images.ndim != 4 or images.shape[3] != 3:
      raise ValueError(f'Images are [B, H, W, 3], not {images.shape}.')
    size = images.shape[1:3]
    if size == (self.facts['image_size'],) * 2:
      size = None
    kind = 'features' if output == 'features' else 'answers'
    count = len(images)
    if not count:  # Runtimes have no batches of none.
      images = np.zeros((1, *images.shape[1:]), np.float32)
    results = self._session((kind, size)).run(images)
    if output == 'features':
      return [results[f'stride_{2**i}'][:count] for i in range(1, 6)]
    return results[_POOL if output == 'pool' else output][:count]

  def _session(self, which: Any) -> Any:
    with self._lock:
      if which not in self._sessions:
        path = str(self._graph(which).path)
        self._sessions[which] = self._open(path, *self._options)
      return self._sessions[which]

  def _graph(self, which: Any) -> graphs.Graph:
    kind, size = which
    key = self._key(outputs=kind, shape=size)
    graph = graphs.find(key)
    if graph is not None:
      return graph
    network = self._network()
    title = choice.TITLES[self.runtime]
    _log.info('Making the graph of %s that %s runs.', network.name, title)
    from nfnets.inference import onnx_graph

    outputs = ['features']
    if kind == 'answers':
      outputs = ['logits', 'pool'] if network.num_classes else ['pool']

    def write(path: str) -> None:
      onnx_graph.write(network, path, False, outputs, True, size)

    return graphs.make(key, write, network.facts())
