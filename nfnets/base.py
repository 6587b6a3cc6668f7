"""Building blocks that the normalizer-free networks share.

Sources: Brock, De, Smith, "Characterizing signal propagation to close the
performance gap in unnormalized ResNets" (arXiv 2101.08692), called NF-ResNets
below, and Brock, De, Smith, Simonyan, "High-Performance Large-Scale Image
Recognition Without Normalization" (arXiv 2102.06171), called NFNets.
"""

from collections.abc import Callable, Sequence
import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets import columns, conv, variants

# Under their published names.
nfnet_params = variants.nfnet_params
nf_regnet_params = variants.nf_regnet_params
resnet_params = variants.resnet_params

Activation = Callable[[jax.Array], jax.Array]


def _scaled(fn: Activation, gamma: float) -> Activation:
  """Returns f(x) * gamma (NF-ResNets, section 4.1)."""
  return lambda x: fn(x) * gamma


def _gelu_exponent(x: jax.Array) -> jax.Array:
  """Returns 2 sqrt(2 / pi) (x + 0.044715 x^3)."""
  c = 2 * math.sqrt(2 / math.pi)
  return x * (c + 0.044715 * c * jnp.square(x))


@jax.custom_jvp
def _gelu(x: jax.Array) -> jax.Array:
  """GELU in its tanh form (arXiv 1606.08415), times its gamma.

  0.5 (1 + tanh z) is the logistic function of 2 z; in this form F0 is 3 to 4 %
  faster on a CPU than with `jax.nn.gelu`. Of -z = 100 and more, the exponential
  is infinite, which is right here but not in its derivative.
  """
  return 1.7015043497085571 * x / (1 + jnp.exp(-_gelu_exponent(x)))


@_gelu.defjvp
def _gelu_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  c = 2 * math.sqrt(2 / math.pi)
  sigma = jax.nn.sigmoid(_gelu_exponent(x))
  slope = c + 3 * 0.044715 * c * jnp.square(x)
  derivative = sigma + x * sigma * (1 - sigma) * slope
  return _gelu(x), 1.7015043497085571 * derivative * dx


# Each activation times its gamma: N(0, 1) in gives unit variance out. The
# released weights were trained with the tanh form of GELU; `gelu_erf` is the
# exact form, with the gamma that PyTorch ports of these networks use.
nonlinearities: dict[str, Activation] = {
  'identity': lambda x: x,
  'celu': _scaled(jax.nn.celu, 1.270926833152771),
  'elu': _scaled(jax.nn.elu, 1.2716004848480225),
  'gelu': _gelu,
  'gelu_erf': _scaled(
    functools.partial(jax.nn.gelu, approximate=False), 1.7015043497085571
  ),
  'glu': _scaled(jax.nn.glu, 1.8484294414520264),
  'leaky_relu': _scaled(jax.nn.leaky_relu, 1.70590341091156),
  'log_sigmoid': _scaled(jax.nn.log_sigmoid, 1.9193484783172607),
  'log_softmax': _scaled(jax.nn.log_softmax, 1.0002083778381348),
  'relu': _scaled(jax.nn.relu, 1.7139588594436646),
  'relu6': _scaled(jax.nn.relu6, 1.7131484746932983),
  'selu': _scaled(jax.nn.selu, 1.0008515119552612),
  'sigmoid': _scaled(jax.nn.sigmoid, 4.803835391998291),
  'silu': _scaled(jax.nn.silu, 1.7881293296813965),
  'swish': _scaled(jax.nn.swish, 1.7881293296813965),
  'soft_sign': _scaled(jax.nn.soft_sign, 2.338853120803833),
  'softplus': _scaled(jax.nn.softplus, 1.9203323125839233),
  'tanh': _scaled(jnp.tanh, 1.5939117670059204),
}


# The same without gamma, for the networks that do without scaled activations.
unscaled_nonlinearities: dict[str, Activation] = {
  name: getattr(jax.nn, name) for name in nonlinearities if name != 'gelu_erf'
}


def get_nonlinearity(name: str, scaled: bool = True) -> Activation:
  """Returns the activation of this name, times its gamma if `scaled`.

  Raises:
    ValueError: if there is none; the message lists the names.
  """
  table = nonlinearities if scaled else unscaled_nonlinearities
  if name not in table:
    raise ValueError(
      f'No activation {name!r}; there are {", ".join(sorted(table))}.'
    )
  return table[name]


def get_variant(table: dict[str, dict], variant: str) -> dict:
  """Returns one row of a variant table.

  Raises:
    ValueError: if there is none; the message lists the variants.
  """
  if variant not in table:
    raise ValueError(f'No variant {variant!r}; there are {", ".join(table)}.')
  return table[variant]


class Conv2D(hk.Conv2D):
  """hk.Conv2D for images [B, H, W, C], computed by `nfnets.conv`.

  Parameters: `w` [kh, kw, C, K] and, with a bias, `b` [K].
  """

  def __init__(
    self,
    output_channels: int,
    kernel_shape: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    rate: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = 'SAME',
    with_bias: bool = True,
    w_init: hk.initializers.Initializer | None = None,
    b_init: hk.initializers.Initializer | None = None,
    name: str | None = None,
  ):
    super().__init__(
      output_channels,
      kernel_shape,
      stride=stride,
      rate=rate,
      padding=padding,
      with_bias=with_bias,
      w_init=w_init,
      b_init=b_init,
      name=name,
    )

  def __call__(self, inputs: jax.Array) -> jax.Array:
    shape = self.kernel_shape + (inputs.shape[-1], self.output_channels)
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
    )
    if self.with_bias:
      out += hk.get_parameter('b', shape[-1:], inputs.dtype, init=self.b_init)
    return out


# Names a kernel that was standardized beforehand.
FOLDED = 'w_standardized'


class WSConv2D(hk.Conv2D):
  """2D convolution with scaled weight standardization and a bias.

  Per output channel the kernel becomes gain * (w - mean) / sqrt(max(var *
  fan_in, eps)), with the biased variance (NF-ResNets, equation 2; the gain and
  eps as in the published code). The arguments are hk.Conv2D's; images are
  [B, H, W, C], or of `joined` columns (see `nfnets.columns`). Parameters: `w`
  [kh, kw, C // groups, K], `gain` [K], `bias` [K]; or, with folded weights, the
  standardized kernel in place of the first two (`nfnets.weights.fold_weights`).
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

  def standardize_weight(self, weight: jax.Array, eps: float = 1e-4):
    """Returns the standardized kernel, of the shape and dtype of `weight`."""
    mean = jnp.mean(weight, axis=(0, 1, 2), keepdims=True)
    var = jnp.var(weight, axis=(0, 1, 2), keepdims=True)
    fan_in = math.prod(weight.shape[:-1])
    gain = hk.get_parameter(
      'gain', shape=weight.shape[-1:], dtype=weight.dtype, init=jnp.ones
    )
    scale = jax.lax.rsqrt(jnp.maximum(var * fan_in, eps)) * gain
    # One pass over the kernel; (weight - mean) * scale would take two.
    return weight * scale - mean * scale

  def __call__(
    self, inputs: jax.Array, eps: float = 1e-4, joined: int = 1
  ) -> jax.Array:
    in_channels = inputs.shape[-1] // joined
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
    if joined > 1:
      out = columns.conv2d(inputs, weight, stride=self.stride, columns=joined)
      return out + jnp.tile(bias, joined // self.stride[1])
    out = conv.conv2d(
      inputs,
      weight,
      stride=self.stride,
      padding=self.padding,
      rate=self.kernel_dilation,
      groups=self.feature_group_count,
    )
    return out + bias


class SqueezeExcite(hk.Module):
  """Squeeze and excite: a gate per channel, from the mean over the image.

  Hu et al., "Squeeze-and-Excitation Networks" (arXiv 1709.01507). Maps
  [B, H, W, in_ch] to [B, 1, 1, out_ch] in (0, 1).
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
    """Returns the multiply-adds for one image."""
    return self.hidden_ch * (self.in_ch + self.out_ch)


class StochDepth(hk.Module):
  """Stochastic depth: drops a whole residual branch, per example.

  Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382). The
  branch is not rescaled in training unless asked, and passes unchanged in
  evaluation.
  """

  def __init__(
    self,
    drop_rate: float,
    scale_by_keep: bool = False,
    name: str | None = None,
  ):
    super().__init__(name=name)
    if not 0 <= drop_rate < 1:
      raise ValueError(f'drop_rate must lie in [0, 1), not {drop_rate}.')
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


def call_block(
  block: Callable[..., tuple[jax.Array, jax.Array]],
  x: jax.Array,
  is_training: bool,
  remat: bool,
) -> tuple[jax.Array, jax.Array]:
  """Returns block(x, is_training).

  With `remat`, the backward pass keeps nothing of the block but its input, and
  computes the rest again, standardized kernels included (arXiv 1604.06174).
  """
  if not remat:
    return block(x, is_training)
  return hk.remat(lambda x: block(x, is_training))(x)


def count_remat(remat: bool | int) -> float:
  """Returns how many of the first blocks are computed again; True is all.

  Raises:
    ValueError: for anything but a bool or a number that is not negative.
  """
  if remat is True:
    return math.inf
  if not isinstance(remat, int) or remat < 0:
    raise ValueError(f'remat is {remat!r}; it must be True, False or a number.')
  return remat


def avg_pool_2x2(x: jax.Array) -> jax.Array:
  """Averages 2x2 windows with stride 2, without counting what pads odd sizes.

  Not `hk.avg_pool`, because jaxlib 0.10.2 sums a padded window over an image of
  one pixel wrongly on the CPU (a factor of 4, from 8192 values on).

  Args:
    x: [B, H, W, C].

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C], of x's dtype.
  """
  h, w = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
  total = x[:, ::2] + x[:, 1::2]
  total = total[:, :, ::2] + total[:, :, 1::2]
  rows = np.minimum(2, h - np.arange(0, h, 2))  # How many each window has.
  columns = np.minimum(2, w - np.arange(0, w, 2))
  return total / np.outer(rows, columns)[:, :, None].astype(x.dtype)


def channel_variance(x: jax.Array) -> jax.Array:
  """Returns the mean over channels of the variance over batch, H and W."""
  return jnp.mean(jnp.var(x, axis=(0, 1, 2)))


def signal_metrics(x: jax.Array, i: int) -> dict[str, jax.Array]:
  """Measures how a signal propagates (NF-ResNets, section 3).

  Args:
    x: [B, H, W, C].
    i: the number that names the measurements.

  Returns:
    `avg_sq_mean_{i}`, the mean over channels of the squared mean over batch, H
    and W, and `avg_var_{i}`, that of the variance. Scalars.
  """
  return {
    f'avg_sq_mean_{i}': jnp.mean(jnp.square(jnp.mean(x, axis=(0, 1, 2)))),
    f'avg_var_{i}': channel_variance(x),
  }


def expected_variances(depths: Sequence[int], alpha: float) -> list[float]:
  """Returns the variance of each block's input, as the analysis expects it.

  Each branch adds alpha^2 to the variance of its shortcut. A stage's first
  block starts from the variance that the previous stage reached; its shortcut
  is activated, which sets that back to 1 (NF-ResNets, section 3).

  Args:
    depths: the number of blocks in each stage.
    alpha: scale of the residual branches.
  """
  variances, variance = [], 1.0
  for depth in depths:
    for block_index in range(depth):
      variances.append(variance)
      if block_index == 0:
        variance = 1.0
      variance += alpha**2
  return variances
