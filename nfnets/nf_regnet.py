"""NF-RegNet-B0 to B8 (arXiv 2101.08692, section 5 and appendix E).

RegNets without normalization, scaled as EfficientNets are.
"""

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, flops

nf_regnet_params = base.nf_regnet_params


class NF_RegNet(hk.Module):
  """Normalizer-free RegNet."""

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
    """Builds the modules.

    Args:
      num_classes: size of the logits; 0 leaves out the last layer, and them.
      variant: a key of `variant_dict`.
      width: multiplies the widths of all stages.
      expansion: channels inside a block, as a multiple of its input's; the
        first block does not expand.
      group_size: channels in a group of the 3x3 convolutions.
      se_ratio: hidden channels of squeeze and excite, as a part of its input.
      alpha: scale of the residual branches.
      stochdepth_rate: of the last block; earlier ones get less, linearly.
      drop_rate: dropout before the last layer; None is the variant's own.
      activation: a key of `base.nonlinearities`.
      fc_init: initializer of the last layer's kernel.
      name: of the module.
      remat: how many of the first blocks the backward pass computes again,
        instead of keeping what they computed, or True for all: less memory,
        more time.

    Raises:
      ValueError: for an unknown variant or activation, or a width that leaves
        less than one group of channels.
    """
    super().__init__(name=name)
    params = base.get_variant(self.variant_dict, variant)
    self.variant = variant
    self.remat = base.count_remat(remat)
    self.train_imsize = params['train_imsize']
    self.test_imsize = params['test_imsize']
    self.activation = base.get_nonlinearity(activation)
    self.width_pattern = [int(w * width) for w in params['width']]
    self.depth_pattern = params['depth']
    self.drop_rate = params['drop_rate'] if drop_rate is None else drop_rate

    in_ch = self.width_pattern[0]
    self.initial_conv = base.WSConv2D(in_ch, 3, stride=2, name='initial_conv')

    self.stages = []
    index, num_blocks = 0, sum(self.depth_pattern)
    expected_vars = base.expected_variances(self.depth_pattern, alpha)
    for out_ch, depth in zip(
      self.width_pattern, self.depth_pattern, strict=True
    ):
      blocks = []
      for block_index in range(depth):
        blocks.append(
          NFBlock(
            in_ch,
            out_ch,
            expansion=expansion if index > 0 else 1.0,
            se_ratio=se_ratio,
            stride=2 if block_index == 0 else 1,
            beta=expected_vars[index] ** -0.5,
            alpha=alpha,
            activation=self.activation,
            group_size=group_size,
            stochdepth_rate=stochdepth_rate * index / num_blocks,
          )
        )
        in_ch = out_ch
        index += 1
      self.stages.append(blocks)

    final_ch = 1280 * in_ch // 440
    self.final_conv = base.WSConv2D(final_ch, 1, name='final_conv')
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
    out = self.initial_conv(x)
    features = [out]
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
      h, w, [self.initial_conv], self.stages, self.final_conv, self.fc
    )


class NFBlock(hk.Module):
  """Inverted bottleneck: 1x1, grouped 3x3, squeeze and excite, 1x1."""

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    expansion: float = 2.25,
    se_ratio: float = 0.5,
    stride: int = 1,
    beta: float = 1.0,
    alpha: float = 0.2,
    activation: base.Activation = base.nonlinearities['silu'],
    group_size: int = 8,
    stochdepth_rate: float = 0.0,
    name: str | None = None,
  ):
    super().__init__(name=name)
    self.in_ch, self.out_ch = in_ch, out_ch
    self.stride = stride
    self.alpha, self.beta = alpha, beta
    self.activation = activation

    groups = int(in_ch * expansion) // group_size
    if groups < 1:
      raise ValueError(
        f'{in_ch} channels leave {int(in_ch * expansion)} inside the block, '
        f'less than one group of {group_size}; use a larger width.'
      )
    self.width = groups * group_size

    self.conv0 = base.WSConv2D(self.width, 1, name='conv0')
    self.conv1 = base.WSConv2D(
      self.width, 3, stride=stride, feature_group_count=groups, name='conv1'
    )
    self.conv2 = base.WSConv2D(out_ch, 1, name='conv2')
    self.conv_shortcut = None
    if stride > 1 or in_ch != out_ch:
      self.conv_shortcut = base.WSConv2D(out_ch, 1, name='conv_shortcut')
    self.se = base.SqueezeExcite(self.width, self.width, se_ratio)
    self.stoch_depth = base.StochDepth(stochdepth_rate)

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
    out = 2 * self.se(out) * out
    branch = self.conv2(self.activation(out))

    out = self.stoch_depth(branch, is_training)
    gain = hk.get_parameter('skip_gain', (), out.dtype, init=jnp.zeros)
    return shortcut + out * self.alpha * gain, branch
