"""Builds every model by name, with its image sizes and preprocessing."""

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

from nfnets import imagenet, initialization, variants


def list_models(filter: str = '') -> list[str]:
  """Return the names of the models that match a pattern.

  Args:
    filter: a pattern with `*` and `?`, or a part of the name.

  Example:
    >>> nfnets.list_models('nf_regnet_b?')[:2]
    ['nf_regnet_b0', 'nf_regnet_b1']
  """
  if not any(c in filter for c in '*?['):
    filter = f'*{filter}*'
  return [name for name in variants.models if fnmatch.fnmatchcase(name, filter)]


def get_entry(name: str) -> variants.Entry:
  """Return the entry of a model.

  Raises:
    ValueError: if the name is unknown. The message lists the closest names, or
      all names.
  """
  if name not in variants.models:
    close = difflib.get_close_matches(name, variants.models, n=5)
    known = f'There are {", ".join(variants.models)}.'
    known = f'Did you mean {", ".join(close)}?' if close else known
    raise ValueError(f'No model {name!r}. {known}')
  return variants.models[name]


def create_model(name: str, num_classes: int = 1000, **overrides) -> 'Model':
  """Build a model.

  Args:
    name: one of `list_models()`.
    num_classes: size of the logits. 0 removes the last layer and the logits.
    **overrides: arguments of the network's class, such as `activation`.

  Raises:
    ValueError: if the name is unknown or num_classes is negative.
    TypeError: if the network has no such argument.

  Example:
    >>> model = nfnets.create_model('nfnet_digits', num_classes=10)
    >>> params, state = model.init(jax.random.key(0))
  """
  entry = get_entry(name)
  if not isinstance(num_classes, int) or num_classes < 0:
    raise ValueError(
      f'num_classes must be a whole number of at least 0, not {num_classes!r}.'
    )
  # A copy, so that later changes of a nested dictionary have no effect.
  kwargs = copy.deepcopy(
    {**entry.kwargs, 'num_classes': num_classes, **overrides}
  )

  def forward(images, is_training):
    return entry.module(**kwargs)(images, is_training=is_training)

  # Raise errors about arguments here, not at the first call.
  hk.transform_with_state(lambda: entry.module(**kwargs) and None).init(None)
  transformed = hk.transform_with_state(forward)
  overrides = {key: kwargs[key] for key in overrides}
  return Model(name, num_classes, entry, transformed, overrides)


def with_num_classes(model: 'Model', num_classes: int) -> 'Model':
  """Return the model with another last layer, without class names."""
  other = create_model(model.name, num_classes, **model.overrides)
  return dataclasses.replace(other, entry=model.entry)


@dataclasses.dataclass(frozen=True)
class Model:
  """A network with its image sizes and preprocessing.

  Images are normalized, float32 [B, H, W, 3] (see `preprocess`). Parameters and
  state are Haiku trees, {module: {name: array}}.

  Example:
    >>> model.logits(params, images).shape
    (2, 10)
  """

  name: str
  num_classes: int
  entry: variants.Entry = dataclasses.field(repr=False)
  transformed: hk.TransformedWithState = dataclasses.field(repr=False)
  # The keyword arguments of `create_model`.
  overrides: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, repr=False, compare=False
  )
  # In the order of the logits. None: unknown.
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
    """Return new parameters and state, float32.

    The values follow the distributions of the modules' initializers, but they
    differ from the values that `hk.transform(...).init` draws for the same key.

    Args:
      rng: a key of `jax.random`.
      image_size: ignored. No parameter shape depends on it.
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
    """Return the outputs of the network and its new state.

    Args:
      params: parameters.
      state: BatchNorm averages. Empty for networks without BatchNorm.
      rng: a key for dropout and stochastic depth. None in evaluation.
      images: [B, H, W, 3], normalized.
      is_training: apply dropout and stochastic depth, and use the batch
        statistics in BatchNorm.
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
        f'{self.name} has moving averages; pass the state of the weights: '
        'logits(params, images, state).'
      ) from error

  def logits(
    self, params: hk.Params, images: jax.Array, state: hk.State | None = None
  ) -> jax.Array:
    """Return logits [B, num_classes] for images [B, H, W, 3].

    Networks with BatchNorm need the state of the weights.

    Raises:
      ValueError: if the state is missing, the model has no last layer, or the
        images have another shape or dtype.
    """
    if not self.num_classes:
      raise ValueError(
        f'This {self.name} has no last layer (num_classes=0) and no logits. '
        'Use embed or features.'
      )
    return self._output('logits', params, images, state)

  def features(
    self, params: hk.Params, images: jax.Array, state: hk.State | None = None
  ) -> list[jax.Array]:
    """Return the five maps [B, h, w, c] at strides 2, 4, 8, 16 and 32."""
    return self._output('features', params, images, state)

  def embed(
    self, params: hk.Params, images: jax.Array, state: hk.State | None = None
  ) -> jax.Array:
    """Return the pooled features [B, C], the input of the last layer."""
    return self._output('pool', params, images, state)

  def normalize(self, images):
    """Normalize images [..., 3] in 0-255 for this network."""
    return imagenet.normalize(images, self.entry.mean, self.entry.std)

  def denormalize(self, images):
    """Undo `normalize`. The result, in 0-255, is not rounded or clipped."""
    return imagenet.denormalize(images, self.entry.mean, self.entry.std)

  def preprocess(self, image: Any) -> np.ndarray:
    """Preprocess one image as in the published evaluation.

    Needs Pillow and, for JPEGs, simplejpeg. It applies the EXIF orientation and
    makes transparent pixels white.

    Args:
      image: an encoded file such as a JPEG or PNG, its path, a Pillow image, or
        uint8 or uint16 pixels: [H, W] or [H, W, C] with 1 channel (grey), 2
        (grey and alpha), 3 (RGB) or 4 (RGB and alpha).

    Returns:
      float32 [test_size, test_size, 3], normalized.

    Raises:
      ValueError: if the image has another format or is damaged.
    """
    from nfnets.inference import preprocessing

    size = (self.test_size, self.test_size)
    return self.normalize(
      preprocessing.preprocess_eval(image, size, self.entry.eval_preproc)
    )
