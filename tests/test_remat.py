"""Computing blocks again in the backward pass: the same, with less memory."""

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


def training_loss(name, remat):
  """Returns a function of parameters, and their tree."""
  model, kwargs = NETWORKS[name]
  kwargs = {**kwargs, 'drop_rate': 0.3, 'remat': remat}
  if not model.startswith('ResNet/'):
    kwargs['stochdepth_rate'] = 0.9
  transformed = golden_lib.transform_with_state(model, 10, **kwargs)
  shapes = golden_lib.init_shapes(transformed)
  state = reference_params.reference_params(shapes[1])
  images = reference_params.reference_images(4, 32, 32)

  def loss_fn(params):
    rng = jax.random.key(1)
    return transformed.apply(params, state, rng, images, True)[0]['logits']

  return loss_fn, shapes[0]


@pytest.mark.parametrize('name', NETWORKS)
def test_remat_keeps_less_for_the_backward_pass(name):
  kept = []
  for remat in (False, True):
    loss_fn, params = training_loss(name, remat)
    leaves = residuals(loss_fn, params)
    kept.append(num_elements(leaves) - num_elements(jax.tree.leaves(params)))
  assert kept[1] < 0.7 * kept[0]


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

  monkeypatch.setattr(base, 'call_block', call_block)
  model, kwargs = NETWORKS[name]
  golden_lib.init_shapes(
    golden_lib.transform_with_state(model, 10, **kwargs, remat=remat)
  )
  assert chosen == expected


@pytest.mark.parametrize('remat', [-1, 1.0, '2', 'True', None, [1]])
def test_what_says_not_how_many_is_refused(remat):
  with pytest.raises(ValueError, match='remat is .*; it must be True, False'):
    base.count_remat(remat)


# With a rate of stochastic depth.
BLOCKS = {
  'NFNet': lambda rate: nfnet.NFBlock(
    8, 16, stride=2, group_size=4, stochdepth_rate=rate
  ),
  'NF_RegNet': lambda rate: nf_regnet.NFBlock(
    8, 16, stride=2, stochdepth_rate=rate
  ),
  'NF_ResNet': lambda rate: nf_resnet.NFResBlock(
    8, 16, stride=2, stochdepth_rate=rate
  ),
  'ResNet': lambda _: resnet.ResBlockV2(
    8, 16, resnet._norm('BatchNorm', {}), base.Conv2D, stride=2
  ),
  'SkipInit_ResNet': lambda rate: skipinit_resnet.NFResBlock(
    8, 16, stride=2, stochdepth_rate=rate
  ),
  'FixUp_ResNet': lambda rate: fixup_resnet.ResBlock(
    8, 16, 4, stride=2, stochdepth_rate=rate
  ),
  'NormFreeNet': lambda rate: timm_nets.NFBlock(
    timm_nets.NormFreeNet.variant_dict['tiny'],
    8,
    16,
    bottleneck=0.5,
    stride=2,
    beta=1.0,
    stochdepth_rate=rate,
  ),
}


@pytest.mark.parametrize('name', BLOCKS)
def test_remat_keeps_the_input_of_a_block_and_its_parameters_alone(name):
  kept = []
  x = jax.ShapeDtypeStruct((2, 32, 32, 8), jnp.float32)
  for remat in (False, True):
    forward = hk.transform_with_state(
      lambda x, remat=remat: base.call_block(BLOCKS[name](0.0), x, True, remat)[
        0
      ]
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


@pytest.mark.parametrize('name', BLOCKS)
def test_remat_changes_no_output_gradient_or_state(name):
  x = reference_params.reference_images(4, 6, 16).reshape(4, 6, 6, 8)
  results = []
  for remat in (False, True):
    forward = hk.transform_with_state(
      lambda x, remat=remat: base.call_block(BLOCKS[name](0.5), x, True, remat)
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
