"""NF-ResNets: pre-activation ResNets without normalization.

Source: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets" (arXiv 2101.08692).
"""

import functools
from typing import Any

import haiku as hk
import jax.numpy as jnp

from nfnets import base, network, residual


class NF_ResNet(network.Network):
  """Normalizer-free pre-activation ResNet.

  Example:
    >>> net = hk.transform(lambda x: nf_resnet.NF_ResNet(1000)(x))
  """

  variant_dict = base.resnet_params
  pool_padding = 'SAME'

  def __init__(
    self,
    num_classes: int,
    variant: str = 'ResNet50',
    width: int = 4,
    alpha: float = 0.2,
    stochdepth_rate: float = 0.1,
    drop_rate: float | None = None,
    activation: str = 'relu',
    fc_init: hk.initializers.Initializer | None = None,
    skipinit_gain: hk.initializers.Initializer = jnp.zeros,
    use_se: bool = False,
    se_ratio: float = 0.25,
    name: str = 'NF_ResNet',
    remat: bool | int = False,
  ):
    """Build the modules.

    `network.Network` explains the arguments that are not listed here.

    Args:
      width: multiplies the widths 64, 128, 256, 512 of the stages.
      skipinit_gain: initializer of the scalar gain of each residual branch.
      use_se: end blocks with squeeze and excite.
      se_ratio: hidden / input channels of squeeze and excite.

    Raises:
      ValueError: if the variant or activation is unknown.
    """
    super().__init__(
      num_classes,
      variant,
      base.get_nonlinearity(activation),
      drop_rate,
      fc_init,
      name,
      remat,
    )
    make_block = functools.partial(
      NFResBlock,
      activation=self.activation,
      skipinit_gain=skipinit_gain,
      use_se=use_se,
      se_ratio=se_ratio,
    )
    self.stem, self.stages = network.build_resnet(
      base.WSConv2D,
      make_block,
      *(width, self.depth_pattern),
      stochdepth_rate=stochdepth_rate,
      alpha=alpha,
    )


class NFResBlock(residual.ResidualBlock):
  """Pre-activation bottleneck block: 1x1, 3x3, 1x1."""

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    skipinit_gain: hk.initializers.Initializer = jnp.zeros,
    use_se: bool = False,
    se_ratio: float = 0.25,
    **kwargs: Any,
  ):
    super().__init__(in_ch, out_ch, out_ch // 4, **kwargs)
    self.skip_gain_init = skipinit_gain
    if use_se:
      self.gate = base.SqueezeExcite(out_ch, out_ch, se_ratio)
