"""The normalizer-free networks of timm (PyTorch Image Models) that are its own.

They are networks of the two papers (arXiv 2101.08692 and 2102.06171), changed
in ways that keep the ones from taking the others' weights: the activation's
gamma is part of the standardized kernels, convolutions pad all sides alike,
channels are multiples of 8, a branch has no SkipInit but a last gain that
starts at 0, all shortcuts are averaged before their convolution, and GELU is
the exact one. timm's `dm_nfnet_f0` to `f6` are not here: these are
`nfnets.nfnet.NFNet`.
"""

import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, flops, timm_variants

_ALPHA = 0.2  # Scale of the residual branches.
# Each with the gamma that brings N(0, 1) back to unit variance.
_ACTIVATIONS = {
  'gelu': (
    functools.partial(jax.nn.gelu, approximate=False),
    1.7015043497085571,
  ),
  'relu': (jax.nn.relu, 1.7139588594436646),
  'silu': (jax.nn.silu, 1.7881293296813965),
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
    groups: int = 1,
    gain_init: hk.initializers.Initializer = jnp.ones,
    name: str | None = None,
  ):
    # The same for odd kernels, if it were not for a stride.
    padding = 'SAME' if stride == 1 else [(kernel_size // 2,) * 2] * 2
    super().__init__(
      output_channels,
      kernel_size,
      stride=stride,
      padding=padding,
      feature_group_count=groups,
      name=name,
    )
    self.gamma = gamma
    self.gain_init = gain_init

  def standardize_weight(self, weight: jax.Array, eps: float = 1e-5):
    """Returns the standardized kernel, of the shape and dtype of `weight`."""
    mean = jnp.mean(weight, axis=(0, 1, 2), keepdims=True)
    var = jnp.var(weight, axis=(0, 1, 2), keepdims=True)
    fan_in = math.prod(weight.shape[:-1])
    gain = hk.get_parameter(
      'gain', weight.shape[-1:], weight.dtype, init=self.gain_init
    )
    scale = jax.lax.rsqrt(var + eps) * gain * (self.gamma * fan_in**-0.5)
    return weight * scale - mean * scale

  def __call__(self, inputs: jax.Array, eps: float = 1e-5) -> jax.Array:
    return super().__call__(inputs, eps)


class EfficientChannelAttention(hk.Module):
  """A gate per channel, from the means over the image of its neighbours.

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
    """Returns the multiply-adds for one image."""
    return self.ch * self.conv.kernel_shape[0]


class NormFreeNet(hk.Module):
  """One of timm's normalizer-free networks."""

  variant_dict = timm_variants.timm_params

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
    """Builds the modules.

    Args:
      num_classes: size of the logits; 0 leaves out the last layer, and them.
      variant: a key of `variant_dict`.
      stochdepth_rate: of the last block; earlier ones get less, linearly, and
        those branches that are kept are divided by the rate of keeping.
      drop_rate: dropout before the last layer.
      fc_init: initializer of the last layer's kernel; None is N(0, 0.01).
      name: of the module.
      remat: how many of the first blocks the backward pass computes again,
        instead of keeping what they computed, or True for all: less memory,
        more time.

    Raises:
      ValueError: for an unknown variant.
    """
    super().__init__(name=name)
    row = base.get_variant(self.variant_dict, variant)
    self.variant = variant
    self.remat = base.count_remat(remat)
    self.train_imsize = row['train_imsize']
    self.test_imsize = row['test_imsize']
    self.activation, gamma = _ACTIVATIONS[row['activation']]
    self.drop_rate = drop_rate

    names = ['initial_conv']
    if len(row['stem']) > 1:
      names = [f'stem_conv{i}' for i in range(len(row['stem']))]
    self.stem = [
      WSConv2D(ch, size, gamma, stride, name=name)
      for name, (ch, size, stride) in zip(names, row['stem'], strict=True)
    ]
    self.max_pool = row['max_pool']
    in_ch = row['stem'][-1][0]
    stem_stride = math.prod(stride for _, _, stride in row['stem'])
    if row['max_pool']:
      stem_stride *= 2

    self.stages = []
    index, num_blocks = 0, sum(row['depth'])
    expected_vars = base.expected_variances(row['depth'], _ALPHA)
    for out_ch, depth, stride in zip(
      row['width'], row['depth'], (4 // stem_stride, 2, 2, 2), strict=True
    ):
      blocks = []
      for block_index in range(depth):
        is_narrow = row['inverted'] and index == 0
        blocks.append(
          NFBlock(
            row,
            in_ch,
            out_ch,
            bottleneck=1.0 if is_narrow else row['bottleneck'],
            stride=stride if block_index == 0 else 1,
            beta=expected_vars[index] ** -0.5,
            stochdepth_rate=stochdepth_rate * index / max(1, num_blocks - 1),
          )
        )
        in_ch = out_ch
        index += 1
      self.stages.append(blocks)

    self.final_conv = None
    if row['final_ch']:
      self.final_conv = WSConv2D(row['final_ch'], 1, gamma, name='final_conv')
    if fc_init is None:
      fc_init = hk.initializers.RandomNormal(stddev=0.01)
    self.fc = None
    if num_classes:
      self.fc = hk.Linear(num_classes, w_init=fc_init, name='linear')

  def __call__(
    self,
    x: jax.Array,
    is_training: bool = True,
    return_metrics: bool = False,
  ) -> dict[str, jax.Array]:
    """Computes logits, and what lies before them.

    Args:
      x: normalized images [B, H, W, 3].
      is_training: whether dropout and stochastic depth act.
      return_metrics: whether to add the signal metrics.

    Returns:
      `logits` [B, num_classes]; `pool` [B, C], before dropout; `features`, the
      five maps at strides 2, 4, 8, 16 and 32 before their activation; with
      `return_metrics`, scalars `avg_sq_mean_{i}` and `avg_var_{i}`, where i = 0
      is the stem and i + 1 block i, and `res_avg_var_{i}`, the variance of
      block i's residual branch.
    """
    out = self.stem[0](x)
    features = [out]
    for conv in self.stem[1:]:
      features = [out]  # The last one before the stride is stride 2.
      out = conv(self.activation(out))
    if self.max_pool:
      out = jax.lax.reduce_window(
        out,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
      )
    metrics = base.signal_metrics(out, 0) if return_metrics else {}

    index = 0
    for blocks in self.stages:
      for block in blocks:
        out, branch = base.call_block(
          block, out, is_training, remat=index < self.remat
        )
        if return_metrics:
          metrics[f'res_avg_var_{index}'] = base.channel_variance(branch)
          metrics.update(base.signal_metrics(out, index + 1))
        index += 1
      features.append(out)

    if self.final_conv is not None:
      out = self.final_conv(out)
      features[-1] = out
    pool = jnp.mean(self.activation(out), axis=(1, 2))
    out = pool
    if is_training and self.drop_rate > 0:
      out = hk.dropout(hk.next_rng_key(), self.drop_rate, out)
    outputs = {'pool': pool, 'features': features}
    if self.fc is not None:
      outputs['logits'] = self.fc(out)
    return {**outputs, **metrics}

  def count_flops(self, h: int, w: int) -> tuple[list[int], int]:
    """Returns the multiply-adds for one image [h, w]: per part, and in all."""
    return flops.count_flops(
      h,
      w,
      self.stem,
      self.stages,
      self.final_conv,
      self.fc,
      max_pool=self.max_pool,
    )


class NFBlock(hk.Module):
  """Residual block: 1x1, one or two grouped 3x3, 1x1, and a gate."""

  def __init__(
    self,
    row: dict,
    in_ch: int,
    out_ch: int,
    bottleneck: float,
    stride: int,
    beta: float,
    stochdepth_rate: float,
    name: str | None = None,
  ):
    super().__init__(name=name)
    self.in_ch, self.out_ch = in_ch, out_ch
    self.stride = stride
    self.alpha, self.beta = _ALPHA, beta
    self.activation, gamma = _ACTIVATIONS[row['activation']]

    width = bottleneck * (in_ch if row['inverted'] else out_ch)
    width = timm_variants.multiple_of_8(width)
    groups = 1
    if row['group_size'] is not None:
      groups = width // row['group_size']
      width = groups * row['group_size']

    self.conv0 = WSConv2D(width, 1, gamma, name='conv0')
    self.conv1 = WSConv2D(width, 3, gamma, stride, groups, name='conv1')
    self.conv1b = None
    if row['two_convs']:
      self.conv1b = WSConv2D(width, 3, gamma, groups=groups, name='conv1b')
    self.conv2 = WSConv2D(out_ch, 1, gamma, gain_init=jnp.zeros, name='conv2')
    self.conv_shortcut = None
    if stride > 1 or in_ch != out_ch:
      self.conv_shortcut = WSConv2D(out_ch, 1, gamma, name='conv_shortcut')

    gate, gate_ch = None, width if row['inverted'] else out_ch
    if row['se_ratio']:
      hidden_ch = timm_variants.multiple_of_8(gate_ch * row['se_ratio'])
      gate = base.SqueezeExcite(
        gate_ch,
        gate_ch,
        hidden_ch=hidden_ch,
        name='inner_squeeze_excite' if row['inverted'] else 'squeeze_excite',
      )
    if row['use_eca']:
      gate = EfficientChannelAttention(gate_ch, name='eca')
    self.inner_gate = gate if row['inverted'] else None
    self.last_gate = None if row['inverted'] else gate
    self.stoch_depth = base.StochDepth(stochdepth_rate, scale_by_keep=True)

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the residual branch, [B, H', W', out_ch]."""
    out = self.activation(x) * self.beta
    shortcut = x
    if self.conv_shortcut is not None:
      shortcut = out
      if self.stride > 1:
        shortcut = base.avg_pool_2x2(shortcut)
      shortcut = self.conv_shortcut(shortcut)

    out = self.conv0(out)
    out = self.conv1(self.activation(out))
    if self.conv1b is not None:
      out = self.conv1b(self.activation(out))
    if self.inner_gate is not None:
      out = 2 * self.inner_gate(out) * out
    branch = self.conv2(self.activation(out))
    if self.last_gate is not None:
      branch = 2 * self.last_gate(branch) * branch

    out = self.stoch_depth(branch, is_training)
    return shortcut + out * self.alpha, branch
