"""Two-dimensional convolution, lowered to what is fast on each platform.

XLA's CPU backend computes a grouped convolution many times slower than the
same groups one after the other, and the gradients of a 1x1 convolution about
twice slower than those of the matrix product that it is. `conv2d` chooses the
form; networks do not know about it. `benchmarks/conv_lowering.py` measures
both forms side by side.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools

import jax
from jax import lax
import jax.numpy as jnp

_DIMENSION_NUMBERS = ('NHWC', 'HWIO', 'NHWC')
LOWERINGS = ('auto', 'plain', 'split', 'columns')
_lowering = 'auto'
_in_loop = False
_of_examples = False


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
  """Chooses the form of every convolution traced inside this context.

  Args:
    name: 'plain' is XLA's own convolution; 'split' computes groups one by one
      and 1x1 kernels as matrix products; 'columns' is 'plain', with columns of
      a stem side by side (`nfnets.columns`); 'auto' is 'split' where JAX's
      default backend is the CPU, 'columns' where it is a TPU, and 'plain'
      elsewhere. Name the form when a program is traced on one platform to run
      on another (`jax.export`).

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


def chosen() -> str:
  """Returns the form that holds here, 'auto' resolved."""
  if _lowering != 'auto':
    return _lowering
  forms = {'cpu': 'split', 'tpu': 'columns'}
  return forms.get(jax.default_backend(), 'plain')


@contextlib.contextmanager
def in_loop() -> Iterator[None]:
  """Says that what is traced here becomes the body of a loop.

  XLA's CPU backend brings the convolutions of a program into the form that it
  has fast code for, but not those in a loop, and the gradients of a convolution
  are in another form: inside `jax.lax.scan` they are 50 times slower. Here, the
  'split' lowering writes them in that form itself. Such convolutions have no
  forward-mode derivative.

  Yields:
    Nothing.
  """
  global _in_loop
  previous, _in_loop = _in_loop, True
  try:
    yield
  finally:
    _in_loop = previous


@contextlib.contextmanager
def of_examples() -> Iterator[None]:
  """Says that `jax.vmap` takes gradients of one example each here.

  Then a kernel's gradients are a convolution with a group for each example,
  which XLA's CPU backend is as slow at as at other groups. Here, the 'split'
  lowering writes them as matrix products, one for each pixel of the kernel.

  Yields:
    Nothing.
  """
  global _of_examples
  previous, _of_examples = _of_examples, True
  try:
    yield
  finally:
    _of_examples = previous


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_with_gradients(x, w, stride, padding, rate):
  """Convolves, with gradients that are [B, H, W, C] by [kh, kw, C, K], too."""
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
  # Along each axis the output is at x's pixels 0, s, ..., last - low.
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
  if _of_examples:
    return grad_x, _products(x, w, grad, stride, for_w, rate)
  # The images of the batch are the channels that are summed over.
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
  """Returns the gradient of a kernel, its pixels one by one."""
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
  if not isinstance(padding, str):
    padding = tuple(map(tuple, padding))

  split = chosen() == 'split'

  def plain(x, w, groups):
    if split and (_in_loop or _of_examples):
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
