"""Convolutions of images whose columns are side by side in the channels.

A TPU multiplies 128 channels at a time, whether there are so many or not, so a
stem with 16 to 64 of them leaves most of it idle. With two columns of pixels as
one that has twice the channels, the kernel has zeros in it and no sum changes;
of NFNet-F0's whole training step it takes a twentieth of the time that the TPU
compiler estimates (docs/planning.md).
"""

from collections.abc import Sequence
import math

import jax
from jax import lax
import jax.numpy as jnp

from nfnets import conv


def side_by_side(width: int, strides: Sequence[int]) -> int:
  """Returns how many columns the first of a row of convolutions should take.

  Args:
    width: of the images, in pixels.
    strides: the horizontal step of each convolution.

  Returns:
    So many that the last convolution gives columns one by one again; 1 where
    nothing is gained (see `conv.lowering`), or where they do not divide.
  """
  columns = math.prod(strides)
  return 1 if conv.chosen() != 'columns' or width % columns else columns


def join(x: jax.Array, columns: int) -> jax.Array:
  """Returns images [B, H, W, C] as [B, H, W / columns, columns * C]."""
  return x.reshape(*x.shape[:2], -1, columns * x.shape[3])


def separate(x: jax.Array, columns: int) -> jax.Array:
  """Returns images [B, H, W / columns, columns * C] as [B, H, W, C]."""
  return x.reshape(*x.shape[:2], -1, x.shape[3] // columns)


def conv2d(
  x: jax.Array, w: jax.Array, *, stride: Sequence[int], columns: int
) -> jax.Array:
  """Convolves images of joined columns, with SAME padding.

  Args:
    x: [B, H, W / columns, columns * C].
    w: kernel [kh, kw, C, K], of x's dtype.
    stride: vertical and horizontal step, in pixels.
    columns: how many columns are joined; a multiple of the horizontal step.

  Returns:
    [B, H', W / columns, columns / stride[1] * K], of x's dtype: what
    `conv.conv2d` gives, with columns / stride[1] of its columns joined.
  """
  kh, kw, c, k = w.shape
  step = stride[1]
  size = x.shape[1], columns * x.shape[2]
  rows, (low, _) = lax.padtype_to_pads(size, (kh, kw), stride, 'SAME')
  # The groups of columns that the outputs of one group need, around it.
  before = -(-low // columns)
  after = (columns - step - low + kw - 1) // columns
  taps = before + 1 + after
  kernels = []
  for first in range(0, columns, step):
    start = before * columns + first - low
    rest = taps * columns - start - kw
    padded = jnp.pad(w, ((0, 0), (start, rest), (0, 0), (0, 0)))
    kernels.append(padded.reshape(kh, taps, columns * c, k))
  return lax.conv_general_dilated(
    x,
    jnp.concatenate(kernels, axis=3),
    window_strides=(stride[0], 1),
    padding=(rows, (before, after)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
