"""Two-dimensional convolution with a fast lowering for each platform.

XLA's CPU backend computes a grouped convolution many times slower than its
groups one by one, and the gradients of a 1x1 convolution about two times slower
than those of a matrix product. `conv2d` chooses the form.
`benchmarks/conv_lowering.py` compares both forms.

A TPU multiplies 128 channels at a time, so a stem of 16 to 64 channels leaves
most of its matrix unit idle. `space_to_depth` moves neighbouring columns of
pixels into the channels and pads the kernel with zeros; the sums do not change.
The TPU compiler estimates 5 % less time for NFNet-F0's training step
(docs/planning.md).
"""

from collections.abc import Iterator, Sequence
import contextlib
import contextvars
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

_DIMENSION_NUMBERS = ('NHWC', 'HWIO', 'NHWC')
LOWERINGS = ('auto', 'plain', 'split', 'space_to_depth', 'portable')
# Context variables, because threads may trace different programs.
_lowering = contextvars.ContextVar('lowering', default='auto')
_in_loop = contextvars.ContextVar('in_loop', default=False)
_per_example = contextvars.ContextVar('per_example', default=False)


@contextlib.contextmanager
def setting(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
  """Set a context variable inside this context."""
  token = variable.set(value)
  try:
    yield
  finally:
    variable.reset(token)


def lowering(name: str) -> contextlib.AbstractContextManager[None]:
  """Choose the form of the convolutions traced in this context.

  Set the form if a program is traced on one platform to run on another
  (`jax.export`).

  Args:
    name: 'plain': XLA's convolution.
      'split': groups one by one, and 1x1 kernels as matrix products.
      'space_to_depth': 'plain', with the columns of NFNet's stem in the
      channels.
      'portable': 'plain', with GELU and average pooling in forms that ONNX
      runtimes recognize.
      'auto': 'split' on a CPU, 'space_to_depth' on a TPU, else 'plain',
      according to JAX's default backend.

  Raises:
    ValueError: if the name is unknown.
  """
  if name not in LOWERINGS:
    raise ValueError(f'No lowering {name!r}; there are {LOWERINGS}.')
  return setting(_lowering, name)


def chosen() -> str:
  """Return the form of this context, with 'auto' resolved."""
  if _lowering.get() != 'auto':
    return _lowering.get()
  forms = {'cpu': 'split', 'tpu': 'space_to_depth'}
  return forms.get(jax.default_backend(), 'plain')


def in_loop() -> contextlib.AbstractContextManager[None]:
  """Mark code that is traced as the body of a loop.

  XLA's CPU backend has fast code for one layout of convolutions. It converts
  convolutions to this layout, but not inside loops, so their gradients are 50
  times slower in `jax.lax.scan`. In this context, the 'split' lowering writes
  the gradients in the fast layout. They have no forward-mode derivative.
  """
  return setting(_in_loop, True)


def per_example() -> contextlib.AbstractContextManager[None]:
  """Mark code in which `jax.vmap` computes per-example gradients.

  The gradient of a kernel is then a convolution with one group per example,
  which is slow on XLA's CPU backend. In this context, the 'split' lowering
  computes it with one matrix product per pixel of the kernel.
  """
  return setting(_per_example, True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_with_gradients(x, w, stride, padding, rate):
  """Convolve; the gradients are convolutions in the same layout."""
  return lax.conv_general_dilated(
    x,
    w,
    window_strides=stride,
    padding=padding,
    rhs_dilation=rate,
    dimension_numbers=_DIMENSION_NUMBERS,
  )


def _conv_forward(x, w, stride, padding, rate):
  return _conv_with_gradients(x, w, stride, padding, rate), (x, w)


def _conv_backward(stride, padding, rate, residuals, grad):
  x, w = residuals
  sizes = x.shape[1:3]
  if isinstance(padding, str):
    kernel = [(k - 1) * r + 1 for k, r in zip(w.shape[:2], rate, strict=True)]
    padding = lax.padtype_to_pads(sizes, kernel, stride, padding)
  # Along each axis, the outputs are at the pixels 0, s, ..., last - low of x.
  for_x, for_w = [], []
  for size, out, k, s, r, (low, _) in zip(
    sizes, grad.shape[1:3], w.shape[:2], stride, rate, padding, strict=True
  ):
    reach, last = (k - 1) * r, (out - 1) * s
    for_x.append((reach - low, size - 1 - last + low))
    for_w.append((low, reach + 1 + last - size - low))
  grad_x = lax.conv_general_dilated(
    grad,
    jnp.flip(w, (0, 1)).transpose(0, 1, 3, 2),
    window_strides=(1, 1),
    padding=for_x,
    lhs_dilation=stride,
    rhs_dilation=rate,
    dimension_numbers=_DIMENSION_NUMBERS,
  )
  if _per_example.get():
    return grad_x, _products(x, w, grad, stride, for_w, rate)
  # The sum runs over the batch, which takes the place of the channels.
  grad_w = lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    grad.transpose(1, 2, 0, 3),
    window_strides=rate,
    padding=for_w,
    rhs_dilation=stride,
    dimension_numbers=_DIMENSION_NUMBERS,
  )
  return grad_x, grad_w.transpose(1, 2, 0, 3)


def _products(x, w, grad, stride, padding, rate):
  """Return the gradient of a kernel, pixel by pixel."""
  x = lax.pad(
    x,
    jnp.zeros((), x.dtype),
    ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)),
  )
  height, width = (
    (n - 1) * s + 1 for n, s in zip(grad.shape[1:3], stride, strict=True)
  )
  rows = []
  for i in range(w.shape[0]):
    for j in range(w.shape[1]):
      top, left = i * rate[0], j * rate[1]
      part = x[
        :, top : top + height : stride[0], left : left + width : stride[1]
      ]
      rows.append(jnp.einsum('nhwc,nhwk->ck', part, grad))
  return jnp.stack(rows).reshape(w.shape)


_conv_with_gradients.defvjp(_conv_forward, _conv_backward)


def conv2d(
  x: jax.Array,
  w: jax.Array,
  *,
  stride: Sequence[int] = (1, 1),
  padding: str | Sequence[tuple[int, int]] = 'SAME',
  rate: Sequence[int] = (1, 1),
  groups: int = 1,
) -> jax.Array:
  """Convolve images with a kernel.

  Args:
    x: [B, H, W, C].
    w: kernel [kh, kw, C // groups, K], with x's dtype.
    stride: vertical and horizontal stride, in pixels.
    padding: 'SAME', 'VALID' or pixels ((top, bottom), (left, right)).
    rate: vertical and horizontal dilation of the kernel.
    groups: number of channel groups.

  Returns:
    [B, H', W', K], with x's dtype.
  """
  stride, rate = tuple(stride), tuple(rate)
  if not isinstance(padding, str):
    padding = tuple(map(tuple, padding))

  split = chosen() == 'split'

  def plain(x, w, groups):
    if split and (_in_loop.get() or _per_example.get()):
      return _conv_with_gradients(x, w, stride, padding, rate)
    return lax.conv_general_dilated(
      x,
      w,
      window_strides=stride,
      padding=padding,
      rhs_dilation=rate,
      dimension_numbers=_DIMENSION_NUMBERS,
      feature_group_count=groups,
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


def stem_factor(width: int, strides: Sequence[int]) -> int:
  """Return the space-to-depth factor of a stem.

  Args:
    width: image width, in pixels.
    strides: horizontal stride of each convolution.

  Returns:
    The product of the strides, so that the output of the last convolution has
    the usual layout. 1 with other lowerings, or if the factor does not divide
    the width.
  """
  factor = math.prod(strides)
  return 1 if chosen() != 'space_to_depth' or width % factor else factor


def space_to_depth(x: jax.Array, factor: int) -> jax.Array:
  """Return images [B, H, W, C] as [B, H, W / factor, factor * C]."""
  return x.reshape(*x.shape[:2], -1, factor * x.shape[3])


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
  """Return images [B, H, W / factor, factor * C] as [B, H, W, C]."""
  return x.reshape(*x.shape[:2], -1, x.shape[3] // factor)


def conv2d_space_to_depth(
  x: jax.Array, w: jax.Array, *, stride: Sequence[int], factor: int
) -> jax.Array:
  """Convolve images after `space_to_depth`, with SAME padding.

  Args:
    x: [B, H, W / factor, factor * C].
    w: kernel [kh, kw, C, K], with x's dtype.
    stride: vertical and horizontal stride, in pixels.
    factor: space-to-depth factor, a multiple of the horizontal stride.

  Returns:
    [B, H', W / factor, factor / stride[1] * K], with x's dtype: the result of
    `conv2d` after `space_to_depth` with factor / stride[1].
  """
  kh, kw, c, k = w.shape
  step = stride[1]
  size = x.shape[1], factor * x.shape[2]
  rows, (low, _) = lax.padtype_to_pads(size, (kh, kw), stride, 'SAME')
  # Neighbouring groups of columns that the outputs of one group depend on.
  before = -(-low // factor)
  after = (factor - step - low + kw - 1) // factor
  taps = before + 1 + after
  kernels = []
  for first in range(0, factor, step):
    start = before * factor + first - low
    rest = taps * factor - start - kw
    padded = jnp.pad(w, ((0, 0), (start, rest), (0, 0), (0, 0)))
    kernels.append(padded.reshape(kh, taps, factor * c, k))
  return lax.conv_general_dilated(
    x,
    jnp.concatenate(kernels, axis=3),
    window_strides=(stride[0], 1),
    padding=(rows, (before, after)),
    dimension_numbers=_DIMENSION_NUMBERS,
  )
