"""The networks' constructors: signatures, trees, sizes, and every argument.

Nothing is compiled here but initializers.
"""

import inspect

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks
from tiny_networks import NETWORKS

from nfnets import (
  fixup_resnet,
  nf_regnet,
  nf_resnet,
  nfnet,
  resnet,
  skipinit_resnet,
)

PUBLISHED = [name for name in NETWORKS if name != 'NormFreeNet']
# Channels of the five maps.
WIDTHS = {
  'NFNet': (64, 32, 64, 128, 256),
  'NF_RegNet': (18, 18, 24, 30, 96),
  'ResNet': (16, 64, 128, 256, 512),
  'NormFreeNet': (8, 32, 64, 96, 192),
}
BASELINE = {
  'num_classes': None,
  'variant': 'ResNet50',
  'width': 4,
  'stochdepth_rate': 0.1,
  'drop_rate': None,
  'activation': 'relu',
  'fc_init': jnp.zeros,
}
# The published arguments, in their order; those without a default are None.
SIGNATURES = {
  nfnet.NFNet: {
    'num_classes': None,
    'variant': 'F0',
    'width': 1.0,
    'se_ratio': 0.5,
    'alpha': 0.2,
    'stochdepth_rate': 0.1,
    'drop_rate': None,
    'activation': 'gelu',
    'fc_init': None,
    'final_conv_mult': 2,
    'final_conv_ch': None,
    'use_two_convs': True,
    'name': 'NFNet',
  },
  nf_resnet.NF_ResNet: {
    'num_classes': None,
    'variant': 'ResNet50',
    'width': 4,
    'alpha': 0.2,
    'stochdepth_rate': 0.1,
    'drop_rate': None,
    'activation': 'relu',
    'fc_init': None,
    'skipinit_gain': jnp.zeros,
    'use_se': False,
    'se_ratio': 0.25,
    'name': 'NF_ResNet',
  },
  nf_regnet.NF_RegNet: {
    'num_classes': None,
    'variant': 'B0',
    'width': 0.75,
    'expansion': 2.25,
    'group_size': 8,
    'se_ratio': 0.5,
    'alpha': 0.2,
    'stochdepth_rate': 0.1,
    'drop_rate': None,
    'activation': 'silu',
    'fc_init': jnp.zeros,
    'name': 'NF_RegNet',
  },
  resnet.ResNet: {
    'width': None,
    'num_classes': None,
    'variant': 'ResNet50',
    'which_norm': 'BatchNorm',
    'norm_kwargs': None,
    'activation': 'relu',
    'drop_rate': 0.0,
    'fc_init': jnp.zeros,
    'conv_kwargs': None,
    'preactivation': True,
    'use_se': False,
    'se_ratio': 0.25,
    'name': 'ResNet',
  },
  skipinit_resnet.SkipInit_ResNet: {**BASELINE, 'name': 'SkipInit_ResNet'},
  fixup_resnet.FixUp_ResNet: {**BASELINE, 'name': 'FixUp_ResNet'},
}


@pytest.fixture(autouse=True, scope='module')
def tiny():
  """Four blocks."""
  with tiny_networks.variants([1, 1, 1, 1]):
    yield


def make(network, num_classes=10, **kwargs):
  model, arguments = NETWORKS[network]
  return golden_lib.transform(model, num_classes, **{**arguments, **kwargs})


def module_of(network, **kwargs):
  model, arguments = NETWORKS[network]
  return golden_lib.network(model, 10, **{**arguments, **kwargs})


def shapes_of(tree):
  return golden_lib.with_leaves(tree, lambda *leaf: list(leaf[2].shape))


@pytest.mark.parametrize('module', SIGNATURES)
def test_signature_begins_with_the_published_one(module):
  parameters = inspect.signature(module).parameters.values()
  ours = {
    p.name: None if p.default is p.empty else p.default for p in parameters
  }
  expected = SIGNATURES[module]
  assert list(ours.items())[: len(expected)] == list(expected.items())
  call = list(inspect.signature(module.__call__).parameters.values())
  assert [(p.name, p.default) for p in call[2:]] == [
    ('is_training', True),
    ('return_metrics', False),
  ]


TREES = sorted(golden_lib.param_trees())
# One of each kind; what the others have more is seen by the next test.
FEW = [
  'FixUp_ResNet/ResNet50',
  'NFNet/F0',
  'NF_RegNet/B0',
  'NF_ResNet/ResNet50',
  'ResNet/ResNet50',
  'SkipInit_ResNet/ResNet50',
]


def test_there_is_a_published_tree_of_every_variant():
  families = [model.split('/')[0] for model in TREES]
  assert {family: families.count(family) for family in families} == {
    'FixUp_ResNet': 4,
    'NFNet': 16,
    'NF_RegNet': 9,
    'NF_ResNet': 6,
    'ResNet': 4,
    'SkipInit_ResNet': 4,
  }


@pytest.mark.parametrize(
  'model',
  [m if m in FEW else pytest.param(m, marks=pytest.mark.slow) for m in TREES],
)
def test_trees_of_parameters_and_state_are_the_published_ones(model):
  published = golden_lib.param_trees()[model]
  transformed = golden_lib.transform_with_state(model)
  params, state = golden_lib.init_shapes(transformed)
  assert shapes_of(params) == published['params']
  assert shapes_of(state) == published['state']
  assert golden_lib.num_params(params) == published['num_params']
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('f4')}


def layers(module):
  """Yields the convolutions and linear layers inside a module."""
  for value in vars(module).values():
    for part in jax.tree.leaves(value):  # Modules, or lists of them.
      if isinstance(part, (hk.Conv2D, hk.Linear)):
        yield part
      elif isinstance(part, hk.Module):
        yield from layers(part)


@pytest.mark.parametrize('model', TREES)
def test_layers_have_the_published_names_kernels_and_channels(model):
  seen = {
    layer.module_name: (
      [*layer.kernel_shape, layer.output_channels]
      if isinstance(layer, hk.Conv2D)
      else [layer.output_size]
    )
    for layer in layers(golden_lib.network(model))
  }
  assert seen == {
    module: leaves['w'][:-2] + leaves['w'][-1:]
    for module, leaves in golden_lib.param_trees()[model]['params'].items()
    if 'w' in leaves
  }


@pytest.mark.parametrize(
  'name',
  [*NETWORKS, 'NF_ResNet with SE', 'ResNet with SE', 'NormFreeNet with ECA'],
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


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('size', [(64, 64), (33, 65), (1, 1)])
def test_features_have_strides_of_2_to_32_at_any_size(name, size):
  transformed = make(name)
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
def test_without_classes_there_is_no_last_layer(name):
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  trees, outputs, flops = [], [], []
  for num_classes in (10, 0):
    transformed = make(name, num_classes)
    trees.append(golden_lib.init_shapes(transformed))
    outputs.append(
      jax.eval_shape(
        lambda p, x, t=transformed: t.apply(p, None, x), trees[-1], images
      )
    )
    model, kwargs = NETWORKS[name]
    flops.append(golden_lib.count_flops(model, 32, 32, num_classes, **kwargs))
  removed = set(trees[0]) - set(trees[1])
  assert [module.split('/')[-1] for module in removed] == ['linear']
  assert outputs[0].pop('logits').shape == (1, 10)
  assert outputs[1] == outputs[0]
  assert flops[0][1] - flops[1][1] == 10 * outputs[0]['pool'].shape[1]


# Where activations stand: in the stem, in a block, and before the pool.
ACTIVATIONS = {
  'NFNet': (3, 4, 1),
  'NF_RegNet': (0, 3, 1),
  'NF_ResNet': (0, 3, 1),
  'ResNet': (0, 3, 1),
  'ResNet_v1': (1, 3, 0),
  'SkipInit_ResNet': (0, 3, 1),
  'FixUp_ResNet': (1, 3, 0),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_activation_is_used_everywhere(name):
  transformed = make(name, activation='tanh')
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  jaxpr = jax.make_jaxpr(lambda p, x: transformed.apply(p, None, x))(
    golden_lib.init_shapes(transformed), images
  )
  names = [e.primitive.name for e in golden_lib.equations(jaxpr.jaxpr)]
  stem, block, last = ACTIVATIONS[name]
  assert names.count('tanh') == stem + 4 * block + last


def initial(name, keys, **kwargs):
  """Returns some initial parameters, without computing the others."""
  transformed = make(name, **kwargs)
  images = jnp.zeros((1, 32, 32, 3))

  @golden_lib.jit
  def init(rng):
    params = transformed.init(rng, images)
    return [params[module][leaf] for module, leaf in keys]

  return init(jax.random.key(0))


@pytest.mark.parametrize('name', PUBLISHED)
def test_initial_last_layer_is_the_one_asked_for(name):
  key = [(f'{NETWORKS[name][0].split("/")[0]}/~/linear', 'w')]
  (default,) = initial(name, key)
  if name in ('NFNet', 'NF_ResNet'):
    assert np.std(default) == pytest.approx(0.01, rel=0.05)
  else:
    assert not default.any()
  (ones,) = initial(name, key, fc_init=jnp.ones)
  assert (ones == 1).all()


@pytest.mark.parametrize(
  'name', ['NFNet', 'NF_RegNet', 'NF_ResNet', 'SkipInit_ResNet', 'FixUp_ResNet']
)
def test_stochastic_depth_rate_grows_linearly_from_zero(name):
  net = module_of(name, stochdepth_rate=0.25)
  rates = [b.stoch_depth.drop_rate for blocks in net.stages for b in blocks]
  np.testing.assert_allclose(rates, [0, 0.0625, 0.125, 0.1875])


@pytest.mark.parametrize(
  ('model', 'own'),
  [
    ('NFNet/F0', 0.2),
    ('NFNet/F2', 0.4),
    ('NF_RegNet/B5', 0.4),
    ('NF_ResNet/ResNet50', 0),
    ('SkipInit_ResNet/ResNet50', 0),
    ('FixUp_ResNet/ResNet50', 0),
    ('ResNet/ResNet50', 0),
  ],
)
def test_drop_rate_defaults_to_the_variants_own(model, own):
  assert golden_lib.network(model).drop_rate == own
  for rate in (0.0, 0.7):
    assert golden_lib.network(model, drop_rate=rate).drop_rate == rate


@pytest.mark.parametrize('name', ['NF_ResNet', 'ResNet', 'ResNet_v1'])
def test_squeeze_and_excite_has_its_ratio(name):
  plain = golden_lib.init_shapes(make(name))
  with_se = golden_lib.init_shapes(make(name, use_se=True, se_ratio=0.3))
  added = {m: with_se[m]['w'].shape for m in set(with_se) - set(plain)}
  first = sorted(s for m, s in added.items() if m.endswith('linear'))
  assert first == [(ch, int(0.3 * ch)) for ch in (64, 128, 256, 512)]
  last = sorted(s for m, s in added.items() if m.endswith('linear_1'))
  assert last == [shape[::-1] for shape in first]


@pytest.mark.parametrize('name', NETWORKS)
def test_the_name_is_the_modules(name):
  tree = golden_lib.init_shapes(make(name, name='other'))
  assert {module.split('/')[0] for module in tree} == {'other'}


@pytest.mark.parametrize('name', PUBLISHED)
def test_unknown_variant_and_activation_are_answered_with_all_names(name):
  model, kwargs = NETWORKS[name]
  family = model.split('/')[0]
  first = {'NF_RegNet': 'B0', 'NFNet': 'F0, F1'}.get(family, 'ResNet50')
  with pytest.raises(ValueError, match=f"'huge'.*{first}.*tiny"):
    golden_lib.network(f'{family}/huge', **kwargs)
  with pytest.raises(ValueError, match="'rleu'.*celu.*relu.*tanh"):
    module_of(name, activation='rleu')
