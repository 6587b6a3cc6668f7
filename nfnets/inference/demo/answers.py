"""The answers of a network to one image, and the pictures that show them."""

from collections import Counter
from collections.abc import Sequence
import functools
import threading

import numpy as np
from PIL import Image

from nfnets import messages
from nfnets.errors import ImageError
from nfnets.inference import classes, networks
from nfnets.inference.demo import attention

GRADIENT = 'Input gradient'
_CAM = 'Grad-CAM, stage {} ({} × {})'
_SIDE = 256  # The smallest side of a picture on the page; browsers blur less.
# Matplotlib's viridis, at equal distances: light is much, also in grey and for
# people who do not see all colours.
_COLOURS = np.array(
  [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
)
_OPACITY = 0.6


class Answers:
  """A network's answers, one at a time.

  Args:
    network: the network; it has a last layer.
    names: the names of its classes.
    top: number of classes to show.
  """

  def __init__(
    self, network: networks.Network, names: Sequence[str], top: int = 5
  ):
    self.network = network
    self.names = distinct(names)
    self._top = top
    # Two at once would take twice the memory and be no faster.
    self._lock = threading.Lock()
    self.is_warm = False  # Whether nothing has to be compiled any more.
    sides = [-(-network.image_size // 2**i) for i in range(1, 6)]
    self.methods = [_CAM.format(i, x, x) for i, x in enumerate(sides, 1)]
    self.method = self.methods[attention.best_stage(network.image_size)]
    self.methods.append(GRADIENT)

  @functools.cached_property
  def _attention(self) -> attention.Attention:
    network = self.network
    return attention.Attention(network.model, network.params, network.state)

  def warm_up(self) -> None:
    """Compile everything, so that nobody waits for that later."""
    side = self.network.image_size
    image, top = self.see(np.zeros((side, side, 3), np.uint8))
    self.stages(image)
    self.where(image, top[0][0], self.method)
    self.is_warm = True

  def see(
    self, image: bytes | np.ndarray
  ) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Return an image, prepared, and its most probable classes.

    Args:
      image: what `pictures.read` returns.

    Returns:
      float32 [N, N, 3], normalized, and (class, probability), best first.

    Raises:
      ImageError: if it cannot be decoded, or the output is not finite.
    """
    prepared = self.network.preprocess(image)
    with self._lock:
      logits = self.network.logits(prepared[None])[0]
    if not np.isfinite(logits).all():
      raise ImageError("has no answer: the network's output is not finite")
    return prepared, classes.top_classes(logits, self._top)

  def picture(self, image: np.ndarray) -> np.ndarray:
    """Return a prepared image in its colours, with its pixels as they are."""
    pixels = image * self.network.std + self.network.mean
    pixels = np.uint8(np.clip(np.rint(pixels), 0, 255))
    factor = -(-_SIDE // len(pixels))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)

  def stages(self, image: np.ndarray) -> list[np.ndarray]:
    """Return the five maps as pictures: the mean size of the channels."""
    with self._lock:
      maps = self.network.features(image[None])
    kind = Image.Resampling.NEAREST
    return [heat(np.abs(x[0]).mean(axis=-1), _SIDE, kind) for x in maps]

  def where(self, image: np.ndarray, label: int, method: str) -> np.ndarray:
    """Return the picture with what speaks for a class in colours.

    Args:
      image: as `see` returns it.
      label: the class.
      method: one of `methods`.
    """
    with self._lock:
      if method == GRADIENT:
        values = self._attention.input_gradient(image, label)
        # A few pixels would outshine all others.
        values = np.minimum(values, np.quantile(values, 0.99))
      else:
        stage = self.methods.index(method)
        values = self._attention.grad_cam(image, stage, label)
    grey = Image.fromarray(self.picture(image)).convert('L')
    colours = heat(values, grey.height, Image.Resampling.BICUBIC)
    grey = np.asarray(grey)[..., None]
    return np.uint8(_OPACITY * colours + (1 - _OPACITY) * grey)

  def embed(self, image: np.ndarray) -> np.ndarray:
    with self._lock:
      return self.network.embed(image[None])[0]


def heat(values: np.ndarray, side: int, kind: Image.Resampling) -> np.ndarray:
  """Return a map [h, w] in colours, from its least to its greatest value."""
  values = np.asarray(values, np.float32)
  values = values - values.min()
  values /= values.max() or 1
  large = Image.fromarray(values).resize((side, side), kind)
  at = np.linspace(0, 1, len(_COLOURS))
  channels = [np.interp(large, at, channel) for channel in _COLOURS.T]
  return np.uint8(np.stack(channels, axis=-1))


def distinct(names: Sequence[str]) -> list[str]:
  """Return names on one line each, with a number where two are the same."""
  names = [messages.printable(name) for name in names]
  counts = Counter(names)
  return [
    name if counts[name] == 1 else f'{name} ({label})'
    for label, name in enumerate(names)
  ]
