"""Every model by name: its module, arguments, image sizes and preprocessing."""

from collections.abc import Callable, Mapping
import copy
import dataclasses
import difflib
import fnmatch
import functools
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnets import (
  fixup_resnet,
  imagenet,
  initialization,
  nf_regnet,
  nf_resnet,
  nfnet,
  resnet,
  skipinit_resnet,
  timm_nets,
  variants,
)


@dataclasses.dataclass(frozen=True, eq=False)  # Hashable, by identity.
class Entry:
  """What belongs to a model's name."""

  module: Callable[..., hk.Module]
  kwargs: Mapping[str, Any]
  train_size: int  # Pixels, of square images.
  test_size: int
  eval_preproc: str  # As `nfnets.data.preprocess.preprocess_eval` names it.
  # Of the channels of images in 0-255.
  mean: np.ndarray = dataclasses.field(default_factory=lambda: imagenet.MEAN)
  std: np.ndarray = dataclasses.field(default_factory=lambda: imagenet.STD)


_CLASSES = {
  'nfnet': nfnet.NFNet,
  'nf_regnet': nf_regnet.NF_RegNet,
  'nf_resnet': nf_resnet.NF_ResNet,
  'resnet': resnet.ResNet,
  'skipinit_resnet': skipinit_resnet.SkipInit_ResNet,
  'fixup_resnet': fixup_resnet.FixUp_ResNet,
  'timm_nets': timm_nets.NormFreeNet,
}
_TABLE = {
  name: Entry(_CLASSES[row.family], *row[1:5], **row.statistics)
  for name, row in variants.models.items()
}


def list_models(filter: str = '') -> list[str]:
  """Returns the names of all models, or of those that match a pattern.

  Args:
    filter: a pattern with `*` and `?`; without these, a part of the name.

  Example:
    >>> nfnets.list_models('nf_regnet_b?')[:2]
    ['nf_regnet_b0', 'nf_regnet_b1']
  """
  if not any(c in filter for c in '*?['):
    filter = f'*{filter}*'
  return [name for name in _TABLE if fnmatch.fnmatchcase(name, filter)]


def get_entry(name: str) -> Entry:
  """Returns the row of the table.

  Raises:
    ValueError: if there is no model of this name; the message lists the
      closest names, or all.
  """
  if name not in _TABLE:
    close = difflib.get_close_matches(name, _TABLE, n=5)
    known = f'Did you mean {", ".join(close)}?' if close else ''
    raise ValueError(
      f'No model {name!r}. {known or "There are " + ", ".join(_TABLE) + "."}'
    )
  return _TABLE[name]


def create_model(name: str, num_classes: int = 1000, **overrides) -> 'Model':
  """Builds a model.

  Args:
    name: one of `list_models()`.
    num_classes: size of the logits; 0 leaves out the last layer, and them.
    **overrides: arguments of the network's class, such as `activation`.

  Raises:
    ValueError: for an unknown name or an impossible number of classes.
    TypeError: for an argument that the network does not have.

  Example:
    >>> model = nfnets.create_model('nfnet_digits', num_classes=10)
    >>> params, state = model.init(jax.random.key(0))
  """
  entry = get_entry(name)
  if not isinstance(num_classes, int) or num_classes < 0:
    raise ValueError(
      f'num_classes must be a whole number of at least 0, not {num_classes!r}.'
    )
  # A copy, so that nobody can change a dictionary inside it later.
  kwargs = copy.deepcopy(
    {**entry.kwargs, 'num_classes': num_classes, **overrides}
  )

  def forward(images, is_training):
    return entry.module(**kwargs)(images, is_training=is_training)

  # A wrong argument should fail here, not when the network is first called.
  hk.transform_with_state(lambda: entry.module(**kwargs) and None).init(None)
  transformed = hk.transform_with_state(forward)
  overrides = {key: kwargs[key] for key in overrides}
  return Model(name, num_classes, entry, transformed, overrides)


def with_num_classes(model: 'Model', num_classes: int) -> 'Model':
  """Returns a model that differs in the size of its last layer alone.

  Its classes have no names.
  """
  other = create_model(model.name, num_classes, **model.overrides)
  return dataclasses.replace(other, entry=model.entry)


@dataclasses.dataclass(frozen=True)
class Model:
  """A network, its image sizes and its preprocessing.

  Images are normalized, float32 [B, H, W, 3] (see `preprocess`); parameters
  and state are Haiku's trees, {module: {name: array}}.

  Example:
    >>> model.logits(params, images).shape
    (2, 10)
  """

  name: str
  num_classes: int
  entry: Entry = dataclasses.field(repr=False)
  transformed: hk.TransformedWithState = dataclasses.field(repr=False)
  # Arguments of the network's class that `create_model` was given.
  overrides: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, repr=False, compare=False
  )
  # In the order of the logits; None if they are not known.
  class_names: tuple[str, ...] | None = dataclasses.field(
    default=None, repr=False
  )

  @property
  def train_size(self) -> int:
    """Side of the training images, in pixels."""
    return self.entry.train_size

  @property
  def test_size(self) -> int:
    """Side of the test images, in pixels."""
    return self.entry.test_size

  def init(
    self, rng: jax.Array, image_size: int | tuple[int, int] | None = None
  ) -> tuple[hk.MutableParams, hk.MutableState]:
    """Returns new parameters and state, float32.

    They have the distributions of the modules' initializers, but not the values
    that `hk.transform(...).init` draws for this key.

    Args:
      rng: a key of `jax.random`.
      image_size: has no effect: no parameter's shape depends on it.
    """
    del image_size
    return initialization.initialize(self.transformed, rng)

  def apply(
    self,
    params: hk.Params,
    state: hk.State,
    rng: jax.Array | None,
    images: jax.Array,
    is_training: bool,
  ) -> tuple[dict[str, Any], hk.State]:
    """Returns the network's outputs and its new state.

    Args:
      params: parameters.
      state: state, empty for networks without BatchNorm.
      rng: a key for dropout and stochastic depth; None in evaluation.
      images: [B, H, W, 3], normalized.
      is_training: whether dropout and stochastic depth act, and BatchNorm takes
        the statistics of these images.
    """
    return self.transformed.apply(params, state, rng, images, is_training)

  @functools.cached_property
  def _jitted(self) -> Callable[..., dict[str, Any]]:
    def outputs(keys, params, state, images):
      out, _ = self.apply(params, state, None, images, is_training=False)
      return {key: out[key] for key in keys}

    return jax.jit(outputs, static_argnums=0)

  def _output(
    self,
    key: str,
    params: hk.Params,
    images: jax.Array,
    state: hk.State | None,
  ) -> Any:
    imagenet.check_images(images)
    try:
      return self._jitted((key,), params, state or {}, images)[key]
    except ValueError as error:
      if state or not initialization.trace(self.transformed)[1]:
        raise
      raise ValueError(
        f'{self.name} has moving averages; pass the state that belongs to '
        'the parameters: logits(params, images, state).'
      ) from error

  def logits(
    self, params: hk.Params, images: jax.Array, state: hk.State | None = None
  ) -> jax.Array:
    """Returns logits [B, num_classes] for images [B, H, W, 3].

    Networks with BatchNorm need the state that belongs to the parameters.

    Raises:
      ValueError: without that state, if the model has no last layer, or for
        other images.
    """
    if not self.num_classes:
      raise ValueError(
        f'This {self.name} has no last layer (num_classes=0), so it has no '
        'logits; it has embeddings and features.'
      )
    return self._output('logits', params, images, state)

  def features(
    self, params: hk.Params, images: jax.Array, state: hk.State | None = None
  ) -> list[jax.Array]:
    """Returns the five maps [B, h, w, c] at strides 2, 4, 8, 16 and 32."""
    return self._output('features', params, images, state)

  def embed(
    self, params: hk.Params, images: jax.Array, state: hk.State | None = None
  ) -> jax.Array:
    """Returns pooled features [B, C], what the last layer sees."""
    return self._output('pool', params, images, state)

  def normalize(self, images):
    """Normalizes images [..., 3] in 0-255 to what this network takes."""
    return imagenet.normalize(images, self.entry.mean, self.entry.std)

  def denormalize(self, images):
    """Undoes `normalize`: in 0-255 again, neither rounded nor clipped."""
    return imagenet.denormalize(images, self.entry.mean, self.entry.std)

  def preprocess(self, image: Any) -> np.ndarray:
    """Prepares one picture as in the published evaluation.

    Needs Pillow and, for JPEGs, simplejpeg.

    Args:
      image: an encoded file, such as a JPEG or PNG, its path, an image of
        Pillow, or uint8 or uint16 pixels: [H, W] or [H, W, C] with 1 channel
        (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). It is turned
        as its EXIF orientation says, and laid on white where it is transparent.

    Returns:
      float32 [test_size, test_size, 3], normalized.

    Raises:
      ValueError: if it is none of these, or damaged.
    """
    from nfnets.inference import preprocessing

    size = (self.test_size, self.test_size)
    return self.normalize(
      preprocessing.preprocess_eval(image, size, self.entry.eval_preproc)
    )
