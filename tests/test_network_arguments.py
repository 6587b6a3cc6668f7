"""The networks' constructors: trees, sizes, and every argument.

Nothing is compiled here.
"""

import json

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks
from tiny_networks import NETWORKS

PUBLISHED = [name for name in NETWORKS if name != 'NormFreeNet']
# Channels of the five maps.
WIDTHS = {
  'NFNet': (64, 32, 64, 128, 256),
  'NF_RegNet': (18, 18, 24, 30, 96),
  'ResNet': (16, 64, 128, 256, 512),
  'NormFreeNet': (8, 32, 64, 96, 192),
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


def test_tree_of_a_wide_network_agrees_with_golden():
  tree = golden_lib.init_shapes(
    golden_lib.transform(
      *('NFNet/F0', 100),
      width=2.0,
      use_two_convs=False,
      final_conv_mult=None,
      final_conv_ch=512,
    )
  )
  shapes = {
    f'{module}:{name}': list(leaf.shape)
    for module, leaves in tree.items()
    for name, leaf in leaves.items()
  }
  golden = golden_lib.load('nfnet_f0_wide')
  assert shapes == json.loads(str(golden['shapes']))


# Multiply-adds of the F networks at their test size, in billions.
@pytest.mark.parametrize(
  ('variant', 'size', 'published'),
  [
    ('F0', 256, 12.384),
    ('F1', 320, 35.539),
    ('F2', 352, 62.593),
    ('F3', 416, 114.764),
    ('F4', 512, 215.241),
    ('F5', 544, 289.757),
    ('F6', 576, 377.280),
    ('F7', 608, 478.782),
  ],
)
def test_multiply_adds_are_the_published_ones(variant, size, published):
  _, total = golden_lib.count_flops(f'NFNet/{variant}', size, size)
  assert round(total / 1e9, 3) == published


@pytest.mark.parametrize(
  ('name', 'kwargs'),
  [
    *((name, {}) for name in NETWORKS),
    ('NFNet', {'width': 2.0, 'se_ratio': 0.3, 'use_two_convs': False}),
    ('NFNet', {'final_conv_mult': None, 'final_conv_ch': 40}),
    ('NF_ResNet', {'use_se': True, 'se_ratio': 0.3}),
    ('ResNet', {'use_se': True, 'se_ratio': 0.3}),
    ('NormFreeNet', {'variant': 'nf_ecaresnet26'}),
  ],
)
def test_count_flops_counts_what_is_traced(name, kwargs):
  model, arguments = NETWORKS[name]
  kwargs = {**arguments, **kwargs}
  if 'variant' in kwargs:
    model = f'{model.split("/")[0]}/{kwargs.pop("variant")}'
  transformed = golden_lib.transform(model, **kwargs)
  for size in ((64, 64), (65, 97)):
    parts, total = golden_lib.count_flops(model, *size, **kwargs)
    assert sum(parts) == total
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
  model, kwargs = NETWORKS[name]
  trees, outputs, flops = [], [], []
  for num_classes in (10, 0):
    transformed = make(name, num_classes)
    trees.append(golden_lib.init_shapes(transformed))
    outputs.append(
      jax.eval_shape(
        lambda p, x, t=transformed: t.apply(p, None, x), trees[-1], images
      )
    )
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


@pytest.mark.parametrize(
  'name', [name for name in NETWORKS if not name.startswith('ResNet')]
)
def test_stochastic_depth_rate_grows_linearly_from_zero(name):
  net = module_of(name, stochdepth_rate=0.24)
  blocks = [block for stage in net.stages for block in stage]
  # timm's reaches the rate in the last block.
  step = 0.08 if name == 'NormFreeNet' else 0.06
  rates = [block.stoch_depth.drop_rate for block in blocks]
  np.testing.assert_allclose(rates, [i * step for i in range(4)])


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
  for kwargs in ({}, {'se_ratio': 0.3}):
    with_se = golden_lib.init_shapes(make(name, use_se=True, **kwargs))
    added = {m: with_se[m]['w'].shape for m in set(with_se) - set(plain)}
    ratio = kwargs.get('se_ratio', 0.25)
    first = sorted(s for m, s in added.items() if m.endswith('linear'))
    assert first == [(ch, int(ratio * ch)) for ch in (64, 128, 256, 512)]
    last = sorted(s for m, s in added.items() if m.endswith('linear_1'))
    assert last == [shape[::-1] for shape in first]


BLOCK, NEXT = 'nf_block/~/', 'nf_block_1/~/'


@pytest.mark.parametrize(
  ('model', 'kwargs', 'expected'),
  [
    (
      'NFNet/digits',
      {},
      {'final_conv': (128, 256), f'{BLOCK}squeeze_excite/~/linear': (32, 16)},
    ),
    ('NFNet/digits', {'final_conv_ch': 40}, {'final_conv': (128, 256)}),
    ('NFNet/digits', {'final_conv_mult': 1.5}, {'final_conv': (128, 192)}),
    (
      'NFNet/digits',
      {'final_conv_mult': None, 'final_conv_ch': 40},
      {'final_conv': (128, 40), 'linear': (40, 10)},
    ),
    (
      'NFNet/digits',
      {'width': 2.0, 'se_ratio': 0.25},
      {
        f'{BLOCK}conv2': (32, 64),
        'stem_conv3': (64, 16),
        f'{BLOCK}squeeze_excite/~/linear': (64, 16),
      },
    ),
    # int(1.4 * 1536) = 2150, half of it is 1075: eight groups of 128.
    ('NFNet/F0', {'width': 1.4}, {'nf_block_11/~/conv1': (128, 1024)}),
    # The first block does not expand its 36 channels; the others do, by 2.25.
    ('NF_RegNet/B0', {}, {f'{BLOCK}conv1': (8, 32), f'{NEXT}conv1': (8, 80)}),
    (
      'NF_RegNet/B0',
      {'expansion': 3, 'group_size': 4, 'se_ratio': 0.25, 'width': 1},
      {
        f'{BLOCK}conv1': (4, 48),
        f'{NEXT}conv1': (4, 144),
        f'{NEXT}squeeze_excite/~/linear': (144, 36),
        'final_conv': (440, 1280),
      },
    ),
  ],
)
def test_arguments_change_the_tree(model, kwargs, expected):
  tree = golden_lib.init_shapes(golden_lib.transform(model, 10, **kwargs))
  for name, shape in expected.items():
    assert tree[f'{model.split("/")[0]}/~/{name}']['w'].shape[-2:] == shape


def test_without_two_convolutions_there_is_one():
  trees = [
    golden_lib.init_shapes(make('NFNet', use_two_convs=x)) for x in (1, 0)
  ]
  gone = sorted(set(trees[0]) - set(trees[1]))
  assert [name.split('/')[-1] for name in gone] == ['conv1b'] * 4
  assert set(trees[1]) < set(trees[0])


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


@pytest.mark.parametrize(
  ('model', 'kwargs', 'message'),
  [
    ('NFNet/F0', {'width': 0.5}, 'less than one group of 128.*larger'),
    ('NF_RegNet/B0', {'width': 0.1}, 'less than one group of 8.*larger'),
    ('NFNet/F0', {'final_conv_mult': None}, 'final_conv_mult or final_conv_ch'),
    *(
      ('NFNet/F0', {'remat': remat}, 'remat is .*; it must be True, False')
      for remat in (-1, 1.0, '2', 'True', None, [1])
    ),
  ],
)
def test_arguments_that_make_no_network_are_refused(model, kwargs, message):
  with pytest.raises(ValueError, match=message):
    golden_lib.network(model, **kwargs)
