"""Two-dimensional convolution, lowered to what is fast on each platform.

XLA's CPU backend computes a grouped convolution many times slower than the
same groups one after the other, and the gradients of a 1x1 convolution about
twice slower than those of the matrix product that it is. `conv2d` chooses the
form; networks do not know about it. `benchmarks/conv_lowering.py` measures
both forms side by side.
"""

from collections.abc import Iterator, Sequence
import contextlib

import jax
from jax import lax
import jax.numpy as jnp

_DIMENSION_NUMBERS = ('NHWC', 'HWIO', 'NHWC')
LOWERINGS = ('auto', 'plain', 'split')
_lowering = 'auto'


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
  """Chooses the form of every convolution traced inside this context.

  Args:
    name: 'plain' is XLA's own convolution; 'split' computes groups one by one
      and 1x1 kernels as matrix products; 'auto' is 'split' where JAX's default
      backend is the CPU and 'plain' elsewhere. Name the form when a program is
      traced on one platform to run on another (`jax.export`).

  Yields:
    Nothing.

  Raises:
    ValueError: if there is no such lowering.
  """
  global _lowering
  if name not in LOWERINGS:
    raise ValueError(f'No lowering {name!r}; there are {LOWERINGS}.')
  previous, _lowering = _lowering, name
  try:
    yield
  finally:
    _lowering = previous


def conv2d(
  x: jax.Array,
  w: jax.Array,
  *,
  stride: Sequence[int] = (1, 1),
  padding: str | Sequence[tuple[int, int]] = 'SAME',
  rate: Sequence[int] = (1, 1),
  groups: int = 1,
) -> jax.Array:
  """Convolves images with a kernel.

  Args:
    x: [B, H, W, C].
    w: kernel [kh, kw, C // groups, K], of x's dtype.
    stride: vertical and horizontal step, in pixels.
    padding: 'SAME', 'VALID' or pixels ((top, bottom), (left, right)).
    rate: vertical and horizontal dilation of the kernel.
    groups: how many groups the channels are in.

  Returns:
    [B, H', W', K], of x's dtype.
  """
  stride, rate = tuple(stride), tuple(rate)

  def plain(x, w, groups):
    return lax.conv_general_dilated(
      x,
      w,
      window_strides=stride,
      padding=padding,
      rhs_dilation=rate,
      dimension_numbers=_DIMENSION_NUMBERS,
      feature_group_count=groups,
    )

  split = _lowering == 'split' or (
    _lowering == 'auto' and jax.default_backend() == 'cpu'
  )
  if not split:
    return plain(x, w, groups)
  if groups > 1:
    return jnp.concatenate(
      [
        plain(x_group, w_group, 1)
        for x_group, w_group in zip(
          jnp.split(x, groups, axis=3),
          jnp.split(w, groups, axis=3),
          strict=True,
        )
      ],
      axis=3,
    )
  if w.shape[:2] == (1, 1) and isinstance(padding, str):
    # A 1x1 kernel needs no padding, so a stride only drops rows and columns.
    return jnp.matmul(x[:, :: stride[0], :: stride[1]], w[0, 0])
  return plain(x, w, 1)
