"""What all networks have in common, each tried on a small one of its family."""

import math

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params

from nfnets import (
  base,
  conv,
  fixup_resnet,
  nf_regnet,
  nf_resnet,
  nfnet,
  resnet,
  skipinit_resnet,
  timm_nets,
)

# Their arguments; `tiny` is made below.
NETWORKS = {
  'NFNet': ('NFNet/tiny', {}),
  'NF_RegNet': ('NF_RegNet/tiny', {}),
  'NF_ResNet': ('NF_ResNet/tiny', {'width': 1}),
  'ResNet': ('ResNet/tiny', {'width': 1}),
  'ResNet_v1': ('ResNet/tiny', {'width': 1, 'preactivation': False}),
  'SkipInit_ResNet': ('SkipInit_ResNet/tiny', {'width': 1}),
  'FixUp_ResNet': ('FixUp_ResNet/tiny', {'width': 1}),
  'NormFreeNet': ('NormFreeNet/tiny', {}),
}
# test_nfnet.py and test_nf_resnet.py have these tests of the other two.
NEW = [name for name in NETWORKS if name not in ('NFNet', 'NF_ResNet')]
NEW_PUBLISHED = [name for name in NEW if name != 'NormFreeNet']
# Channels of the five maps.
WIDTHS = {
  'NF_RegNet': (18, 18, 24, 30, 96),
  'ResNet': (16, 64, 128, 256, 512),
  'NormFreeNet': (8, 32, 64, 96, 192),
}
PUBLISHED = [
  model
  for model in sorted(golden_lib.param_trees())
  if model.split('/')[0] not in ('NFNet', 'NF_ResNet')
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  """Adds a variant of four or five blocks to every table."""
  monkeypatch.setitem(base.resnet_params, 'tiny', {'depth': [1, 1, 1, 1]})
  row = {**base.nfnet_params['digits'], 'depth': [1, 1, 1, 1]}
  monkeypatch.setitem(base.nfnet_params, 'tiny', row)
  row = {
    **base.nf_regnet_params['B0'],
    'width': [24, 32, 40, 44],
    'depth': [1, 2, 1, 1],
  }
  monkeypatch.setitem(base.nf_regnet_params, 'tiny', row)
  table = timm_nets.NormFreeNet.variant_dict
  stem = [(8, 3, 2), (8, 3, 1), (8, 3, 1), (16, 3, 2)]
  monkeypatch.setitem(table, 'tiny', {**table['test_nfnet'], 'stem': stem})


def test_published_trees_of_four_families_are_known():
  families = [model.split('/')[0] for model in PUBLISHED]
  assert {family: families.count(family) for family in families} == {
    'FixUp_ResNet': 4,
    'NF_RegNet': 9,
    'ResNet': 4,
    'SkipInit_ResNet': 4,
  }


@pytest.mark.parametrize('model', PUBLISHED)
def test_trees_of_parameters_and_state_are_the_published_ones(model):
  published = golden_lib.param_trees()[model]
  transformed = golden_lib.transform_with_state(model)
  params, state = golden_lib.init_shapes(transformed)
  for tree, expected in (
    (params, published['params']),
    (state, published['state']),
  ):
    assert (
      golden_lib.with_leaves(tree, lambda *leaf: list(leaf[2].shape))
      == expected
    )
  assert golden_lib.num_params(params) == published['num_params']
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('f4')}


@pytest.mark.parametrize(
  'name', [*NEW, 'ResNet with SE', 'NormFreeNet with ECA']
)
@pytest.mark.parametrize('size', [(64, 64), (65, 97)])
def test_count_flops_counts_what_is_traced(name, size):
  model, kwargs = NETWORKS[name.split()[0]]
  if name.endswith('SE'):
    kwargs = {**kwargs, 'use_se': True, 'se_ratio': 0.3}
  elif name.endswith('ECA'):
    model = 'NormFreeNet/nf_ecaresnet26'
  parts, total = golden_lib.count_flops(model, *size, **kwargs)
  assert sum(parts) == total
  transformed = golden_lib.transform(model, **kwargs)
  assert total == golden_lib.count_multiply_adds(transformed, *size)


@pytest.mark.parametrize('name', NEW)
@pytest.mark.parametrize('size', [(64, 64), (33, 65), (1, 1)])
def test_features_have_strides_of_2_to_32_at_any_size(name, size):
  model, kwargs = NETWORKS[name]
  transformed = golden_lib.transform(model, 10, **kwargs)
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  out = jax.eval_shape(
    lambda p, x: transformed.apply(p, None, x),
    golden_lib.init_shapes(transformed),
    images,
  )
  widths = WIDTHS.get(name, WIDTHS['ResNet'])
  assert [feature.shape for feature in out['features']] == [
    (2, -(-size[0] // stride), -(-size[1] // stride), channels)
    for stride, channels in zip((2, 4, 8, 16, 32), widths, strict=True)
  ]
  assert out['logits'].shape == (2, 10) and out['pool'].shape[0] == 2


@pytest.mark.parametrize('name', NETWORKS)
def test_without_classes_there_is_no_last_layer(name, plain):
  model, kwargs = NETWORKS[name]
  images = reference_params.reference_images(1, 32, 32, 0)

  def outputs(num_classes, params=None):
    transformed = golden_lib.transform(model, num_classes, **kwargs)
    shapes = golden_lib.init_shapes(transformed)
    params = params or reference_params.reference_params(shapes)
    apply = jax.jit(transformed.apply, compiler_options=golden_lib.QUICK)
    return params, apply(
      {module: params[module] for module in shapes}, None, images
    )

  params, full = outputs(10)
  _, headless = outputs(0, params)
  assert 'logits' in full and 'logits' not in headless
  np.testing.assert_allclose(headless['pool'], full['pool'], rtol=1e-5)
  with_head = golden_lib.transform(model, 10, **kwargs)
  without = golden_lib.transform(model, 0, **kwargs)
  names = [set(golden_lib.init_shapes(t)) for t in (with_head, without)]
  assert [n.split('/')[-1] for n in names[0] - names[1]] == ['linear']
  flops = [
    golden_lib.count_flops(model, 32, 32, num_classes=n, **kwargs)[1]
    for n in (10, 0)
  ]
  assert flops[0] - flops[1] == 10 * full['pool'].shape[1]


@pytest.fixture
def plain():
  """Makes networks with many groups compile sooner."""
  with conv.lowering('plain'):
    yield


@pytest.mark.parametrize('name', NEW)
def test_one_pixel_gives_finite_logits(name, plain):
  model, kwargs = NETWORKS[name]
  transformed = golden_lib.transform(model, 10, **kwargs)
  params = golden_lib.reference_tree(transformed)
  apply = jax.jit(
    lambda p, x: transformed.apply(p, None, x)['logits'],
    compiler_options=golden_lib.QUICK,
  )
  logits = apply(params, reference_params.reference_images(2, 1, 1))
  assert np.isfinite(logits).all() and np.std(logits) > 0


@pytest.mark.parametrize('name', NEW)
def test_bfloat16_stays_bfloat16_and_close_to_float32(name, plain):
  model, kwargs = NETWORKS[name]
  transformed = golden_lib.transform(model, 10, **kwargs)
  params = golden_lib.reference_tree(transformed)
  images = reference_params.reference_images(4, 32, 32)
  apply = jax.jit(
    lambda p, x: transformed.apply(p, None, x, metrics=True),
    compiler_options=golden_lib.QUICK,
  )
  exact = apply(params, images)
  rough = apply(
    *jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (params, images))
  )
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(rough)}
  assert dtypes == {jnp.dtype(jnp.bfloat16)}
  for key in ('logits', 'pool'):
    assert 1e-4 < golden_lib.rel_l2(rough[key], exact[key]) < 0.05


@pytest.mark.parametrize(
  'name', ['NF_RegNet', 'SkipInit_ResNet', 'FixUp_ResNet', 'NormFreeNet']
)
def test_dropout_and_stochastic_depth_act_in_training_only(name, plain):
  model, kwargs = NETWORKS[name]
  transformed = golden_lib.transform(
    model, 10, drop_rate=0.5, stochdepth_rate=0.9, **kwargs
  )
  without = golden_lib.transform(
    model, 10, drop_rate=0.0, stochdepth_rate=0.0, **kwargs
  )
  params = golden_lib.reference_tree(transformed)
  images = reference_params.reference_images(4, 32, 32)

  def jit(f):
    return jax.jit(f, compiler_options=golden_lib.QUICK)

  train = jit(lambda rng: transformed.apply(params, rng, images, True))
  first, second = (train(jax.random.key(i)) for i in range(2))
  evaluated = jit(lambda: transformed.apply(params, None, images, False))()
  # Without rates, training is evaluation and needs no key.
  expected = jit(lambda: without.apply(params, None, images, True))()
  for key in ('logits', 'pool'):
    assert golden_lib.rel_l2(evaluated[key], expected[key]) < 1e-5
    assert golden_lib.rel_l2(first[key], expected[key]) > 1e-3
    assert golden_lib.rel_l2(first[key], second[key]) > 1e-3


@pytest.mark.parametrize(
  'name', ['NF_RegNet', 'SkipInit_ResNet', 'FixUp_ResNet']
)
def test_stochastic_depth_rate_grows_linearly_from_zero(name):
  module = {
    'NF_RegNet': nf_regnet.NF_RegNet,
    'SkipInit_ResNet': skipinit_resnet.SkipInit_ResNet,
    'FixUp_ResNet': fixup_resnet.FixUp_ResNet,
  }[name]

  def rates():
    net = module(10, stochdepth_rate=0.25)  # Of 16 blocks, all three.
    return [b.stoch_depth.drop_rate for blocks in net.stages for b in blocks]

  rates = hk.testing.transform_and_run(rates)()
  np.testing.assert_allclose(rates, 0.25 * np.arange(16) / 16)


@pytest.mark.parametrize('name', NEW_PUBLISHED)
def test_unknown_variant_and_activation_are_answered_with_all_names(name):
  model, kwargs = NETWORKS[name]
  family = model.split('/')[0]
  first = 'B0' if family == 'NF_RegNet' else 'ResNet50'
  with pytest.raises(ValueError, match=f"'huge'.*{first}.*tiny"):
    golden_lib.transform(f'{family}/huge', **kwargs).init(None, None)
  transformed = golden_lib.transform_with_state(
    model, activation='rleu', **kwargs
  )
  with pytest.raises(ValueError, match="'rleu'.*celu.*relu.*tanh"):
    golden_lib.init_shapes(transformed)


def residuals(f, *args) -> list:
  """Returns the arrays that the backward pass keeps, as ShapeDtypeStructs."""
  return jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *args))


def num_elements(leaves) -> int:
  return sum(math.prod(leaf.shape) for leaf in leaves)


def set_depth(monkeypatch, depth):
  for table in (
    base.resnet_params,
    base.nfnet_params,
    base.nf_regnet_params,
    timm_nets.NormFreeNet.variant_dict,
  ):
    monkeypatch.setitem(table, 'tiny', {**table['tiny'], 'depth': depth})


def training_loss(name, remat):
  """Returns a function of parameters, and the trees of these and of state."""
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
    out, new_state = transformed.apply(params, state, rng, images, True)
    return jnp.sum(out['logits'] * jnp.arange(10)), (out, new_state)

  return loss_fn, shapes


@pytest.mark.parametrize('name', NETWORKS)
def test_remat_changes_no_output_gradient_or_state(name, plain, monkeypatch):
  set_depth(monkeypatch, [1, 1, 0, 0])  # To compile soon.
  results = []
  for remat in (False, True):
    loss_fn, shapes = training_loss(name, remat)
    step = jax.jit(
      jax.value_and_grad(loss_fn, has_aux=True),
      compiler_options=golden_lib.QUICK,
    )
    params = reference_params.reference_params(shapes[0])
    results.append((shapes, *step(params)))
  (shapes, *expected), (remat_shapes, *actual) = results
  assert shapes == remat_shapes
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for (path, want), got in zip(leaves, jax.tree.leaves(actual), strict=True):
    tolerance = 1e-4 * max(1e-3, np.max(np.abs(want)))
    np.testing.assert_allclose(
      got, want, rtol=0, atol=tolerance, err_msg=str(path)
    )


@pytest.mark.parametrize('name', NETWORKS)
def test_remat_keeps_less_for_the_backward_pass(name, plain, monkeypatch):
  set_depth(monkeypatch, [2, 2, 2, 2])
  kept = []
  for remat in (False, True):
    loss_fn, (params, _) = training_loss(name, remat)
    leaves = residuals(lambda p, f=loss_fn: f(p)[0], params)
    kept.append(num_elements(leaves) - num_elements(jax.tree.leaves(params)))
  assert kept[1] < 0.5 * kept[0]


BLOCKS = {
  'NFNet': lambda: nfnet.NFBlock(8, 16, stride=2, group_size=4),
  'NF_RegNet': lambda: nf_regnet.NFBlock(8, 16, stride=2),
  'NF_ResNet': lambda: nf_resnet.NFResBlock(8, 16, stride=2),
  'ResNet': lambda: resnet.ResBlockV2(
    8, 16, resnet._norm('BatchNorm', {}), base.Conv2D, stride=2
  ),
  'SkipInit_ResNet': lambda: skipinit_resnet.NFResBlock(8, 16, stride=2),
  'FixUp_ResNet': lambda: fixup_resnet.ResBlock(8, 16, 4, stride=2),
  'NormFreeNet': lambda: timm_nets.NFBlock(
    timm_nets.NormFreeNet.variant_dict['tiny'],
    8,
    16,
    bottleneck=0.5,
    stride=2,
    beta=1.0,
    stochdepth_rate=0.0,
  ),
}


@pytest.mark.parametrize('name', BLOCKS)
def test_remat_keeps_the_input_of_a_block_and_its_parameters_alone(name):
  kept = []
  x = jax.ShapeDtypeStruct((2, 32, 32, 8), jnp.float32)
  for remat in (False, True):
    forward = hk.transform_with_state(
      lambda x, remat=remat: base.call_block(BLOCKS[name](), x, True, remat)[0]
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
