"""Convolutions of joined columns are those of the images."""

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params
import tiny_networks

from nfnets import conv, nfnet


@pytest.mark.parametrize(
  ('kernel', 'stride', 'joined'),
  [
    ((3, 3), (1, 1), 2),
    ((3, 3), (2, 2), 2),
    ((3, 3), (2, 2), 4),
    ((3, 3), (1, 1), 4),
    ((1, 1), (1, 1), 3),
    ((7, 7), (2, 2), 4),
    ((5, 3), (2, 1), 2),
    ((3, 7), (1, 2), 2),
  ],
)
def test_joined_columns_change_no_value_and_no_gradient(kernel, stride, joined):
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((2, 9, 24, 5)))
  w = np.float32(rng.standard_normal((*kernel, 5, 6)))

  def as_they_are(x, w):
    with conv.lowering('plain'):
      return conv.conv2d(x, w, stride=stride)

  def joined_ones(x, w):
    x = conv.space_to_depth(x, joined)
    out = conv.conv2d_space_to_depth(x, w, stride=stride, factor=joined)
    return conv.depth_to_space(out, joined // stride[1])

  def run(fn):
    @golden_lib.jit
    def outputs_and_gradients(x, w):
      out, vjp = jax.vjp(fn, x, w)
      return out, *vjp(jnp.sin(jnp.arange(out.size)).reshape(out.shape))

    return outputs_and_gradients(x, w)

  results = zip(run(joined_ones), run(as_they_are), strict=True)
  for ours, theirs in results:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert golden_lib.rel_l2(ours, theirs) < 1e-6


@pytest.fixture(scope='module')
def network():
  """A small NFNet: from images to logits and maps, and its parameters."""
  with tiny_networks.variants([1, 1, 0, 0]):
    transformed = hk.transform(
      lambda x: nfnet.NFNet(10, variant='tiny')(x, is_training=False)
    )
    shapes = golden_lib.init_shapes(transformed)

    def apply(params, images, lowering):
      with conv.lowering(lowering):
        out = transformed.apply(params, None, images)
      return out['logits'], *out['features']

    yield apply, reference_params.reference_params(shapes)


@pytest.mark.slow
def test_a_network_of_joined_columns_is_the_same(network):
  apply, params = network
  images = reference_params.reference_images(2, 32, 32)

  def run(lowering):
    @golden_lib.jit
    def outputs_and_gradient(params):
      out, vjp = jax.vjp(lambda p: apply(p, images, lowering), params)
      return out, vjp(jax.tree.map(jnp.ones_like, out))

    return jax.tree.leaves(outputs_and_gradient(params))

  for ours, theirs in zip(run('space_to_depth'), run('plain'), strict=True):
    assert ours.shape == theirs.shape
    assert golden_lib.rel_l2(ours, theirs) < 1e-4  # Sums that nearly cancel.


@pytest.mark.parametrize('width', [32, 30])
def test_columns_are_joined_where_they_divide(network, width):
  apply, params = network
  images = jnp.zeros((1, 32, width, 3))
  program = str(
    jax.make_jaxpr(lambda x: apply(params, x, 'space_to_depth'))(images)
  )
  assert ('[1,32,8,12]' in program) == (width == 32)


def test_a_tpu_joins_columns_and_a_cpu_does_not(monkeypatch):
  for platform, joined in (('cpu', 1), ('gpu', 1), ('tpu', 4)):
    monkeypatch.setattr(jax, 'default_backend', lambda p=platform: p)
    assert conv.stem_factor(32, (2, 1, 1, 2)) == joined
