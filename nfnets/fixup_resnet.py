"""Fixup-ResNets: post-activation ResNets without normalization.

Zhang, Dauphin, Ma, "Fixup Initialization: Residual Learning Without
Normalization" (arXiv 1901.09321): scalar biases around the convolutions, one
scale per residual branch, and initial kernels that shrink with the depth.
"""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, network, residual


def _bias(name: str, x: jax.Array) -> jax.Array:
  """Return a scalar parameter of x's dtype that starts at zero."""
  return hk.get_parameter(name, (), x.dtype, init=jnp.zeros)


class FixUp_ResNet(network.Network):
  """Post-activation ResNet with Fixup.

  Example:
    >>> net = hk.transform(lambda x: fixup_resnet.FixUp_ResNet(1000)(x))
  """

  variant_dict = base.resnet_params
  pool_padding = 'SAME'

  def __init__(
    self,
    num_classes: int,
    variant: str = 'ResNet50',
    width: int = 4,
    stochdepth_rate: float = 0.1,
    drop_rate: float | None = None,
    activation: str = 'relu',
    fc_init: hk.initializers.Initializer = jnp.zeros,
    name: str = 'FixUp_ResNet',
    remat: bool | int = False,
  ):
    """Build the modules.

    `network.Network` explains the arguments that are not listed here.

    Args:
      width: multiplies the widths 64, 128, 256, 512 of the stages.

    Raises:
      ValueError: if the variant or activation is unknown.
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
    make_block = functools.partial(
      *(ResBlock, sum(self.depth_pattern)), activation=self.activation
    )
    self.stem, self.stages = network.build_resnet(
      functools.partial(base.Conv2D, with_bias=False),
      make_block,
      *(width, self.depth_pattern),
      stochdepth_rate=stochdepth_rate,
    )

  def _after_stem(self, x: jax.Array, is_training: bool) -> jax.Array:
    return self.activation(x + _bias('bias1', x))

  def _before_pool(self, x: jax.Array, is_training: bool) -> jax.Array:
    return x

  def _before_fc(self, x: jax.Array, is_training: bool) -> jax.Array:
    x = super()._before_fc(x, is_training)
    return x + _bias('bias2', x)


class ResBlock(residual.ResidualBlock):
  """Post-activation bottleneck block: 1x1, 3x3, 1x1, with scalar biases."""

  def __init__(self, num_blocks: int, in_ch: int, out_ch: int, **kwargs: Any):
    # The branch has m = 3 convolutions, and the last one starts at zero. The
    # paper multiplies the standard deviation by num_blocks^(-1 / (2 m - 2)).
    # 2 is the scale of He's initialization.
    scales = {'conv2': 0.0, 'conv_shortcut': 2.0}

    def conv(*args, name, **kwargs):
      scale = scales.get(name, 2 * num_blocks**-0.5)
      w_init = hk.initializers.VarianceScaling(scale, 'fan_out', 'normal')
      return base.Conv2D(
        *args, with_bias=False, w_init=w_init, name=name, **kwargs
      )

    super().__init__(in_ch, out_ch, out_ch // 4, conv, **kwargs)

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Return the output and the residual branch, [B, H', W', out_ch]."""
    x += _bias('bias1a', x)
    shortcut = self.shortcut(x, x)

    out = self.conv0(x)
    out = self.activation(out + _bias('bias1b', out))
    out = self.conv1(out + _bias('bias2a', out))
    out = self.activation(out + _bias('bias2b', out))
    out = self.conv2(out + _bias('bias3a', out))
    scale = hk.get_parameter('scale', (), out.dtype, init=jnp.ones)
    branch = out * scale + _bias('bias3b', out)

    out = self.stoch_depth(branch, is_training)
    return self.activation(shortcut + out), branch
