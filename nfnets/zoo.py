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
import jax.numpy as jnp
import numpy as np

from nfnets import (
  fixup_resnet,
  imagenet,
  nf_regnet,
  nf_resnet,
  nfnet,
  resnet,
  skipinit_resnet,
  timm_nets,
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

  def normalize(self, images):
    """Normalizes images to what the model takes.

    Args:
      images: float32 [..., 3] in 0-255; of NumPy, JAX or TensorFlow.

    Returns:
      float32 [..., 3], of the same library.
    """
    return imagenet.normalize(images, self.mean, self.std)

  def denormalize(self, images):
    """Undoes `normalize`: in 0-255 again, neither rounded nor clipped."""
    return imagenet.denormalize(images, self.mean, self.std)


def _table() -> dict[str, Entry]:
  table = {}
  for variant, row in nfnet.NFNet.variant_dict.items():
    table[f'nfnet_{variant.lower()}'] = Entry(
      nfnet.NFNet,
      {'variant': variant},
      row['train_imsize'],
      row['test_imsize'],
      'resize_crop_1' if variant == 'digits' else 'resize_crop_32',
    )
  for variant, row in nf_regnet.NF_RegNet.variant_dict.items():
    table[f'nf_regnet_{variant.lower()}'] = Entry(
      nf_regnet.NF_RegNet,
      {'variant': variant},
      row['train_imsize'],
      row['test_imsize'],
      'crop_resize',
    )
  for name, module, kwargs in (
    ('nf_{}', nf_resnet.NF_ResNet, {}),
    ('{}', resnet.ResNet, {'width': 4}),
    ('{}_v1', resnet.ResNet, {'width': 4, 'preactivation': False}),
    ('skipinit_{}', skipinit_resnet.SkipInit_ResNet, {}),
    ('fixup_{}', fixup_resnet.FixUp_ResNet, {}),
  ):
    for variant in module.variant_dict:
      table[name.format(variant.lower())] = Entry(
        module, {'variant': variant, **kwargs}, 224, 224, 'crop_resize'
      )
  for variant, row in timm_nets.NormFreeNet.variant_dict.items():
    table[f'timm/{variant}'] = Entry(
      timm_nets.NormFreeNet,
      {'variant': variant},
      row['train_imsize'],
      row['test_imsize'],
      f'center_crop_{row["crop"]:g}',
      row['mean'],
      row['std'],
    )
  return table


_TABLE = _table()


def list_models(filter: str = '') -> list[str]:
  """Returns the names of all models, or of those that match a pattern.

  Args:
    filter: a pattern with `*` and `?`; without these, a part of the name.
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
    """Returns new parameters and state.

    Args:
      rng: a key of `jax.random`.
      image_size: side or (height, width) in pixels; the training size if None.
        No parameter's shape depends on it.
    """
    size = self.train_size if image_size is None else image_size
    h, w = (size, size) if isinstance(size, int) else size
    images = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
    init = functools.partial(self.transformed.init, is_training=True)
    # Compiled, so that the forward pass of `init` is dropped as unused.
    return jax.jit(lambda rng: init(rng, jnp.zeros(images.shape)))(rng)

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
    try:
      return self._jitted((key,), params, state or {}, images)[key]
    except ValueError as error:
      if state or not jax.eval_shape(self.init, jax.random.key(0))[1]:
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
      ValueError: without that state, or if the model has no last layer.
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
    return self.entry.normalize(images)

  def denormalize(self, images):
    """Undoes `normalize`: in 0-255 again, neither rounded nor clipped."""
    return self.entry.denormalize(images)

  def preprocess(self, image: bytes | np.ndarray) -> np.ndarray:
    """Prepares one image as in the published evaluation.

    Needs TensorFlow, whose decoder and resizing these are.

    Args:
      image: an encoded JPEG or PNG, or uint8 [H, W, 3].

    Returns:
      float32 [test_size, test_size, 3], normalized.
    """
    from nfnets.data import preprocess

    size = (self.test_size, self.test_size)
    image = preprocess.preprocess_eval(image, size, self.entry.eval_preproc)
    return self.normalize(np.asarray(image))
