"""What the page says of an image."""

from collections import Counter
from collections.abc import Sequence
import functools
import threading
from typing import NamedTuple

import numpy as np

from nfnets.inference import classes, networks
from nfnets.inference.demo import attention, pictures, uploads

GRADIENT = 'Input gradient'
_CAM = 'Grad-CAM, stage {} ({} × {})'
_SHOWN_SIDE = 256  # Of pictures on the page, at least.


class Seen(NamedTuple):
  """An image as the network sees it.

  Attributes:
    image: float32 [N, N, 3], normalized.
    picture: uint8 [M, M, 3], the same in colours; M is N or a multiple.
    top: the most probable classes and their probabilities.
  """

  image: np.ndarray
  picture: np.ndarray
  top: list[tuple[int, float]]


class Answers:
  """A network's answers, one at a time."""

  def __init__(
    self, network: networks.Network, names: Sequence[str], top: int = 5
  ):
    """Computes nothing yet.

    Args:
      network: the network; it has a last layer.
      names: of its classes.
      top: how many classes to name.
    """
    self.network = network
    self.names = distinct(names)
    self._top = top
    # Two at once would take twice the memory and be no faster.
    self._lock = threading.Lock()
    self.is_warm = False  # Whether nothing has to be compiled any more.

  def warm_up(self) -> None:
    """Has everything compiled, so that nobody waits for that later."""
    side = self.network.image_size
    seen = self.see(np.zeros((side, side, 3), np.uint8))
    self.stages(seen)
    self.where(seen, seen.top[0][0], self.method)
    self.is_warm = True

  def see(self, image: bytes | np.ndarray) -> Seen:
    """Returns an image as the network sees it, with the most probable classes.

    Args:
      image: what `uploads.read` returns.

    Raises:
      UploadError: if it cannot be decoded, or the output is not finite.
    """
    network = self.network
    try:
      prepared = network.preprocess(image)
    except Exception as error:
      if isinstance(image, np.ndarray):
        raise
      message = 'This image cannot be decoded: damaged JPEG data.'
      raise uploads.UploadError(message) from error
    with self._lock:
      logits = network.logits(prepared[None])[0]
    if not np.isfinite(logits).all():
      raise uploads.UploadError("The network's output is not finite.")
    picture = pictures.from_network(prepared, network.mean, network.std)
    return Seen(
      prepared,
      pictures.enlarge(picture, _SHOWN_SIDE),
      classes.top_classes(logits, self._top),
    )

  def stages(self, seen: Seen) -> list[np.ndarray]:
    """Returns the five maps as pictures: the mean size of the channels."""
    with self._lock:
      maps = self.network.features(seen.image[None])
    side = seen.picture.shape[0]
    return [
      pictures.heat(np.abs(x[0]).mean(axis=-1), side, is_smooth=False)
      for x in maps
    ]

  def where(self, seen: Seen, label: int, method: str) -> np.ndarray:
    """Returns the picture with what speaks for a class in colours.

    Args:
      seen: the image.
      label: the class.
      method: one of `methods`.
    """
    with self._lock:
      if method == GRADIENT:
        values = self._attention.input_gradient(seen.image, label)
        # A few pixels would outshine all others.
        values = np.minimum(values, np.quantile(values, 0.99))
      else:
        stage = self.methods.index(method)
        maps = self.network.features(seen.image[None])[stage]
        values = self._attention.grad_cam(maps, stage, label)
    return pictures.overlay(seen.picture, values)

  def embed(self, seen: Seen) -> np.ndarray:
    """Returns the embedding, float32 [C]."""
    with self._lock:
      return self.network.embed(seen.image[None])[0]

  @functools.cached_property
  def methods(self) -> list[str]:
    """Names of the ways to say where: Grad-CAM of each map, and a gradient."""
    size = self.network.image_size
    sides = [-(-size // 2 ** (stage + 1)) for stage in range(5)]
    return [*(_CAM.format(i + 1, x, x) for i, x in enumerate(sides)), GRADIENT]

  @property
  def method(self) -> str:
    """The one that says most."""
    return self.methods[attention.best_stage(self.network.image_size)]

  @functools.cached_property
  def _attention(self) -> attention.Attention:
    network = self.network
    return attention.Attention(network.model, network.params, network.state)


def distinct(names: Sequence[str]) -> list[str]:
  """Returns names on one line each, with a number where two are the same."""
  names = [classes.on_one_line(name) for name in names]
  counts = Counter(names)
  return [
    name if counts[name] == 1 else f'{name} ({label})'
    for label, name in enumerate(names)
  ]
