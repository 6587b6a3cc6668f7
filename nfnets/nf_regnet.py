"""NF-RegNet-B0 to B8 (arXiv 2101.08692, section 5 and appendix E).

RegNets without normalization. Depth and width are scaled as in EfficientNet.
"""

import functools
from typing import Any

import haiku as hk
import jax.numpy as jnp

from nfnets import base, network, residual

nf_regnet_params = base.nf_regnet_params


class NF_RegNet(network.Network):
  """Normalizer-free RegNet.

  Example:
    >>> net = hk.transform(lambda x: nf_regnet.NF_RegNet(1000, 'B0')(x))
  """

  variant_dict = base.nf_regnet_params

  def __init__(
    self,
    num_classes: int,
    variant: str = 'B0',
    width: float = 0.75,
    expansion: float = 2.25,
    group_size: int = 8,
    se_ratio: float = 0.5,
    alpha: float = 0.2,
    stochdepth_rate: float = 0.1,
    drop_rate: float | None = None,
    activation: str = 'silu',
    fc_init: hk.initializers.Initializer = jnp.zeros,
    name: str = 'NF_RegNet',
    remat: bool | int = False,
  ):
    """Build the modules.

    `network.Network` explains the arguments that are not listed here.

    Args:
      width: multiplies the widths of all stages.
      expansion: inner / input channels of a block. 1 in the first block.
      group_size: channels in a group of the 3x3 convolutions.
      se_ratio: hidden / input channels of squeeze and excite.

    Raises:
      ValueError: if the variant or activation is unknown, or the width leaves
        less than one group of channels.
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
    widths = [int(w * width) for w in self.row['width']]
    self.stem = [base.WSConv2D(widths[0], 3, stride=2, name='initial_conv')]
    make_block = functools.partial(
      NFBlock,
      expansion=expansion,
      se_ratio=se_ratio,
      activation=self.activation,
      group_size=group_size,
    )
    self.stages = network.build_stages(
      *(make_block, widths[0], widths, self.depth_pattern, (2, 2, 2, 2)),
      stochdepth_rate=stochdepth_rate,
      alpha=alpha,
      first={'expansion': 1.0},
    )
    final_ch = 1280 * widths[-1] // 440
    self.final_conv = base.WSConv2D(final_ch, 1, name='final_conv')


class NFBlock(residual.ResidualBlock):
  """Inverted bottleneck: 1x1, grouped 3x3, squeeze and excite, 1x1."""

  pools_shortcut = gate_inside = True

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    expansion: float = 2.25,
    se_ratio: float = 0.5,
    group_size: int = 8,
    **kwargs: Any,
  ):
    width, groups = base.grouped_width(in_ch, expansion, group_size)
    super().__init__(in_ch, out_ch, width, groups=groups, **kwargs)
    self.gate = base.SqueezeExcite(width, width, se_ratio)
