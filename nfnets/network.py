"""The parts that all networks share: stem, stages of residual blocks, head.

The file of a network holds its block, its constructor and what differs.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import contextvars
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, conv, residual

_taps = contextvars.ContextVar('taps', default=None)


class Network(hk.Module):
  """Base class of all networks: stem, stages, head.

  A subclass sets `stem` (convolutions with the activation between them),
  `stages` (lists of `ResidualBlock`) and optionally `final_conv`. It can
  override `_after_stem`, `_before_pool` and `_before_fc`.

  Arguments of all networks:
    num_classes: size of the logits. 0 removes the last layer and the logits.
    variant: a key of `variant_dict`.
    alpha: scale of the residual branches.
    stochdepth_rate: rate of stochastic depth of the last block. The rate grows
      linearly from 0 in the first block.
    drop_rate: dropout before the last layer. None: the variant's rate, or 0.
    activation: a key of `nonlinearities`, or of `unscaled_nonlinearities` for
      the baselines.
    fc_init: initializer of the last layer's kernel. None: N(0, 0.01).
    name: name of the module.
    remat: number of first blocks that the backward pass recomputes instead of
      storing their activations. True: all. Saves memory and costs time.
  """

  variant_dict: Mapping[str, dict] = {}
  final_conv: hk.Conv2D | None = None
  pool_padding: Any = None  # Padding of a 3x3 max pool after the stem.
  joins_columns = False  # The stem supports `conv.space_to_depth`.

  def __init__(
    self,
    num_classes: int,
    variant: str,
    activation: base.Activation,
    drop_rate: float | None,
    fc_init: hk.initializers.Initializer | None,
    name: str,
    remat: bool | int,
  ):
    """Build the last layer.

    Raises:
      ValueError: if the variant is unknown.
    """
    super().__init__(name=name)
    if variant not in self.variant_dict:
      raise ValueError(
        f'No variant {variant!r}; there are {", ".join(self.variant_dict)}.'
      )
    self.variant, self.row = variant, self.variant_dict[variant]
    row = self.row
    self.train_imsize = row.get('train_imsize')
    self.test_imsize = row.get('test_imsize')
    self.depth_pattern, self.activation = row['depth'], activation
    self.drop_rate = (
      row.get('drop_rate', 0.0) if drop_rate is None else drop_rate
    )
    self.remat, self.fc = count_remat(remat), None
    if num_classes:
      fc_init = fc_init or hk.initializers.RandomNormal(stddev=0.01)
      self.fc = hk.Linear(num_classes, w_init=fc_init, name='linear')

  def __call__(
    self,
    x: jax.Array,
    is_training: bool = True,
    return_metrics: bool = False,
  ) -> dict[str, jax.Array]:
    """Compute logits, pooled features and feature maps.

    Args:
      x: normalized images [B, H, W, 3].
      is_training: apply dropout and stochastic depth. BatchNorm uses the batch
        statistics and updates its averages; in evaluation it uses the averages.
      return_metrics: add the signal metrics.

    Returns:
      `logits` [B, num_classes].
      `pool` [B, C], before dropout.
      `features`, the five maps at strides 2, 4, 8, 16 and 32, before the
      activation (after it in post-activation networks).
      With `return_metrics`, scalars `avg_sq_mean_{i}` and `avg_var_{i}` (i = 0:
      the stem after pooling, i + 1: block i) and `res_avg_var_{i}`, the
      variance of block i's residual branch.
    """
    out, stride_2 = self._run_stem(x, is_training)
    features = [stride_2]
    if self.pool_padding is not None:
      out = base.max_pool_3x3(out, self.pool_padding)
    metrics = base.signal_metrics(out, 0) if return_metrics else {}

    index = 0
    for blocks in self.stages:
      for block in blocks:
        out, branch = call_block(
          block, out, is_training, remat=index < self.remat
        )
        if return_metrics:
          metrics[f'res_avg_var_{index}'] = base.channel_variance(branch)
          metrics.update(base.signal_metrics(out, index + 1))
        index += 1
      if blocks is self.stages[-1] and self.final_conv is not None:
        out = self.final_conv(out)
      out = _tap(out, len(features))
      features.append(out)

    pool = jnp.mean(self._before_pool(out, is_training), axis=(1, 2))
    out = self._before_fc(pool, is_training)
    outputs = {'pool': pool, 'features': features}
    if self.fc is not None:
      outputs['logits'] = self.fc(out)
    return {**outputs, **metrics}

  def count_flops(self, h: int, w: int) -> tuple[list[int], int]:
    """Return the multiply-adds for an image [h, w], per part and in total."""
    counts, ch = [], 3
    for module in self.stem:
      h, w = residual.strided(h, w, module.stride[0])
      counts.append(residual.conv_flops(module, ch, h, w))
      ch = module.output_channels
    if self.pool_padding is not None:
      h, w = residual.strided(h, w, 2)
    for block in sum(self.stages, []):
      counts.append(block.count_flops(h, w))
      h, w = residual.strided(h, w, block.stride)
      ch = block.out_ch
    if self.final_conv is not None:
      counts.append(residual.conv_flops(self.final_conv, ch, h, w))
      ch = self.final_conv.output_channels
    if self.fc is not None:
      counts.append(ch * self.fc.output_size)
    return counts, sum(counts)

  def _run_stem(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Return the stem's output, and the map at stride 2."""
    factor = 1
    if self.joins_columns and not _taps.get():
      strides = [module.stride[1] for module in self.stem]
      factor = conv.stem_factor(x.shape[2], strides)
    out, stride_2 = conv.space_to_depth(x, factor), None
    for i, module in enumerate(self.stem):
      if i == len(self.stem) - 1 and i > 0:  # This one has the second stride.
        out = _tap(out, 0)
        stride_2 = conv.depth_to_space(out, factor)
      if i > 0:
        out = self.activation(out)
      out = module(out, factor=factor) if factor > 1 else module(out)
      factor = max(factor // module.stride[1], 1)
    out = self._after_stem(out, is_training)
    if stride_2 is None:
      stride_2 = out = _tap(out, 0)
    return out, stride_2

  def _after_stem(self, x: jax.Array, is_training: bool) -> jax.Array:
    return x

  def _before_pool(self, x: jax.Array, is_training: bool) -> jax.Array:
    return self.activation(x)

  def _before_fc(self, x: jax.Array, is_training: bool) -> jax.Array:
    if is_training and self.drop_rate > 0:
      x = hk.dropout(hk.next_rng_key(), self.drop_rate, x)
    return x


def build_stages(
  make_block: Callable[..., residual.ResidualBlock],
  in_ch: int,
  widths: Sequence[int],
  depths: Sequence[int],
  strides: Sequence[int] = (1, 2, 2, 2),
  stochdepth_rate: float = 0.0,
  alpha: float | None = None,
  reaches_rate: bool = False,
  first: Mapping[str, Any] | None = None,
) -> list[list[residual.ResidualBlock]]:
  """Build the blocks of all stages.

  Args:
    make_block: makes a block from (in_ch, out_ch), `stride`, `stochdepth_rate`
      and, if alpha is given, `alpha` and `beta`.
    in_ch: output channels of the stem.
    widths: channels of each stage.
    depths: number of blocks of each stage.
    strides: stride of the first block of each stage.
    stochdepth_rate: final rate; the rates of the blocks grow linearly from 0.
    alpha: scale of the residual branches. It determines beta.
    reaches_rate: the last block has the final rate. False: a block after the
      last one would have it.
    first: additional arguments of the network's first block.
  """
  stages, index, kwargs = [], 0, dict(first or {})
  variances = expected_variances(depths, alpha or 0.0)
  steps = max(1, len(variances) - reaches_rate)
  for out_ch, depth, stride in zip(widths, depths, strides, strict=True):
    stages.append([])
    for block_index in range(depth):
      kwargs['stochdepth_rate'] = stochdepth_rate * index / steps
      if alpha is not None:
        kwargs |= {'alpha': alpha, 'beta': variances[index] ** -0.5}
      stride = stride if block_index == 0 else 1
      stages[-1].append(make_block(in_ch, out_ch, stride=stride, **kwargs))
      in_ch, index, kwargs = out_ch, index + 1, {}
  return stages


def build_resnet(
  which_conv: Callable[..., hk.Conv2D],
  make_block: Callable[..., residual.ResidualBlock],
  width: float,
  depths: Sequence[int],
  **kwargs: Any,
) -> tuple[list[hk.Conv2D], list[list[residual.ResidualBlock]]]:
  """Build the stem and the stages of a ResNet; see `build_stages`."""
  stem_ch = int(16 * width)
  widths = [int(w * width) for w in (64, 128, 256, 512)]
  stages = build_stages(make_block, stem_ch, widths, depths, **kwargs)
  return [which_conv(stem_ch, 7, stride=2, name='initial_conv')], stages


def expected_variances(depths: Sequence[int], alpha: float) -> list[float]:
  """Return the expected variance of each block's input.

  Each branch adds alpha^2 to the variance of its shortcut. The first block of a
  stage has the final variance of the previous stage as input. Its shortcut
  comes after the activation, which resets the variance to 1 (NF-ResNets,
  section 3). `depths` is the number of blocks in each stage.
  """
  variances, variance = [], 1.0
  for depth in depths:
    for block_index in range(depth):
      variances.append(variance)
      if block_index == 0:
        variance = 1.0
      variance += alpha**2
  return variances


def call_block(
  block: Callable[..., tuple[jax.Array, jax.Array]],
  x: jax.Array,
  is_training: bool,
  remat: bool,
) -> tuple[jax.Array, jax.Array]:
  """Return block(x, is_training).

  With `remat`, only the input is stored for the backward pass, which recomputes
  the block, including the standardized kernels (arXiv 1604.06174).
  """
  if not remat:
    return block(x, is_training)
  return hk.remat(lambda x: block(x, is_training))(x)


def count_remat(remat: bool | int) -> float:
  """Return the number of recomputed blocks; infinity for True.

  Raises:
    ValueError: if `remat` is neither a bool nor a non-negative int.
  """
  if remat is True:
    return math.inf
  if not isinstance(remat, int) or remat < 0:
    raise ValueError(f'remat is {remat!r}; it must be True, False or a number.')
  return remat


def tapped(
  taps: Mapping[int, jax.Array],
) -> contextlib.AbstractContextManager[None]:
  """Add arrays to the feature maps of networks called in this context.

  The gradient with respect to an array of zeros is the gradient with respect to
  the feature map.

  Args:
    taps: {index in `features`: [B, h, w, c]}.
  """
  return conv.setting(_taps, taps)


def _tap(x: jax.Array, index: int) -> jax.Array:
  taps = _taps.get() or {}
  return x + taps[index] if index in taps else x
