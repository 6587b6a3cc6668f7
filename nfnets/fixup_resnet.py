"""Fixup-ResNets: post-activation ResNets that initialization alone keeps sane.

Zhang, Dauphin, Ma, "Fixup Initialization: Residual Learning Without
Normalization" (arXiv 1901.09321): scalar biases around the convolutions, one
scale per residual branch, and smaller first kernels the deeper the network.
"""

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, flops


def _bias(name: str, x: jax.Array) -> jax.Array:
  """Returns a scalar parameter of x's dtype that starts at zero."""
  return hk.get_parameter(name, (), x.dtype, init=jnp.zeros)


class FixUp_ResNet(hk.Module):
  """Post-activation ResNet with Fixup."""

  variant_dict = base.resnet_params

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
    """Builds the modules.

    Args:
      num_classes: size of the logits; 0 leaves out the last layer, and them.
      variant: a key of `variant_dict`.
      width: multiplies the widths 64, 128, 256, 512 of the stages.
      stochdepth_rate: of the last block; earlier ones get less, linearly.
      drop_rate: dropout before the last layer; None is the variant's own, or 0.
      activation: a key of `base.unscaled_nonlinearities`.
      fc_init: initializer of the last layer's kernel.
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
    self.activation = base.get_nonlinearity(activation, scaled=False)
    self.width_pattern = [int(w * width) for w in (64, 128, 256, 512)]
    self.depth_pattern = params['depth']
    if drop_rate is None:
      drop_rate = params.get('drop_rate', 0.0)
    self.drop_rate = drop_rate

    in_ch = int(16 * width)
    self.initial_conv = base.Conv2D(
      in_ch, 7, stride=2, with_bias=False, name='initial_conv'
    )

    self.stages = []
    index, num_blocks = 0, sum(self.depth_pattern)
    for out_ch, depth, stride in zip(
      self.width_pattern, self.depth_pattern, (1, 2, 2, 2), strict=True
    ):
      blocks = []
      for block_index in range(depth):
        blocks.append(
          ResBlock(
            in_ch,
            out_ch,
            num_blocks,
            stride=stride if block_index == 0 else 1,
            activation=self.activation,
            stochdepth_rate=stochdepth_rate * index / num_blocks,
          )
        )
        in_ch = out_ch
        index += 1
      self.stages.append(blocks)

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
      five maps at strides 2, 4, 8, 16 and 32 after their activation; with
      `return_metrics`, scalars `avg_sq_mean_{i}` and `avg_var_{i}`, where i = 0
      is the stem after pooling and i + 1 block i, and `res_avg_var_{i}`, the
      variance of block i's residual branch.
    """
    out = self.initial_conv(x)
    out = self.activation(out + _bias('bias1', out))
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

    pool = jnp.mean(out, axis=(1, 2))
    out = pool
    if is_training and self.drop_rate > 0:
      out = hk.dropout(hk.next_rng_key(), self.drop_rate, out)
    out += _bias('bias2', out)
    outputs = {'pool': pool, 'features': features}
    if self.fc is not None:
      outputs['logits'] = self.fc(out)
    return {**outputs, **metrics}

  def count_flops(self, h: int, w: int) -> tuple[list[int], int]:
    """Returns the multiply-adds for one image [h, w]: per part, and in all."""
    return flops.count_flops(
      h, w, [self.initial_conv], self.stages, None, self.fc, max_pool=True
    )


class ResBlock(hk.Module):
  """Post-activation bottleneck block: 1x1, 3x3, 1x1, with scalar biases."""

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    num_blocks: int,
    bottleneck_ratio: float = 0.25,
    stride: int = 1,
    activation: base.Activation = base.unscaled_nonlinearities['relu'],
    stochdepth_rate: float = 0.0,
    name: str | None = None,
  ):
    super().__init__(name=name)
    self.in_ch, self.out_ch = in_ch, out_ch
    self.stride = stride
    self.activation = activation
    self.width = int(out_ch * bottleneck_ratio)

    def conv(channels, kernel, stride, scale, name):
      # `scale` is 2 for He's initialization.
      w_init = hk.initializers.VarianceScaling(scale, 'fan_out', 'normal')
      return base.Conv2D(
        channels, kernel, stride, with_bias=False, w_init=w_init, name=name
      )

    # With m = 3 convolutions in a branch, of which the last starts at zero, the
    # paper multiplies the standard deviation by num_blocks^(-1 / (2 m - 2)).
    scale = 2 * num_blocks**-0.5
    self.conv0 = conv(self.width, 1, 1, scale, 'conv0')
    self.conv1 = conv(self.width, 3, stride, scale, 'conv1')
    self.conv2 = conv(out_ch, 1, 1, 0.0, 'conv2')
    self.conv_shortcut = None
    if stride > 1 or in_ch != out_ch:
      self.conv_shortcut = conv(out_ch, 1, stride, 2.0, 'conv_shortcut')
    self.stoch_depth = base.StochDepth(stochdepth_rate)

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the residual branch, [B, H', W', out_ch]."""
    x += _bias('bias1a', x)
    shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)

    out = self.conv0(x)
    out = self.activation(out + _bias('bias1b', out))
    out = self.conv1(out + _bias('bias2a', out))
    out = self.activation(out + _bias('bias2b', out))
    out = self.conv2(out + _bias('bias3a', out))
    scale = hk.get_parameter('scale', (), out.dtype, init=jnp.ones)
    branch = out * scale + _bias('bias3b', out)

    out = self.stoch_depth(branch, is_training)
    return self.activation(shortcut + out), branch
