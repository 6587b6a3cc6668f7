"""A network with its weights, to run on images: on JAX or another runtime.

What a network is called, what it takes and the names of its classes are known
without JAX where the runtime does without it; `model`, `params` and `state` are
read when they are first asked for.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import importlib
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from nfnets import imagenet
from nfnets.inference import preprocessing
from nfnets.inference.runtimes import (
  RuntimeMissingError,
  choice,
  graph_runner,
  graphs,
)
from nfnets.weights import fetching

if TYPE_CHECKING:
  import haiku as hk

  from nfnets import zoo

__all__ = ['Facts', 'Network', 'RuntimeMissingError', 'of', 'open_network']

_Opened = Callable[[], tuple['zoo.Model', 'hk.Params', 'hk.State']]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Facts:
  """What there is to know of a network, but for its weights.

  Attributes:
    name: as in `nfnets.list_models()`.
    num_classes: size of the logits; 0 without a last layer.
    class_names: in the order of the logits; None if they are not known.
    image_size: side of the images, in pixels.
    preprocessing: as `nfnets.data.preprocess.preprocess_eval` names it.
    mean: of the channels of images in 0-255, float32 [3].
    std: their standard deviation, float32 [3].
  """

  name: str
  num_classes: int
  class_names: tuple[str, ...] | None
  image_size: int
  preprocessing: str
  mean: np.ndarray
  std: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Network(Facts):
  """A network with its weights, and what runs it.

  Attributes:
    runner: see `nfnets.inference.runtimes`.
    opened: returns the model, its parameters and its state, the same ones
      whenever it is called.
  """

  runner: Any = dataclasses.field(repr=False)
  opened: _Opened = dataclasses.field(repr=False)

  @property
  def runtime(self) -> str:
    """'jax', 'onnxruntime' or 'openvino'."""
    return self.runner.runtime

  @property
  def precision(self) -> str:
    """'float32' or 'bfloat16'."""
    return self.runner.precision

  def facts(self) -> dict[str, Any]:
    """Returns what `Facts` has, as JSON values."""
    found = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(Facts)
    }
    for name in ('mean', 'std'):
      found[name] = np.float64(found[name]).tolist()
    return found

  @property
  def model(self) -> 'zoo.Model':
    """The model, whose test size is `image_size`."""
    return self.opened()[0]

  @property
  def params(self) -> 'hk.Params':
    """Its parameters, {module: {name: array}}."""
    return self.opened()[1]

  @property
  def state(self) -> 'hk.State':
    """Its state, empty for networks without BatchNorm."""
    return self.opened()[2]

  def preprocess(self, image: bytes | np.ndarray) -> np.ndarray:
    """Prepares one image as in the published evaluation.

    Several threads may do so at once.

    Args:
      image: an encoded JPEG or PNG, or uint8 [H, W, 3].

    Returns:
      float32 [image_size, image_size, 3], normalized.
    """
    size = (self.image_size, self.image_size)
    image = preprocessing.preprocess_eval(image, size, self.preprocessing)
    return self.normalize(image)

  def normalize(self, images: np.ndarray) -> np.ndarray:
    """Normalizes images [..., 3] in 0-255 to what the network takes."""
    return imagenet.normalize(np.asarray(images), self.mean, self.std)

  def logits(self, images: np.ndarray) -> np.ndarray:
    """Returns float32 [B, num_classes] for images [B, H, W, 3].

    Raises:
      ValueError: if the network has no last layer.
    """
    return self.runner.run('logits', images)

  def embed(self, images: np.ndarray) -> np.ndarray:
    """Returns pooled features, float32 [B, C], what the last layer sees."""
    return self.runner.run('pool', images)

  def features(self, images: np.ndarray) -> list[np.ndarray]:
    """Returns five maps, float32 [B, h, w, c], at strides 2 to 32."""
    return self.runner.run('features', images)


def open_network(
  path: str,
  name: str | None = None,
  image_size: int | None = None,
  *,
  runtime: str = 'jax',
  precision: str = 'float32',
  threads: int | None = None,
  throughput: bool = False,
) -> Network:
  """Opens weights of a known model; see `nfnets.weights.open_model`.

  Args:
    path: the file, or what else `nfnets.weights.find` takes.
    name: the model's name; the one that the weights fit if None.
    image_size: side of the images, in pixels; the model's test size if None.
    runtime: 'jax', 'onnxruntime' or 'openvino'; or 'auto', for the fastest that
      is installed.
    precision: what is computed in, 'float32' or 'bfloat16'.
    threads: how many may compute; all cores if None. JAX takes all.
    throughput: whether many images matter rather than the time of one call.

  Raises:
    OSError: if the file cannot be read.
    RuntimeMissingError: if the runtime is not installed, or not for this.
    ValueError: if it is no file of weights, or of no model, or of another one,
      or for an unknown runtime or precision.
  """
  chosen = choose(runtime, precision, threads)

  @functools.cache
  def opened():
    return _open_model(path, name, image_size)

  if chosen == 'jax':
    network = on_jax(opened, precision)
  else:
    options = precision, threads, throughput
    settings = {'name': name, 'image_size': image_size}
    network = on_graph(chosen, options, opened, path, settings)
  if runtime == 'auto':
    title = choice.TITLES[chosen]
    _log.info('%s runs on %s, in %s.', network.name, title, precision)
  return network


def choose(runtime: str, precision: str, threads: int | None) -> str:
  """Returns the runtime to take; see `open_network`."""
  chosen = choice.choose(runtime, precision)
  if threads is not None and (chosen == 'jax' or threads < 1):
    raise RuntimeMissingError(
      'JAX takes all cores; a number of threads is for OpenVINO and ONNX '
      'Runtime.'
      if chosen == 'jax'
      else f'There must be at least one thread, not {threads}.'
    )
  return chosen


def of(model: 'zoo.Model', params: 'hk.Params', state: 'hk.State') -> Network:
  """Returns a model with its weights as a network that JAX runs."""
  return on_jax(lambda: (model, params, state), 'float32')


def on_jax(opened: _Opened, precision: str) -> Network:
  """Returns a network that JAX runs; see `Network.opened`."""
  from nfnets.inference.runtimes import jax_runtime

  runner = jax_runtime.Runner(opened, precision)
  return Network(**vars(facts_of(opened()[0])), runner=runner, opened=opened)


def on_graph(
  runtime: str,
  options: tuple[str, int | None, bool],
  opened: _Opened,
  path: str,
  settings: Mapping[str, Any],
) -> Network:
  """Returns a network whose graph another runtime runs.

  Args:
    runtime: 'onnxruntime' or 'openvino'.
    options: precision, threads and throughput, as in `open_network`.
    opened: see `Network`; it is called if the graph has to be made.
    path: the file of weights, or what else `nfnets.weights.find` takes.
    settings: what else `opened` depends on; JSON values.
  """
  if graphs.is_empty():
    # What makes a graph is imported while the file is read.
    module = 'nfnets.weights.opening'
    threading.Thread(target=importlib.import_module, args=[module]).start()
  digest = fetching.digest(fetching.find(path))
  # A name of the hub says whose weights they are, a path does not.
  is_name = path.startswith(('timm/', 'hf://'))
  settings = {**settings, 'source': path if is_name else None}
  runner = graph_runner.Runner(
    runtime, *options, lambda: of(*opened()), digest, settings
  )
  facts = dict(runner.facts)
  names = facts['class_names']
  facts['class_names'] = None if names is None else tuple(names)
  for name in ('mean', 'std'):
    facts[name] = np.float32(facts[name])
  return Network(**facts, runner=runner, opened=opened)


def facts_of(model: 'zoo.Model') -> Facts:
  """Returns what there is to know of a model."""
  return Facts(
    name=model.name,
    num_classes=model.num_classes,
    class_names=model.class_names,
    image_size=model.test_size,
    preprocessing=model.entry.eval_preproc,
    mean=np.float32(model.entry.mean),
    std=np.float32(model.entry.std),
  )


def _open_model(
  path: str, name: str | None, image_size: int | None
) -> tuple['zoo.Model', 'hk.Params', 'hk.State']:
  from nfnets import weights

  model, params, state = weights.open_model(path, name)
  if image_size:
    entry = dataclasses.replace(model.entry, test_size=image_size)
    model = dataclasses.replace(model, entry=entry)
  return model, params, state
