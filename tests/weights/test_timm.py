"""Weights of timm: names, shapes and values in both directions."""

import golden_lib
import jax
import ml_dtypes
import numpy as np
import pytest
import reference_params
import timm_lib

import nfnets
from nfnets.weights import timm as timm_weights

# One of each kind.
NAMES = [
  pytest.param('dm_nfnet_f0', marks=pytest.mark.slow),
  'test_nfnet',
  'eca_nfnet_l0',
  'nf_regnet_b0',
  'nf_seresnet26',
]
MORE = [pytest.mark.slow, pytest.mark.exhaustive]
# Of the same kinds with more blocks.
DEEP = [
  *(f'dm_nfnet_f{i}' for i in range(1, 7)),
  *(f'nfnet_f{i}' for i in range(1, 8)),
  *(f'nf_regnet_b{i}' for i in range(1, 6)),
  *(f'eca_nfnet_l{i}' for i in range(1, 4)),
  *(f'nf_{kind}resnet101' for kind in ('', 'se', 'eca')),
]


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=MORE if name in DEEP else ())
    for name in timm_weights.NETWORKS
  ],
)
def test_keys_and_shapes_are_those_of_timm(name):
  zeros = timm_weights._zeros(name, 1000)
  state_dict = timm_weights._to_state_dict(zeros)
  shapes = {key: list(value.shape) for key, value in state_dict.items()}
  assert shapes == timm_lib.golden()['shapes'][name]


def assert_same(actual, expected):
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, want), got in zip(leaves, jax.tree.leaves(actual), strict=True):
    assert isinstance(got, np.ndarray) and got.flags.c_contiguous, path
    assert got.dtype == want.dtype, path
    np.testing.assert_array_equal(got, want, err_msg=str(path))


@pytest.mark.parametrize('name', NAMES)
def test_round_trip_is_exact_from_both_sides(name):
  state_dict = timm_lib.state_dict(name)
  params = timm_weights.from_timm(name, state_dict)
  assert_same(timm_weights.to_timm(name, params), state_dict)
  model = nfnets.create_model(timm_weights.NETWORKS[name])
  shapes, _ = jax.eval_shape(lambda: model.init(jax.random.key(0), 32))
  params = reference_params.reference_params(shapes)
  state_dict = timm_weights.to_timm(name, params)
  assert_same(timm_weights.from_timm(name, state_dict), params)
  assert_same(timm_weights.guess_tree(state_dict), params)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_type_of_numbers_is_kept(dtype):
  state_dict = timm_lib.state_dict('test_nfnet')
  state_dict = {key: x.astype(dtype) for key, x in state_dict.items()}
  params = timm_weights.from_timm('test_nfnet', state_dict)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(dtype)}
  arrays = jax.tree.map(jax.numpy.asarray, params)
  if dtype != np.float64:
    assert_same(timm_weights.to_timm('test_nfnet', arrays), state_dict)


@pytest.mark.slow
def test_published_network_computes_what_timm_does():
  golden = golden_lib.load('timm_dm_nfnet_f0')
  params = timm_weights.from_timm(
    'dm_nfnet_f0', timm_lib.state_dict('dm_nfnet_f0')
  )
  model = nfnets.create_model('nfnet_f0', activation='gelu_erf')
  with timm_lib.kernels_as_in_timm():
    out = timm_lib.outputs(model, params, 64, 64)
  for key in ('logits', 'pool'):
    assert golden_lib.rel_l2(out[key], golden[key]) < 1e-4, key
  means = [np.mean(x, axis=(0, 1, 2)) for x in out['features']]
  shapes = golden['feature_shapes_nchw'].tolist()
  assert shapes == [
    [x.shape[0], x.shape[3], *x.shape[1:3]] for x in out['features']
  ]
  means = np.concatenate(means)
  assert golden_lib.rel_l2(means, golden['feature_channel_means']) < 1e-4


@pytest.mark.parametrize(
  'name', ['test_nfnet.r160_in1k', 'timm/test_nfnet.r160', 'timm/test_nfnet']
)
def test_tags_and_prefixes_of_names_are_understood(name):
  state_dict = timm_lib.state_dict('test_nfnet')
  params = timm_weights.from_timm(name, state_dict)
  assert_same(timm_weights.to_timm(name, params), state_dict)


@pytest.mark.parametrize('name', ['nfnet_f8', 'dm_nfnet_f7', 'resnet50', ''])
def test_unknown_name_is_answered_with_the_known_ones(name):
  message = f"'{name}' is no .*dm_nfnet_f0, .*nf_ecaresnet101"
  with pytest.raises(ValueError, match=message):
    timm_weights.from_timm(name, {})
  with pytest.raises(ValueError, match=message):
    timm_weights.to_timm(name, {})


def with_classes(state_dict, num_classes):
  """Returns the state dict with another last layer, or none."""
  body = {k: x for k, x in state_dict.items() if not k.startswith('head.fc')}
  if not num_classes:
    return body
  shapes = {
    'head.fc.weight': (num_classes, 192),
    'head.fc.bias': (num_classes,),
  }
  return {**body, **reference_params.reference_state_dict(shapes)}


@pytest.mark.parametrize('num_classes', [0, 1, 10])
def test_last_layer_may_have_any_size_or_be_missing(num_classes):
  state_dict = with_classes(timm_lib.state_dict('test_nfnet'), num_classes)
  params = timm_weights.from_timm('test_nfnet', state_dict)
  linear = params.get('NormFreeNet/~/linear')
  if num_classes:
    assert linear['w'].shape == (192, num_classes)
    np.testing.assert_array_equal(linear['w'], state_dict['head.fc.weight'].T)
  else:
    assert linear is None
  assert_same(timm_weights.to_timm('test_nfnet', params), state_dict)
  assert_same(timm_weights.guess_tree(state_dict), params)


def test_keys_that_differ_are_named():
  state_dict = timm_lib.state_dict('test_nfnet')
  del state_dict['stages.2.0.conv2b.bias']
  state_dict['stages.2.1.conv1.bias'] = np.zeros(3, np.float32)
  state_dict['final_conv.gain'] = np.zeros((5, 1, 1, 1), np.float32)
  with pytest.raises(ValueError) as error:
    timm_weights.from_timm('test_nfnet', state_dict)
  message = str(error.value)
  assert 'missing: stages.2.0.conv2b.bias [24]' in message
  assert 'unexpected: stages.2.1.conv1.bias [3]' in message
  assert 'final_conv.gain [5, 1, 1, 1] instead of [192, 1, 1, 1]' in message


def test_weights_of_another_network_are_refused_briefly():
  for function in (timm_weights.from_timm, timm_weights.to_timm):
    with pytest.raises(ValueError, match='(?s)test_nfnet: missing') as error:
      function('test_nfnet', {})
    assert 'and 88 more' in str(error.value) and len(str(error.value)) < 300
  shared = timm_lib.state_dict('test_nfnet')
  with pytest.raises(
    ValueError, match='of another shape: stem|missing: stages'
  ):
    timm_weights.from_timm('nfnet_l0', shared)
  params = timm_weights.from_timm('test_nfnet', shared)
  with pytest.raises(ValueError, match='unexpected: NormFreeNet/~/'):
    timm_weights.to_timm('dm_nfnet_f0', params)


@pytest.mark.parametrize(
  ('key', 'shape'),
  [
    ('layer1.0.conv1.weight', (4, 4, 1, 1)),
    ('module.stem.conv1.weight', (16, 3, 3, 3)),
    ('stages.0.0.conv9.weight', (4, 4, 1, 1)),
    ('stages.0.0.weight', (4, 4, 1, 1)),
    ('stages.0.0.conv1.running_mean', (4,)),
    ('stages.0.0.conv1.gain', (4,)),
    ('stages.0.0.conv1.weight', (4, 4)),
    ('stages.0.0.attn_last.fc1.weight', (4, 4, 3, 3)),
    ('head.fc.weight', (10, 192, 1, 1)),
    ('weight', ()),
  ],
)
def test_guess_refuses_keys_and_shapes_of_other_networks(key, shape):
  state_dict = timm_lib.state_dict('test_nfnet')
  state_dict[key] = np.zeros(shape, np.float32)
  with pytest.raises(ValueError) as error:
    timm_weights.guess_tree(state_dict)
  assert f'It holds {key} {list(shape)}.' in str(error.value)
  with pytest.raises(ValueError, match='It holds nothing'):
    timm_weights.guess_tree({})
