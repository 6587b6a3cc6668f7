"""ResNets with BatchNorm, the baselines of the normalizer-free networks.

v2 (pre-activation): He et al., "Identity Mappings in Deep Residual Networks"
(arXiv 1603.05027). v1: "Deep Residual Learning for Image Recognition" (arXiv
1512.03385). In both, the 3x3 convolutions have the strides.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, network, residual

# Haiku's normalizations, and the arguments without defaults.
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
    """Build the modules.

    `network.Network` explains the arguments that are not listed here.

    Args:
      width: multiplies the widths 64, 128, 256, 512 of the stages; 4 for the
        published networks.
      which_norm: BatchNorm, GroupNorm, InstanceNorm or LayerNorm (over
        channels), of Haiku.
      norm_kwargs: arguments of that class. The defaults are a scale, an offset
        and, for BatchNorm, a `decay_rate` of 0.9. Under `jax.pmap`, BatchNorm
        uses the statistics of all devices if `cross_replica_axis` names the
        mapped axis, else the statistics of its own device.
      conv_kwargs: arguments of `base.Conv2D`, such as `w_init`.
      preactivation: True: ResNet v2. False: v1.
      use_se: end blocks with squeeze and excite.
      se_ratio: hidden / input channels of squeeze and excite.

    Raises:
      ValueError: if the variant, normalization or activation is unknown.
    """
    if which_norm not in _NORMS:
      raise ValueError(
        f'No normalization {which_norm!r}; there are {", ".join(_NORMS)}.'
      )
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
    norm_kwargs = {
      **{'create_scale': True, 'create_offset': True, **_NORMS[which_norm]},
      **(norm_kwargs or {}),
    }
    if hk.running_init():  # Initialization is outside of pmap: no axis names.
      norm_kwargs = {k: v for k, v in norm_kwargs.items() if k not in _PMAPPED}
    which_norm = functools.partial(getattr(hk, which_norm), **norm_kwargs)
    which_conv = functools.partial(
      base.Conv2D, **{'with_bias': False, **(conv_kwargs or {})}
    )
    # After the stem in v1, before the pool in v2.
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


def _normalize(norm: hk.Module, x: jax.Array, is_training: bool) -> jax.Array:
  """Apply a normalization in float32 or wider, the dtype of its averages."""
  args = (is_training,) if isinstance(norm, hk.BatchNorm) else ()
  if hk.running_init():
    # The initial averages are 0 and 1 for any images, so this skips the forward
    # pass.
    ones = jnp.ones_like(x[:1, :1, :1])
    norm(jnp.concatenate([ones, -ones]), *args)
    return x
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return norm(x.astype(dtype), *args).astype(x.dtype)


class ResBlockV2(residual.ResidualBlock):
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
    """Return the output and the residual branch, [B, H', W', out_ch]."""
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
    """Return the output and the residual branch, [B, H', W', out_ch]."""
    shortcut = x
    if self.conv_shortcut is not None:
      # Built here and not in __init__, to get its published name.
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
