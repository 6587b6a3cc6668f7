"""Computing blocks again in the backward pass: the same, with less memory."""

import functools
import math

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params
import tiny_networks
from tiny_networks import NETWORKS

from nfnets import (
  base,
  fixup_resnet,
  network,
  nf_regnet,
  nf_resnet,
  nfnet,
  resnet,
  skipinit_resnet,
  timm_nets,
)


@pytest.fixture(autouse=True, scope='module')
def tiny():
  """Four blocks, of which two are no transitions."""
  with tiny_networks.variants([2, 2, 0, 0]):
    yield


def residuals(f, *args) -> list:
  """Returns the arrays that the backward pass keeps, as ShapeDtypeStructs."""
  return jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *args))


def num_elements(leaves) -> int:
  return sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize(
  'name, remat, expected',
  [
    *((name, 3, [1, 1, 1, 0]) for name in NETWORKS),
    ('NFNet', False, [0, 0, 0, 0]),
    ('NFNet', 0, [0, 0, 0, 0]),
    ('NFNet', 1, [1, 0, 0, 0]),
    ('NFNet', 100, [1, 1, 1, 1]),
    ('NFNet', True, [1, 1, 1, 1]),
  ],
)
def test_the_first_blocks_alone_are_recomputed(
  name, remat, expected, monkeypatch
):
  chosen = []

  def call_block(block, x, is_training, remat):
    chosen.append(remat)
    return block(x, is_training)

  monkeypatch.setattr(network, 'call_block', call_block)
  model, kwargs = NETWORKS[name]
  golden_lib.init_shapes(
    golden_lib.transform_with_state(model, 10, **kwargs, remat=remat)
  )
  assert chosen == expected


def make_block(name, rate):
  """Returns a block [8 to 16 channels, stride 2] with stochastic depth."""
  kwargs = {'stride': 2, 'stochdepth_rate': rate}
  if name == 'ResNet':
    norm = functools.partial(hk.BatchNorm, True, True, 0.9)
    return resnet.ResBlockV2(8, 16, norm, base.Conv2D, stride=2)
  if name == 'FixUp_ResNet':
    return fixup_resnet.ResBlock(4, 8, 16, **kwargs)
  if name == 'NormFreeNet':
    row = timm_nets.NormFreeNet.variant_dict['tiny']
    return timm_nets.NFBlock(row, 8, 16, 0.5, **kwargs)
  if name == 'NFNet':
    kwargs['group_size'] = 4
  return BLOCKS[name](8, 16, **kwargs)


BLOCKS = {
  'NFNet': nfnet.NFBlock,
  'NF_RegNet': nf_regnet.NFBlock,
  'NF_ResNet': nf_resnet.NFResBlock,
  'SkipInit_ResNet': skipinit_resnet.NFResBlock,
}
KINDS = [*BLOCKS, 'ResNet', 'FixUp_ResNet', 'NormFreeNet']


@pytest.mark.parametrize('name', KINDS)
def test_remat_keeps_the_input_of_a_block_and_its_parameters_alone(name):
  kept = []
  x = jax.ShapeDtypeStruct((2, 32, 32, 8), jnp.float32)
  for remat in (False, True):
    forward = hk.transform_with_state(
      lambda x, remat=remat: network.call_block(
        make_block(name, 0.0), x, True, remat
      )[0]
    )
    params, state = jax.eval_shape(forward.init, jax.random.key(0), x)
    leaves = residuals(
      lambda p, x, s=state, f=forward: f.apply(
        p, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), s), None, x
      )[0],
      params,
      x,
    )
    kept.append(num_elements(leaves))
  # Neither feature maps nor standardized kernels. Biases that are added last
  # need not even be kept; the counts of the windows that are pooled are.
  most = golden_lib.num_params(params) + math.prod(x.shape)
  assert most - 64 <= kept[1] <= most + 16 * 16
  assert kept[0] > 2 * most


@pytest.mark.parametrize('name', KINDS)
def test_remat_changes_no_output_gradient_or_state(name):
  x = reference_params.reference_images(4, 6, 16).reshape(4, 6, 6, 8)
  results = []
  for remat in (False, True):
    forward = hk.transform_with_state(
      lambda x, remat=remat: network.call_block(
        make_block(name, 0.5), x, True, remat
      )
    )
    shapes = jax.eval_shape(forward.init, jax.random.key(0), x)
    params, state = map(reference_params.reference_params, shapes)

    def loss_fn(params, x, f=forward, s=state):
      out, new_state = f.apply(params, s, jax.random.key(2), x)
      weights = jnp.sin(jnp.arange(out[0].size)).reshape(out[0].shape)
      return jnp.sum(out[0] * weights), (out, new_state)

    step = golden_lib.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))
    results.append(step(params, x))
  expected, actual = results
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for (path, want), got in zip(leaves, jax.tree.leaves(actual), strict=True):
    tolerance = 1e-4 * max(1e-3, np.max(np.abs(want)))
    np.testing.assert_allclose(
      got, want, rtol=0, atol=tolerance, err_msg=str(path)
    )
