"""A network with its weights, to run on images: on JAX or another runtime.

What a network is called, what it takes and the names of its classes are known
without JAX where the runtime does without it; `model`, `params` and `state` are
read when they are first asked for.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib
import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from nfnets import imagenet
from nfnets.inference import graphs, preprocessing, runtimes
from nfnets.weights import fetching

if TYPE_CHECKING:
  import haiku as hk

  from nfnets import zoo

__all__ = ['TTA', 'Network', 'of', 'on_runtime', 'open_network']

TTA = ('flip', 'crops')

_Opened = Callable[[], tuple['zoo.Model', 'hk.Params', 'hk.State']]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A network with its weights, and what runs it.

  Attributes:
    name: a name of `nfnets.list_models()`.
    num_classes: size of the logits; 0 without a last layer.
    class_names: in the order of the logits; None if they are not known.
    image_size: side of the images, in pixels.
    preprocessing: a mode of `nfnets.data.preprocess.preprocess_eval`.
    mean: mean of each channel of images in 0-255, float32 [3].
    std: their standard deviation, float32 [3].
    session: see `nfnets.inference.runtimes`.
    opened: returns the model, its parameters and its state, the same ones
      whenever it is called.
    tta: test-time augmentation, one of `TTA`: `logits` and `embed` are means
      over 'flip', an image and its mirror image, or over 'crops', the centre
      and the corners of a larger image and their mirror images. None: neither.
  """

  name: str
  num_classes: int
  class_names: tuple[str, ...] | None
  image_size: int
  preprocessing: str
  mean: np.ndarray
  std: np.ndarray
  session: Any = dataclasses.field(repr=False)
  opened: _Opened = dataclasses.field(repr=False)
  tta: str | None = None

  @property
  def runtime(self) -> str:
    """'jax', 'onnxruntime' or 'openvino'."""
    return self.session.runtime.name

  @property
  def precision(self) -> str:
    """'float32' or 'bfloat16'."""
    return self.session.runtime.precision

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

  @property
  def input_size(self) -> int:
    """Side in pixels of the images that `logits` and `embed` take."""
    is_cropped = self.tta == 'crops'
    return round(self.image_size * 8 / 7) if is_cropped else self.image_size

  def facts(self) -> dict[str, str]:
    """Return what an ONNX file says of the network, as its metadata."""
    facts = {
      'model': self.name,
      'image_size': str(self.image_size),
      'num_classes': str(self.num_classes),
      'mean': json.dumps(self.mean.tolist()),
      'std': json.dumps(self.std.tolist()),
      'preprocessing': self.preprocessing,
    }
    if self.class_names:
      facts['class_names'] = json.dumps(self.class_names)
    return facts

  def preprocess(self, image: Any) -> np.ndarray:
    """Prepare one picture as in the published evaluation.

    Several threads may do so at once.

    Args:
      image: see `nfnets.Model.preprocess`.

    Returns:
      float32 [input_size, input_size, 3], normalized.
    """
    size = (self.input_size, self.input_size)
    image = preprocessing.preprocess_eval(image, size, self.preprocessing)
    return self.normalize(image)

  def normalize(self, images: np.ndarray) -> np.ndarray:
    """Normalize images [..., 3] in 0-255 to what the network takes."""
    return imagenet.normalize(np.asarray(images), self.mean, self.std)

  def logits(self, images: np.ndarray) -> np.ndarray:
    """Return float32 [B, num_classes] for images [B, H, W, 3].

    With `tta`, it is the logarithm of the mean probabilities of the views.

    Raises:
      ValueError: if the network has no last layer, or for other images.
    """
    if not self.num_classes:
      raise ValueError(
        f'This {self.name} has no last layer (num_classes=0), so it has no '
        'logits; it has embeddings and features.'
      )
    if not self.tta:
      return self.session.run('logits', images)
    views = np.float64(self._run_views('logits', images))
    with np.errstate(invalid='ignore'):  # Where it is not finite.
      # Sums of exponentials that do not underflow.
      views -= np.logaddexp.reduce(views, axis=-1, keepdims=True)
      return np.float32(np.logaddexp.reduce(views) - np.log(len(views)))

  def embed(self, images: np.ndarray) -> np.ndarray:
    """Return pooled features, float32 [B, C], what the last layer sees.

    With `tta`, it is their mean over the views.
    """
    if not self.tta:
      return self.session.run('pool', images)
    views = self._run_views('pool', images)
    return np.float32(np.mean(views, axis=0, dtype=np.float64))

  def _run_views(self, output: str, images: np.ndarray) -> list[np.ndarray]:
    """Run the views one after another: no other shape is compiled."""
    size, views = self.image_size, [images]
    if self.tta == 'crops':
      end = images.shape[1] - size
      corners = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
      views = [images[:, y : y + size, x : x + size] for y, x in corners]
    views += [view[:, :, ::-1] for view in views]
    return [self.session.run(output, view) for view in views]

  def features(self, images: np.ndarray) -> list[np.ndarray]:
    """Return five maps, float32 [B, h, w, c], at strides 2 to 32."""
    return self.session.run('features', images)


def open_network(
  path: str,
  name: str | None = None,
  image_size: int | None = None,
  *,
  runtime: str = 'jax',
  precision: str = 'float32',
  threads: int | None = None,
  throughput: bool = False,
  tta: str | None = None,
) -> Network:
  """Open weights of a known model; see `nfnets.weights.open_model`.

  Args:
    path: the file, or what else `nfnets.weights.find` takes.
    name: the model's name; the one that the weights fit if None.
    image_size: side of the images, in pixels; the model's test size if None.
    runtime: 'jax', 'onnxruntime' or 'openvino'; or 'auto', for the fastest that
      is installed.
    precision: 'float32' or 'bfloat16'.
    threads: number of threads. None: all cores. JAX always uses all.
    throughput: whether many images matter rather than the time of one call.
    tta: see `Network`.

  Raises:
    OSError: if the file cannot be read.
    UserError: if the runtime is not installed, or not for this.
    ValueError: if it is no file of weights, or of no model, or of another one,
      or for an unknown runtime or precision.
  """
  chosen = runtimes.choose(runtime, precision, threads, throughput)

  @functools.cache
  def opened():
    from nfnets.weights.opening import open_model

    model, params, state = open_model(path, name)
    if image_size:
      entry = dataclasses.replace(model.entry, test_size=image_size)
      model = dataclasses.replace(model, entry=entry)
    return model, params, state

  network = on_runtime(chosen, opened, path, name=name, image_size=image_size)
  if runtime == 'auto':
    title = runtimes.TITLES[chosen.name]
    _log.info('%s runs on %s, in %s.', network.name, title, precision)
  return dataclasses.replace(network, tta=tta)


def of(model: 'zoo.Model', params: 'hk.Params', state: 'hk.State') -> Network:
  """Return a model with its weights as a network that JAX runs."""
  return _on_jax(runtimes.Runtime(), lambda: (model, params, state))


def on_runtime(
  runtime: runtimes.Runtime,
  opened: _Opened,
  path: str | os.PathLike[str],
  **settings: Any,
) -> Network:
  """Return a network that a runtime runs.

  Args:
    runtime: the runtime.
    opened: see `Network`; other runtimes than JAX call it if the graph has to
      be made.
    path: the file of weights, or what else `nfnets.weights.find` takes.
    **settings: other settings of `opened`; JSON values.
  """
  if runtime.name == 'jax':
    return _on_jax(runtime, opened)
  if not graphs.folder().exists():
    # Import in the background, while the file is read.
    module = 'nfnets.weights.opening'
    threading.Thread(target=importlib.import_module, args=[module]).start()
  path = os.fspath(path)
  # A name of the hub says whose weights they are, a path does not.
  settings['source'] = path if path.startswith(('timm/', 'hf://')) else None
  session = runtimes.GraphSession(
    runtime,
    lambda: of(*opened()),
    fetching.digest(fetching.find(path)),
    settings,
  )
  facts = session.facts
  names = json.loads(facts.get('class_names', 'null'))
  return Network(
    name=facts['model'],
    num_classes=int(facts['num_classes']),
    class_names=None if names is None else tuple(names),
    image_size=int(facts['image_size']),
    preprocessing=facts['preprocessing'],
    mean=np.float32(json.loads(facts['mean'])),
    std=np.float32(json.loads(facts['std'])),
    session=session,
    opened=opened,
  )


def _on_jax(runtime: runtimes.Runtime, opened: _Opened) -> Network:
  model = opened()[0]
  return Network(
    name=model.name,
    num_classes=model.num_classes,
    class_names=model.class_names,
    image_size=model.test_size,
    preprocessing=model.entry.eval_preproc,
    mean=np.float32(model.entry.mean),
    std=np.float32(model.entry.std),
    session=runtimes.JaxSession(opened, runtime),
    opened=opened,
  )
