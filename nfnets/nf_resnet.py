"""NF-ResNets: pre-activation ResNets without normalization.

Source: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets" (arXiv 2101.08692).
"""

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, flops


class NF_ResNet(hk.Module):
  """Normalizer-free pre-activation ResNet."""

  variant_dict = base.resnet_params

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
    """Builds the modules.

    Args:
      num_classes: size of the logits; 0 leaves out the last layer, and them.
      variant: a key of `variant_dict`.
      width: multiplies the widths 64, 128, 256, 512 of the stages.
      alpha: scale of the residual branches.
      stochdepth_rate: of the last block; earlier ones get less, linearly.
      drop_rate: dropout before the last layer; None is the variant's own, or 0.
      activation: a key of `base.nonlinearities`.
      fc_init: initializer of the last layer's kernel; None is N(0, 0.01).
      skipinit_gain: initializer of the scalar gain of each residual branch.
      use_se: whether blocks end with squeeze and excite.
      se_ratio: its hidden channels, as a part of its input.
      name: of the module.
      remat: how many of the first blocks the backward pass computes again,
        instead of keeping what they computed, or True for all: less memory,
        more time.

    Raises:
      ValueError: for an unknown variant or activation.
    """
    super().__init__(name=name)
    params = base.get_variant(self.variant_dict, variant)
    self.variant = variant
    self.remat = base.count_remat(remat)
    self.activation = base.get_nonlinearity(activation)
    self.width_pattern = [int(w * width) for w in (64, 128, 256, 512)]
    self.depth_pattern = params['depth']
    if drop_rate is None:
      drop_rate = params.get('drop_rate', 0.0)
    self.drop_rate = drop_rate

    in_ch = int(16 * width)
    self.initial_conv = base.WSConv2D(in_ch, 7, stride=2, name='initial_conv')

    self.stages = []
    index, num_blocks = 0, sum(self.depth_pattern)
    expected_vars = base.expected_variances(self.depth_pattern, alpha)
    for out_ch, depth, stride in zip(
      self.width_pattern, self.depth_pattern, (1, 2, 2, 2), strict=True
    ):
      blocks = []
      for block_index in range(depth):
        blocks.append(
          NFResBlock(
            in_ch,
            out_ch,
            stride=stride if block_index == 0 else 1,
            alpha=alpha,
            beta=expected_vars[index] ** -0.5,
            activation=self.activation,
            skipinit_gain=skipinit_gain,
            stochdepth_rate=stochdepth_rate * index / num_blocks,
            use_se=use_se,
            se_ratio=se_ratio,
          )
        )
        in_ch = out_ch
        index += 1
      self.stages.append(blocks)

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
      is the stem after pooling and i + 1 block i, and `res_avg_var_{i}`, the
      variance of block i's residual branch.
    """
    out = self.initial_conv(x)
    features = [out]
    out = hk.max_pool(out, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')
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
      h, w, [self.initial_conv], self.stages, None, self.fc, max_pool=True
    )


class NFResBlock(hk.Module):
  """Pre-activation bottleneck block: 1x1, 3x3, 1x1."""

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    bottleneck_ratio: float = 0.25,
    stride: int = 1,
    beta: float = 1.0,
    alpha: float = 0.2,
    activation: base.Activation = base.nonlinearities['relu'],
    skipinit_gain: hk.initializers.Initializer = jnp.zeros,
    stochdepth_rate: float = 0.0,
    use_se: bool = False,
    se_ratio: float = 0.25,
    name: str | None = None,
  ):
    super().__init__(name=name)
    self.in_ch, self.out_ch = in_ch, out_ch
    self.stride = stride
    self.alpha, self.beta = alpha, beta
    self.activation = activation
    self.skipinit_gain = skipinit_gain
    self.width = int(out_ch * bottleneck_ratio)

    self.conv0 = base.WSConv2D(self.width, 1, name='conv0')
    self.conv1 = base.WSConv2D(self.width, 3, stride=stride, name='conv1')
    self.conv2 = base.WSConv2D(out_ch, 1, name='conv2')
    self.conv_shortcut = None
    if stride > 1 or in_ch != out_ch:
      self.conv_shortcut = base.WSConv2D(
        out_ch, 1, stride=stride, name='conv_shortcut'
      )
    self.se = base.SqueezeExcite(out_ch, out_ch, se_ratio) if use_se else None
    self.stoch_depth = base.StochDepth(stochdepth_rate)

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the residual branch, [B, H', W', out_ch]."""
    out = self.activation(x) * self.beta
    shortcut = x
    if self.conv_shortcut is not None:
      shortcut = self.conv_shortcut(out)

    out = self.conv0(out)
    out = self.conv1(self.activation(out))
    out = self.conv2(self.activation(out))
    branch = out if self.se is None else 2 * self.se(out) * out

    out = self.stoch_depth(branch, is_training)
    gain = hk.get_parameter('skip_gain', (), out.dtype, init=self.skipinit_gain)
    return shortcut + out * self.alpha * gain, branch
