"""ResNets with BatchNorm, the baseline that the other networks do without.

He et al., "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), the
pre-activation v2, and "Deep Residual Learning for Image Recognition" (arXiv
1512.03385), v1. Both have their strides in the 3x3 convolutions.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, network

# Haiku's normalizations, and those of their arguments that have no default.
_NORMS: dict[str, dict[str, Any]] = {
  'BatchNorm': {'decay_rate': 0.9},
  'GroupNorm': {},
  'InstanceNorm': {},
  'LayerNorm': {'axis': -1},
}
_PMAPPED = ('cross_replica_axis', 'cross_replica_axis_index_groups')


class ResNet(network.Network):
  """ResNet v2, or v1.

  Example:
    >>> net = hk.transform_with_state(lambda x: resnet.ResNet(4, 1000)(x))
  """

  variant_dict = base.resnet_params
  pool_padding = 'SAME'

  def __init__(
    self,
    width: int,
    num_classes: int,
    variant: str = 'ResNet50',
    which_norm: str = 'BatchNorm',
    norm_kwargs: Mapping[str, Any] | None = None,
    activation: str = 'relu',
    drop_rate: float = 0.0,
    fc_init: hk.initializers.Initializer = jnp.zeros,
    conv_kwargs: Mapping[str, Any] | None = None,
    preactivation: bool = True,
    use_se: bool = False,
    se_ratio: float = 0.25,
    name: str = 'ResNet',
    remat: bool | int = False,
  ):
    """Builds the modules.

    `network.Network` explains the arguments that are not listed here.

    Args:
      width: multiplies the widths 64, 128, 256, 512 of the stages; 4 for the
        published networks.
      which_norm: BatchNorm, GroupNorm, InstanceNorm or LayerNorm (over
        channels), of Haiku.
      norm_kwargs: arguments of that class. It gets a scale and an offset, and
        BatchNorm a `decay_rate` of 0.9, unless they say otherwise. Under
        `jax.pmap`, BatchNorm takes its statistics from all devices where
        `cross_replica_axis` names the mapped axis, else from each alone.
      conv_kwargs: arguments of `base.Conv2D`, such as `w_init`.
      preactivation: whether this is v2; else v1.
      use_se: whether blocks end with squeeze and excite.
      se_ratio: its hidden channels, as a part of its input.

    Raises:
      ValueError: for an unknown variant, normalization or activation.
    """
    super().__init__(
      num_classes,
      variant,
      base.get_nonlinearity(activation, scaled=False),
      drop_rate,
      fc_init,
      name,
      remat,
    )
    self.preactivation = preactivation
    which_norm = _norm(which_norm, norm_kwargs or {})
    which_conv = functools.partial(
      base.Conv2D, **{'with_bias': False, **(conv_kwargs or {})}
    )
    # In v1 it comes after the stem, in v2 before the pool.
    self.norm = which_norm(name='final_bn' if preactivation else 'initial_bn')
    make_block = functools.partial(
      ResBlockV2 if preactivation else ResBlockV1,
      which_norm=which_norm,
      which_conv=which_conv,
      activation=self.activation,
      use_se=use_se,
      se_ratio=se_ratio,
    )
    self.stem, self.stages = network.build_resnet(
      which_conv, make_block, width, self.depth_pattern
    )

  def _after_stem(self, x: jax.Array, is_training: bool) -> jax.Array:
    if self.preactivation:
      return x
    return self.activation(_normalize(self.norm, x, is_training))

  def _before_pool(self, x: jax.Array, is_training: bool) -> jax.Array:
    if not self.preactivation:
      return x
    return self.activation(_normalize(self.norm, x, is_training))


def _norm(
  which_norm: str, kwargs: Mapping[str, Any]
) -> Callable[..., hk.Module]:
  """Returns the class of a normalization, with its arguments."""
  if which_norm not in _NORMS:
    raise ValueError(
      f'No normalization {which_norm!r}; there are {", ".join(_NORMS)}.'
    )
  if hk.running_init():  # Which is outside of pmap, where no axis has a name.
    kwargs = {k: v for k, v in kwargs.items() if k not in _PMAPPED}
  defaults = {'create_scale': True, 'create_offset': True, **_NORMS[which_norm]}
  return functools.partial(getattr(hk, which_norm), **{**defaults, **kwargs})


def _normalize(norm: hk.Module, x: jax.Array, is_training: bool) -> jax.Array:
  """Applies a normalization in float32 at least, as its averages are."""
  args = (is_training,) if isinstance(norm, hk.BatchNorm) else ()
  if hk.running_init():
    # Averages of zero, and one for the variance, whatever the images are: no
    # forward pass is needed to know them.
    ones = jnp.ones_like(x[:1, :1, :1])
    norm(jnp.concatenate([ones, -ones]), *args)
    return x
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return norm(x.astype(dtype), *args).astype(x.dtype)


class ResBlockV2(network.ResidualBlock):
  """Pre-activation bottleneck block: 1x1, 3x3, 1x1."""

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    which_norm: Callable[..., hk.Module],
    which_conv: Callable[..., base.Conv2D],
    use_se: bool = False,
    se_ratio: float = 0.25,
    **kwargs: Any,
  ):
    super().__init__(in_ch, out_ch, out_ch // 4, which_conv, **kwargs)
    self.which_norm = which_norm
    self.bn0, self.bn1, self.bn2 = (which_norm(name=f'bn{i}') for i in range(3))
    if use_se:
      self.gate = base.SqueezeExcite(out_ch, out_ch, se_ratio)

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the residual branch, [B, H', W', out_ch]."""
    out = self.activation(_normalize(self.bn0, x, is_training))
    shortcut = self.shortcut(x, out)

    out = self.conv0(out)
    out = self.activation(_normalize(self.bn1, out, is_training))
    out = self.conv1(out)
    out = self.activation(_normalize(self.bn2, out, is_training))
    out = self.conv2(out)
    branch = out if self.gate is None else self.gate(out) * out
    return shortcut + branch, branch


class ResBlockV1(ResBlockV2):
  """Post-activation block of the same parts."""

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the residual branch, [B, H', W', out_ch]."""
    shortcut = x
    if self.conv_shortcut is not None:
      # Made here and not in __init__, which gives it its published name.
      norm = self.which_norm(name='shortcut_bn')
      shortcut = _normalize(norm, self.conv_shortcut(x), is_training)

    out = self.conv0(x)
    out = self.activation(_normalize(self.bn0, out, is_training))
    out = self.conv1(out)
    out = self.activation(_normalize(self.bn1, out, is_training))
    out = self.conv2(out)
    out = _normalize(self.bn2, out, is_training)
    branch = out if self.gate is None else self.gate(out) * out
    return self.activation(shortcut + branch), branch
