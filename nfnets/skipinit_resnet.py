"""SkipInit-ResNets: pre-activation ResNets without normalization.

De & Smith, "Batch Normalization Biases Residual Blocks Towards the Identity
Function in Deep Networks" (arXiv 2002.10444). A scalar that starts at zero
multiplies each residual branch.
"""

import functools
from typing import Any

import haiku as hk
import jax.numpy as jnp

from nfnets import base, network, residual


class SkipInit_ResNet(network.Network):
  """Pre-activation ResNet with SkipInit.

  Example:
    >>> net = hk.transform(
    ...   lambda x: skipinit_resnet.SkipInit_ResNet(1000)(x)
    ... )
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
    name: str = 'SkipInit_ResNet',
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
    self.stem, self.stages = network.build_resnet(
      functools.partial(base.Conv2D, with_bias=False),
      functools.partial(NFResBlock, activation=self.activation),
      *(width, self.depth_pattern),
      stochdepth_rate=stochdepth_rate,
    )


class NFResBlock(residual.ResidualBlock):
  """Pre-activation bottleneck block: 1x1, 3x3, 1x1, and a scalar gain."""

  def __init__(self, in_ch: int, out_ch: int, **kwargs: Any):
    super().__init__(in_ch, out_ch, out_ch // 4, base.Conv2D, **kwargs)
