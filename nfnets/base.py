"""Layers of the normalizer-free networks.

NF-ResNets below stands for Brock, De, Smith, "Characterizing signal propagation
to close the performance gap in unnormalized ResNets" (arXiv 2101.08692), and
NFNets for Brock, De, Smith, Simonyan, "High-Performance Large-Scale Image
Recognition Without Normalization" (arXiv 2102.06171).
"""

from collections.abc import Sequence
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets import conv, variants
from nfnets.activations import (  # noqa: F401 (Published names.)
  Activation,
  get_nonlinearity,
  nonlinearities,
  unscaled_nonlinearities,
)

nfnet_params = variants.nfnet_params
nf_regnet_params = variants.nf_regnet_params
resnet_params = variants.resnet_params


class Conv2D(hk.Conv2D):
  """hk.Conv2D for images [B, H, W, C], computed by `nfnets.conv`.

  It ignores `data_format` and `mask`. Parameters: `w` [kh, kw, C // groups, K]
  and, with a bias, `b` [K].
  """

  def __call__(self, inputs: jax.Array) -> jax.Array:
    in_ch = inputs.shape[-1] // self.feature_group_count
    shape = self.kernel_shape + (in_ch, self.output_channels)
    w_init = self.w_init
    if w_init is None:
      stddev = math.prod(shape[:-1]) ** -0.5
      w_init = hk.initializers.TruncatedNormal(stddev)
    weight = hk.get_parameter('w', shape, inputs.dtype, init=w_init)
    out = conv.conv2d(
      inputs,
      weight,
      stride=self.stride,
      padding=self.padding,
      rate=self.kernel_dilation,
      groups=self.feature_group_count,
    )
    if self.with_bias:
      bias = hk.get_parameter('b', shape[-1:], inputs.dtype, init=self.b_init)
      out += jnp.expand_dims(bias, (0, 1, 2))
    return out


# Parameter name of a standardized kernel.
FOLDED = 'w_standardized'


class WSConv2D(hk.Conv2D):
  """2D convolution with scaled weight standardization and a bias.

  Per output channel the kernel becomes gain * (w - mean) / sqrt(max(var *
  fan_in, eps)), with the biased variance (NF-ResNets, equation 2; gain and eps
  follow the published code). The arguments are those of hk.Conv2D. Images are
  [B, H, W, C], or [B, H, W / factor, factor * C] after `conv.space_to_depth`
  with this `factor`. Parameters: `w` [kh, kw, C // groups, K], `gain` [K] and
  `bias` [K]. Folded weights have a standardized kernel instead of `w` and
  `gain` (`nfnets.weights.fold_weights`).

  Example:
    >>> conv = hk.transform(lambda x: base.WSConv2D(16, 3)(x))
  """

  def __init__(
    self,
    output_channels: int,
    kernel_shape: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    rate: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = 'SAME',
    feature_group_count: int = 1,
    name: str | None = None,
  ):
    super().__init__(
      output_channels,
      kernel_shape,
      stride=stride,
      rate=rate,
      padding=padding,
      w_init=hk.initializers.VarianceScaling(1.0, 'fan_in', 'normal'),
      feature_group_count=feature_group_count,
      name=name,
    )
    self.gain_init = jnp.ones

  def standardize_weight(self, weight: jax.Array, eps: float = 1e-4):
    """Return the standardized kernel, with the shape and dtype of `weight`."""
    mean = jnp.mean(weight, axis=(0, 1, 2), keepdims=True)
    var = jnp.var(weight, axis=(0, 1, 2), keepdims=True)
    fan_in = math.prod(weight.shape[:-1])
    gain = hk.get_parameter(
      'gain', weight.shape[-1:], weight.dtype, init=self.gain_init
    )
    scale = self._scale(var, gain, fan_in, eps)
    # One pass over the kernel. (weight - mean) * scale would take two.
    return weight * scale - mean * scale

  @staticmethod  # `fold_weights` calls it outside of Haiku.
  def _scale(var, gain, fan_in, eps):
    scale = jax.lax.rsqrt(jnp.maximum(var * fan_in, eps))
    return scale * jnp.expand_dims(gain, (0, 1, 2))

  def __call__(
    self, inputs: jax.Array, eps: float = 1e-4, factor: int = 1
  ) -> jax.Array:
    in_channels = inputs.shape[-1] // factor
    if in_channels % self.feature_group_count:
      raise ValueError(
        f'{self.module_name}: {in_channels} input channels cannot be split '
        f'into {self.feature_group_count} groups.'
      )
    shape = self.kernel_shape + (
      in_channels // self.feature_group_count,
      self.output_channels,
    )
    if FOLDED in hk.get_params().get(self.module_name, ()):
      weight = hk.get_parameter(FOLDED, shape, inputs.dtype)
    else:
      weight = hk.get_parameter('w', shape, inputs.dtype, init=self.w_init)
      weight = self.standardize_weight(weight, eps)
    bias = hk.get_parameter(
      'bias', (self.output_channels,), inputs.dtype, init=jnp.zeros
    )
    if factor > 1:
      out = conv.conv2d_space_to_depth(
        inputs, weight, stride=self.stride, factor=factor
      )
      bias = jnp.tile(bias, factor // self.stride[1])
      return out + jnp.expand_dims(bias, (0, 1, 2))
    out = conv.conv2d(
      inputs,
      weight,
      stride=self.stride,
      padding=self.padding,
      rate=self.kernel_dilation,
      groups=self.feature_group_count,
    )
    return out + jnp.expand_dims(bias, (0, 1, 2))


class SqueezeExcite(hk.Module):
  """Squeeze and excite: a channel gate computed from the image mean.

  Hu et al., "Squeeze-and-Excitation Networks" (arXiv 1709.01507). Maps
  [B, H, W, in_ch] to [B, 1, 1, out_ch] in (0, 1).

  Example:
    >>> gate = hk.transform(lambda x: base.SqueezeExcite(16, 16)(x) * x)
  """

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    se_ratio: float = 0.5,
    hidden_ch: int | None = None,
    activation: Activation = jax.nn.relu,
    name: str | None = None,
  ):
    super().__init__(name=name)
    if hidden_ch is None:
      hidden_ch = max(1, int(in_ch * se_ratio))
    self.in_ch, self.hidden_ch, self.out_ch = in_ch, hidden_ch, out_ch
    self.activation = activation
    self.fc0 = hk.Linear(hidden_ch, name='linear')
    self.fc1 = hk.Linear(out_ch, name='linear_1')

  def __call__(self, x: jax.Array) -> jax.Array:
    gate = jnp.mean(x, axis=(1, 2))
    gate = self.fc1(self.activation(self.fc0(gate)))
    return jax.nn.sigmoid(gate)[:, None, None, :]

  def count_flops(self) -> int:
    """Return the multiply-adds for one image."""
    return self.hidden_ch * (self.in_ch + self.out_ch)


class StochDepth(hk.Module):
  """Stochastic depth: drops whole residual branches of random examples.

  Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382). With
  `scale_by_keep`, training divides kept branches by the keep rate. Evaluation
  does not change the branch.

  Example:
    >>> drop = hk.transform(lambda x: base.StochDepth(0.1)(x, True))
  """

  def __init__(
    self,
    drop_rate: float,
    scale_by_keep: bool = False,
    name: str | None = None,
  ):
    super().__init__(name=name)
    if not 0 <= drop_rate < 1:
      raise ValueError(f'drop_rate must be in [0, 1), not {drop_rate}.')
    self.drop_rate = drop_rate
    self.scale_by_keep = scale_by_keep

  def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
    if not is_training or self.drop_rate == 0:
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep_rate = 1 - self.drop_rate
    keep = jax.random.bernoulli(hk.next_rng_key(), keep_rate, shape)
    x = x * keep.astype(x.dtype)
    return x / keep_rate if self.scale_by_keep else x


def grouped_width(
  channels: int, expansion: float, group_size: int
) -> tuple[int, int]:
  """Return the inner width of a block, in whole groups, and their number.

  Raises:
    ValueError: if the width is less than one group.
  """
  width = int(channels * expansion)
  groups = width // group_size
  if groups < 1:
    raise ValueError(
      f'{channels} channels give an inner width of {width}, less than one '
      f'group of {group_size}. Use a larger width.'
    )
  return groups * group_size, groups


def max_pool_3x3(
  x: jax.Array, padding: str | Sequence[tuple[int, int]]
) -> jax.Array:
  """Apply 3x3 max pooling with stride 2.

  Args:
    x: [B, H, W, C].
    padding: 'SAME', or (before, after) for each of the four axes.
  """
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding
  )


AVERAGE_POOL = 'nfnets_average_pool'  # The ONNX export finds this name.


def avg_pool_2x2(x: jax.Array) -> jax.Array:
  """Apply 2x2 average pooling with stride 2. Padding does not count.

  It replaces `hk.avg_pool`: on the CPU, jaxlib 0.10.2 computes wrong sums of
  padded windows over images of one pixel (a factor of 4, from 8192 values on).

  Args:
    x: [B, H, W, C].

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C], of x's dtype.
  """

  def average_pool(x):
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    total = x[:, ::2] + x[:, 1::2]
    total = total[:, :, ::2] + total[:, :, 1::2]
    rows = np.minimum(2, h - np.arange(0, h, 2))  # Pixels per window.
    columns = np.minimum(2, w - np.arange(0, w, 2))
    return total / np.outer(rows, columns)[None, :, :, None].astype(x.dtype)

  if conv.chosen() == 'portable':
    average_pool.__name__ = AVERAGE_POOL
    average_pool = jax.jit(average_pool)
  return average_pool(x)


def channel_variance(x: jax.Array) -> jax.Array:
  """Return the mean over channels of the variance over batch, H and W."""
  return jnp.mean(jnp.var(x, axis=(0, 1, 2)))


def signal_metrics(x: jax.Array, i: int) -> dict[str, jax.Array]:
  """Compute the signal propagation metrics (NF-ResNets, section 3).

  Args:
    x: [B, H, W, C].
    i: index in the names of the metrics.

  Returns:
    Scalars: `avg_sq_mean_{i}`, the mean over channels of the squared mean over
    B, H and W, and `avg_var_{i}`, the mean over channels of the variance over
    B, H and W.

  Example:
    >>> sorted(base.signal_metrics(images, 0))
    ['avg_sq_mean_0', 'avg_var_0']
  """
  return {
    f'avg_sq_mean_{i}': jnp.mean(jnp.square(jnp.mean(x, axis=(0, 1, 2)))),
    f'avg_var_{i}': channel_variance(x),
  }
