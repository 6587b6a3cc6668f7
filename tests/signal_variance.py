"""Compares the variances in a network with what its analysis expects."""

import golden_lib
import jax.numpy as jnp
import numpy as np

from nfnets import base, conv

DEPTHS = [2, 3, 0, 0]


def _draw_params(transformed, seed):
  """Draws parameters as at initialization, but with skip gains of one.

  Squeeze and excite gets kernels of zero: its gate is 2 * sigmoid(0) = 1. The
  standardization of kernels makes their scale irrelevant.
  """
  rng = np.random.default_rng(seed)

  def value(module, name, leaf):
    if name in ('gain', 'skip_gain'):
      return np.ones(leaf.shape, np.float32)
    if name != 'w' or 'squeeze_excite' in module:
      return np.zeros(leaf.shape, np.float32)
    return rng.standard_normal(leaf.shape).astype(np.float32)

  return golden_lib.with_leaves(golden_lib.init_shapes(transformed), value)


def leave_out_what_the_analysis_does(monkeypatch):
  """Replaces pooling by its stride, and zero padding by wrapping around.

  The analysis ignores that means of pixels have less variance, that maxima
  have a mean, and that zeros beyond the edge have neither.
  """

  def subsample(x, *_):
    return x[:, ::2, ::2]

  monkeypatch.setattr(base, 'avg_pool_2x2', subsample)
  monkeypatch.setattr(base, 'max_pool_3x3', subsample)
  conv2d = conv.conv2d

  def wrapping(x, w, **kwargs):
    side = w.shape[0] // 2
    x = jnp.pad(x, ((0, 0), (side, side), (side, side), (0, 0)), 'wrap')
    return conv2d(x, w, **{**kwargs, 'padding': 'VALID'})

  monkeypatch.setattr(conv, 'conv2d', wrapping)


def check(monkeypatch, model, alpha, **kwargs):
  """Checks a network of DEPTHS blocks, to 10 %."""
  leave_out_what_the_analysis_does(monkeypatch)
  transformed = golden_lib.transform(model, 10, alpha=alpha, **kwargs)
  num_blocks = sum(DEPTHS)

  @golden_lib.jit
  def measure(params, images):
    out = transformed.apply(params, None, images, metrics=True)
    return (
      [out[f'avg_var_{i}'] for i in range(num_blocks + 1)],
      [out[f'res_avg_var_{i}'] for i in range(num_blocks)],
      [out[f'avg_sq_mean_{i}'] for i in range(num_blocks + 1)],
    )

  rows = []
  for seed in range(4):
    images = np.random.default_rng(seed).standard_normal((8, 32, 32, 3))
    params = _draw_params(transformed, seed)
    rows.append(measure(params, np.float32(images)))
  avg_var, res_avg_var, avg_sq_mean = (
    np.mean(row, axis=0) for row in zip(*rows, strict=True)
  )
  # Inside a stage, each block adds alpha**2. A stage's first block starts from
  # 1, the variance of its activated shortcut.
  expected = [1.0]
  for depth in DEPTHS:
    expected += [1 + (k + 1) * alpha**2 for k in range(depth)]
  np.testing.assert_allclose(avg_var, expected, rtol=0.1)
  np.testing.assert_allclose(res_avg_var, 1, rtol=0.1)
  # Standardized kernels keep the mean of each channel near zero.
  assert (avg_sq_mean < 0.1 * avg_var).all()
