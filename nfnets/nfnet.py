"""NFNet-F0 to F7 and F0+ to F7+ (arXiv 2102.06171).

These are SE-ResNeXt-D-like networks without normalization. Scaled activations
and weight-standardized convolutions keep the variance of the signal. Adaptive
gradient clipping (`nfnets.optim`) allows training with large batches.
`residual.ResidualBlock` computes the blocks.
"""

import functools
from typing import Any

import haiku as hk

from nfnets import base, network, residual

nfnet_params = base.nfnet_params


class NFNet(network.Network):
  """Normalizer-free network of the F family.

  Example:
    >>> net = hk.transform(lambda x: nfnet.NFNet(1000, variant='F0')(x))
  """

  variant_dict = base.nfnet_params
  joins_columns = True

  def __init__(
    self,
    num_classes: int,
    variant: str = 'F0',
    width: float = 1.0,
    se_ratio: float = 0.5,
    alpha: float = 0.2,
    stochdepth_rate: float = 0.1,
    drop_rate: float | None = None,
    activation: str = 'gelu',
    fc_init: hk.initializers.Initializer | None = None,
    final_conv_mult: float | None = 2,
    final_conv_ch: int | None = None,
    use_two_convs: bool = True,
    name: str = 'NFNet',
    remat: bool | int = False,
  ):
    """Build the modules.

    `network.Network` explains the arguments that are not listed here.

    Args:
      width: multiplies the widths of all stages, but not of the stem.
      se_ratio: hidden / input channels of squeeze and excite.
      final_conv_mult: channels of the final convolution / channels of the last
        stage.
      final_conv_ch: channels of the final convolution if `final_conv_mult` is
        None.
      use_two_convs: add a second 3x3 convolution to each block.

    Raises:
      ValueError: if the variant or activation is unknown, the width leaves less
        than one group of channels, or both widths of the final convolution are
        None.
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
    stem_ch = self.row['width'][0] // 2  # The published code ignores `width`.
    self.stem = [
      base.WSConv2D(ch, 3, stride=stride, name=f'stem_conv{i}')
      for i, (ch, stride) in enumerate(
        [(16, 2), (32, 1), (64, 1), (stem_ch, 2)]
      )
    ]
    make_block = functools.partial(
      NFBlock,
      group_size=self.row.get('group_width', 128),
      se_ratio=se_ratio,
      activation=self.activation,
      two_convs=use_two_convs,
    )
    self.stages = network.build_stages(
      *(make_block, stem_ch, widths, self.depth_pattern),
      stochdepth_rate=stochdepth_rate,
      alpha=alpha,
    )
    if final_conv_mult is not None:
      final_conv_ch = int(final_conv_mult * widths[-1])
    elif final_conv_ch is None:
      raise ValueError('Set final_conv_mult or final_conv_ch.')
    self.final_conv = base.WSConv2D(final_conv_ch, 1, name='final_conv')


class NFBlock(residual.ResidualBlock):
  """Residual block: 1x1, two grouped 3x3, 1x1, squeeze and excite."""

  pools_shortcut = True

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    group_size: int = 128,
    se_ratio: float = 0.5,
    two_convs: bool = True,
    **kwargs: Any,
  ):
    width, groups = base.grouped_width(out_ch, 0.5, group_size)
    super().__init__(
      *(in_ch, out_ch, width), groups=groups, two_convs=two_convs, **kwargs
    )
    self.gate = base.SqueezeExcite(out_ch, out_ch, se_ratio)
