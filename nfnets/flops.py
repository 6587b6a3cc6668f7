"""Counts a network's multiply-adds from its sub-modules, without running it."""

from collections.abc import Sequence
import math

import haiku as hk


def count_flops(
  h: int,
  w: int,
  stem: Sequence[hk.Conv2D],
  stages: Sequence[Sequence[hk.Module]],
  final_conv: hk.Conv2D | None,
  fc: hk.Linear | None,
  max_pool: bool = False,
) -> tuple[list[int], int]:
  """Counts the multiply-adds of a network's convolutions and matrix products.

  Args:
    h: height of the image, in pixels.
    w: width of the image, in pixels.
    stem: the convolutions before the blocks, one after the other.
    stages: lists of residual blocks, with the attributes `in_ch`, `stride` and
      `conv0`, `conv1`, `conv2`; some have `conv1b`, `conv_shortcut` and gates.
    final_conv: the convolution after the blocks, or None.
    fc: the last layer, or None.
    max_pool: whether a pool of stride 2 follows the stem.

  Returns:
    The numbers of each convolution of the stem, of each block, of the final
    convolution and of the last layer, for one image; and their sum.
  """
  counts, ch = [], 3
  for module in stem:
    h, w = _strided(h, w, module.stride[0])
    counts.append(_count_conv_flops(ch, module, h, w))
    ch = module.output_channels
  if max_pool:
    h, w = _strided(h, w, 2)
  for block in sum(stages, []):
    counts.append(_count_block_flops(block, h, w))
    h, w = _strided(h, w, block.stride)
    ch = block.conv2.output_channels
  if final_conv is not None:
    counts.append(_count_conv_flops(ch, final_conv, h, w))
    ch = final_conv.output_channels
  if fc is not None:
    counts.append(ch * fc.output_size)
  return counts, sum(counts)


def _count_block_flops(block: hk.Module, h: int, w: int) -> int:
  """Returns the multiply-adds of a residual block for one image [h, w]."""

  def conv_flops(name, in_ch, h, w):
    module = getattr(block, name, None)
    return 0 if module is None else _count_conv_flops(in_ch, module, h, w)

  width = block.conv0.output_channels
  flops = conv_flops('conv0', block.in_ch, h, w)
  h, w = _strided(h, w, block.stride)
  for name in ('conv1', 'conv1b', 'conv2'):
    flops += conv_flops(name, width, h, w)
  flops += conv_flops('conv_shortcut', block.in_ch, h, w)
  for name in ('se', 'inner_gate', 'last_gate'):
    gate = getattr(block, name, None)
    flops += 0 if gate is None else gate.count_flops()
  return flops


def _count_conv_flops(in_ch: int, module: hk.Conv2D, h: int, w: int) -> int:
  """Returns the multiply-adds of a convolution that gives one image [h, w]."""
  kernel = math.prod(module.kernel_shape) * in_ch // module.feature_group_count
  return h * w * kernel * module.output_channels


def _strided(h: int, w: int, stride: int) -> tuple[int, int]:
  """Returns the size of an image after SAME padding and a stride."""
  return -(-h // stride), -(-w // stride)
