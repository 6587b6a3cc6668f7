"""The residual block of the normalizer-free networks and their baselines."""

from collections.abc import Callable
import functools
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base


class ResidualBlock(hk.Module):
  """The residual block of the normalizer-free networks, and of the baselines.

  A block has the convolutions `conv0` (1x1), `conv1` (3x3, with the stride),
  perhaps `conv1b` (3x3), and `conv2` (1x1). It may have a gate, and has
  `conv_shortcut` (1x1) if the shape changes. `width` is the number of channels
  between the convolutions. alpha scales the residual branch, and beta the
  activated input.
  """

  conv1b = conv_shortcut = None
  gate: Any = None  # A module such as squeeze and excite.
  gate_inside = False  # The gate comes before the last convolution.
  pools_shortcut = False  # Average pooling replaces the shortcut's stride.
  skip_gain_init = staticmethod(jnp.zeros)

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    width: int,
    which_conv: Callable[..., hk.Conv2D] = base.WSConv2D,
    groups: int = 1,
    two_convs: bool = False,
    stride: int = 1,
    alpha: float = 1.0,
    beta: float = 1.0,
    activation: base.Activation = jax.nn.relu,
    stochdepth_rate: float = 0.0,
    name: str | None = None,
  ):
    super().__init__(name=name)
    self.in_ch, self.out_ch, self.stride = in_ch, out_ch, stride
    self.activation, self.alpha, self.beta = activation, alpha, beta
    self.stoch_depth = base.StochDepth(stochdepth_rate)
    conv_3x3 = functools.partial(
      which_conv, width, 3, feature_group_count=groups
    )
    self.conv0 = which_conv(width, 1, name='conv0')
    self.conv1 = conv_3x3(stride=stride, name='conv1')
    if two_convs:
      self.conv1b = conv_3x3(name='conv1b')
    self.conv2 = which_conv(out_ch, 1, name='conv2')
    if stride > 1 or in_ch != out_ch:
      step = 1 if self.pools_shortcut else stride
      self.conv_shortcut = which_conv(
        out_ch, 1, stride=step, name='conv_shortcut'
      )

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Apply the block to x [B, H, W, in_ch].

    Returns:
      The output and the residual branch, [B, H', W', out_ch] each.
    """
    out = self.activation(x) * self.beta
    shortcut = self.shortcut(x, out)

    out = self.conv0(out)
    out = self.conv1(self.activation(out))
    if self.conv1b is not None:
      out = self.conv1b(self.activation(out))
    if self.gate is not None and self.gate_inside:
      out = 2 * self.gate(out) * out
    branch = self.conv2(self.activation(out))
    if self.gate is not None and not self.gate_inside:
      branch = 2 * self.gate(branch) * branch
    return shortcut + self.scale_branch(branch, is_training), branch

  def shortcut(self, x: jax.Array, activated: jax.Array) -> jax.Array:
    """Return x or, if the shape changes, a projection of `activated`."""
    if self.conv_shortcut is None:
      return x
    if self.pools_shortcut and self.stride > 1:
      activated = base.avg_pool_2x2(activated)
    return self.conv_shortcut(activated)

  def scale_branch(self, branch: jax.Array, is_training: bool) -> jax.Array:
    """Return alpha * skip gain * branch, after stochastic depth."""
    out = self.stoch_depth(branch, is_training)
    gain = hk.get_parameter(
      'skip_gain', (), out.dtype, init=self.skip_gain_init
    )
    return out * self.alpha * gain

  def count_flops(self, h: int, w: int) -> int:
    """Return the multiply-adds for one image [h, w]."""
    width, size = self.conv0.output_channels, strided(h, w, self.stride)
    modules = self.conv1, self.conv1b, self.conv2
    return (
      conv_flops(self.conv0, self.in_ch, h, w)
      + sum(conv_flops(module, width, *size) for module in modules)
      + conv_flops(self.conv_shortcut, self.in_ch, *size)
      + (0 if self.gate is None else self.gate.count_flops())
    )


def conv_flops(module: hk.Conv2D | None, in_ch: int, h: int, w: int) -> int:
  """Return the multiply-adds of a convolution with output size [h, w]."""
  if module is None:
    return 0
  kernel = math.prod(module.kernel_shape) * in_ch // module.feature_group_count
  return h * w * kernel * module.output_channels


def strided(h: int, w: int, stride: int) -> tuple[int, int]:
  """Return the size of an image after SAME padding and a stride."""
  return -(-h // stride), -(-w // stride)
