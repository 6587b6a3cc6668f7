"""timm's own normalizer-free networks (PyTorch Image Models).

They change the networks of the two papers (arXiv 2101.08692 and 2102.06171), so
the weights are not interchangeable. The standardized kernels include the
activation's gamma. Convolutions pad all sides equally. Channels are multiples
of 8. Branches have no SkipInit; the gain of their last convolution starts at 0.
Shortcuts are averaged before their convolution. GELU is exact. timm's
`dm_nfnet_f0` to `f6` are `nfnets.nfnet.NFNet`.
"""

import functools
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import activations, base, network, residual, variants

_ALPHA = 0.2  # Scale of the residual branches.
_ACTIVATIONS = {
  **activations.unscaled_nonlinearities,
  'gelu': activations.exact_gelu,
}


class WSConv2D(base.WSConv2D):
  """WSConv2D with gamma in its kernel, eps as timm has it, and even padding.

  Per output channel the kernel becomes gamma * gain * (w - mean) / sqrt((var +
  1e-5) * fan_in). Parameters: as those of `base.WSConv2D`.
  """

  def __init__(
    self,
    output_channels: int,
    kernel_size: int,
    gamma: float,
    stride: int = 1,
    feature_group_count: int = 1,
    gain_init: hk.initializers.Initializer = jnp.ones,
    name: str | None = None,
  ):
    # With a stride, 'SAME' pads the two sides differently.
    padding = 'SAME' if stride == 1 else [(kernel_size // 2,) * 2] * 2
    super().__init__(
      output_channels,
      kernel_size,
      stride=stride,
      padding=padding,
      feature_group_count=feature_group_count,
      name=name,
    )
    self.gain_init = gain_init

    def scale(var, gain, fan_in, eps):
      scale = jax.lax.rsqrt(var + eps) * jnp.expand_dims(gain, (0, 1, 2))
      return scale * (gamma * fan_in**-0.5)

    self._scale = scale

  def __call__(self, inputs: jax.Array, eps: float = 1e-5) -> jax.Array:
    return super().__call__(inputs, eps)


class EfficientChannelAttention(hk.Module):
  """Channel gate computed from the image means of neighbouring channels.

  Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional
  Neural Networks" (arXiv 1910.03151). Maps [B, H, W, C] to [B, 1, 1, C] in (0,
  1). Parameters: the `w` [k, 1, 1] of a convolution along the channels.
  """

  def __init__(self, ch: int, name: str | None = None):
    super().__init__(name=name)
    self.ch = ch
    size = int((math.log2(ch) + 1) / 2)
    size = max(3, size + 1 - size % 2)  # Odd.
    # As PyTorch initializes it: uniform in +-1 / sqrt(size).
    w_init = hk.initializers.VarianceScaling(1 / 3, 'fan_in', 'uniform')
    self.conv = hk.Conv1D(1, size, with_bias=False, w_init=w_init, name='conv')

  def __call__(self, x: jax.Array) -> jax.Array:
    gate = self.conv(jnp.mean(x, axis=(1, 2))[:, :, None])
    return jax.nn.sigmoid(gate)[:, None, None, :, 0]

  def count_flops(self) -> int:
    """Return the multiply-adds for one image."""
    return self.ch * self.conv.kernel_shape[0]


class NormFreeNet(network.Network):
  """One of timm's normalizer-free networks."""

  variant_dict = variants.timm_params

  def __init__(
    self,
    num_classes: int,
    variant: str = 'nfnet_l0',
    stochdepth_rate: float = 0.0,
    drop_rate: float = 0.0,
    fc_init: hk.initializers.Initializer | None = None,
    name: str = 'NormFreeNet',
    remat: bool | int = False,
  ):
    """Build the modules.

    `network.Network` explains the arguments that are not listed here.

    Args:
      stochdepth_rate: rate of stochastic depth. Kept branches are divided by
        the keep rate.

    Raises:
      ValueError: if the variant is unknown.
    """
    super().__init__(
      *(num_classes, variant, jax.nn.relu, drop_rate, fc_init, name, remat)
    )
    row = self.row
    self.activation = _ACTIVATIONS[row['activation']]
    gamma = activations.GAMMAS[row['activation']]
    names = ['initial_conv']
    if len(row['stem']) > 1:
      names = [f'stem_conv{i}' for i in range(len(row['stem']))]
    self.stem = [
      WSConv2D(ch, size, gamma, stride, name=name)
      for name, (ch, size, stride) in zip(names, row['stem'], strict=True)
    ]
    stem_stride = math.prod(stride for _, _, stride in row['stem'])
    if row['max_pool']:
      self.pool_padding = ((0, 0), (1, 1), (1, 1), (0, 0))
      stem_stride *= 2

    self.stages = network.build_stages(
      functools.partial(NFBlock, row),
      row['stem'][-1][0],
      row['width'],
      row['depth'],
      (4 // stem_stride, 2, 2, 2),
      stochdepth_rate=stochdepth_rate,
      alpha=_ALPHA,
      reaches_rate=True,
      first={'bottleneck': 1.0} if row['inverted'] else {},
    )
    if row['final_ch']:
      self.final_conv = WSConv2D(row['final_ch'], 1, gamma, name='final_conv')


class NFBlock(residual.ResidualBlock):
  """Residual block: 1x1, one or two grouped 3x3, 1x1, and a gate."""

  pools_shortcut = True

  def __init__(
    self,
    row: dict,
    in_ch: int,
    out_ch: int,
    bottleneck: float | None = None,
    stochdepth_rate: float = 0.0,
    **kwargs: Any,
  ):
    gamma = activations.GAMMAS[row['activation']]
    self.gate_inside = row['inverted']
    width = variants.multiple_of_8(
      (bottleneck or row['bottleneck'])
      * (in_ch if self.gate_inside else out_ch)
    )
    groups = width // (row['group_size'] or width)
    width = groups * (row['group_size'] or width)

    def conv(*args, name, **kwargs):
      gain_init = jnp.zeros if name == 'conv2' else jnp.ones
      return WSConv2D(
        *args, gamma=gamma, gain_init=gain_init, name=name, **kwargs
      )

    super().__init__(
      *(in_ch, out_ch, width, conv, groups, row['two_convs']),
      activation=_ACTIVATIONS[row['activation']],
      **kwargs,
    )
    self.stoch_depth = base.StochDepth(stochdepth_rate, scale_by_keep=True)
    gate_ch = width if self.gate_inside else out_ch
    if row['se_ratio']:
      hidden_ch = variants.multiple_of_8(gate_ch * row['se_ratio'])
      self.gate = base.SqueezeExcite(
        gate_ch,
        gate_ch,
        hidden_ch=hidden_ch,
        name='inner_squeeze_excite' if self.gate_inside else 'squeeze_excite',
      )
    if row['use_eca']:
      self.gate = EfficientChannelAttention(gate_ch, name='eca')

  def scale_branch(self, branch: jax.Array, is_training: bool) -> jax.Array:
    return self.stoch_depth(branch, is_training) * self.alpha
