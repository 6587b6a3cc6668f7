"""The F networks: golden outputs, trees, sizes, and how a signal propagates."""

import json
import math

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params
import signal_variance

from nfnets import base, nfnet

VARIANTS = [f'F{i}{plus}' for plus in ('', '+') for i in range(8)]

# Parameters with 1000 classes, multiply-adds at the test size in billions.
PUBLISHED = {
  'F0': (71_489_284, 12.384),
  'F1': (132_634_256, 35.539),
  'F2': (193_779_228, 62.593),
  'F3': (254_924_200, 114.764),
  'F4': (316_069_172, 215.241),
  'F5': (377_214_144, 289.757),
  'F6': (438_359_116, 377.280),
  'F7': (499_504_088, 478.782),
}
# Parameters in millions.
PUBLISHED_PLUS = {
  'F0+': 118.82,
  'F1+': 220.36,
  'F2+': 321.89,
  'F3+': 423.42,
  'F4+': 524.95,
  'F5+': 626.49,
  'F6+': 728.02,
  'F7+': 829.55,
}


def test_there_are_sixteen_f_variants_and_digits():
  assert sorted(nfnet.NFNet.variant_dict) == sorted([*VARIANTS, 'digits'])
  assert nfnet.nfnet_params is base.nfnet_params is nfnet.NFNet.variant_dict


def test_published_trees_have_the_published_sizes():
  for variant, (num_params, _) in PUBLISHED.items():
    tree = golden_lib.param_trees()[f'NFNet/{variant}']
    assert tree['num_params'] == num_params
  for variant, millions in PUBLISHED_PLUS.items():
    tree = golden_lib.param_trees()[f'NFNet/{variant}']
    assert round(tree['num_params'] / 1e6, 2) == millions


@pytest.mark.parametrize('variant', sorted(PUBLISHED))
def test_multiply_adds_at_the_test_size_are_the_published_ones(variant):
  size = nfnet.NFNet.variant_dict[variant]['test_imsize']
  parts, total = golden_lib.count_flops(f'NFNet/{variant}', size, size)
  assert round(total / 1e9, 3) == PUBLISHED[variant][1]
  assert sum(parts) == total


@pytest.mark.parametrize(
  ('variant', 'kwargs'),
  [
    (
      'digits',
      {'use_two_convs': False, 'final_conv_mult': None, 'final_conv_ch': 40},
    ),
    ('digits', {'width': 2.0, 'se_ratio': 0.3}),
  ],
)
@pytest.mark.parametrize('size', [(64, 64), (65, 97)])
def test_count_flops_counts_what_is_traced(variant, kwargs, size):
  model = f'NFNet/{variant}'
  _, total = golden_lib.count_flops(model, *size, **kwargs)
  transformed = golden_lib.transform(model, **kwargs)
  assert total == golden_lib.count_multiply_adds(transformed, *size)


def test_f0_agrees_with_golden_in_evaluation_and_training():
  golden_lib.check_training('NFNet/F0', golden_lib.load('nfnet_f0'))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('variant', 'file'), [('F1', 'nfnet_f1'), ('F0+', 'nfnet_f0_plus')]
)
def test_outputs_and_signal_metrics_agree_with_golden(variant, file):
  golden_lib.check_outputs(f'NFNet/{variant}', golden_lib.load(file))


# As golden_nfnet_f0_wide.npz was made: what most differs from the defaults.
WIDE = {
  'num_classes': 100,
  'width': 2.0,
  'activation': 'relu',
  'alpha': 0.3,
  'use_two_convs': False,
  'final_conv_mult': None,
  'final_conv_ch': 512,
  'drop_rate': 0.0,
}


def test_tree_of_a_wide_network_agrees_with_golden():
  tree = golden_lib.init_shapes(golden_lib.transform('NFNet/F0', **WIDE))
  shapes = {
    f'{module}:{name}': list(leaf.shape)
    for module, leaves in tree.items()
    for name, leaf in leaves.items()
  }
  golden = golden_lib.load('nfnet_f0_wide')
  assert shapes == json.loads(str(golden['shapes']))


@pytest.mark.slow
def test_outputs_of_a_wide_network_agree_with_golden():
  golden = golden_lib.load('nfnet_f0_wide')
  golden_lib.check_outputs('NFNet/F0', golden, **WIDE)


def test_the_multiple_of_the_final_width_goes_before_the_width_itself():
  def final_ch(**kwargs):
    tree = golden_lib.init_shapes(
      golden_lib.transform('NFNet/digits', 10, **kwargs)
    )
    return tree['NFNet/~/final_conv']['w'].shape[-1]

  assert final_ch(final_conv_ch=40) == 256
  assert final_ch(final_conv_ch=40, final_conv_mult=1.5) == 192
  assert final_ch(final_conv_ch=40, final_conv_mult=None) == 40
  with pytest.raises(ValueError, match='final_conv_mult or final_conv_ch'):
    final_ch(final_conv_mult=None)


def feature_shapes(transformed, h, w, batch=2):
  images = jax.ShapeDtypeStruct((batch, h, w, 3), jnp.float32)
  outputs = jax.eval_shape(
    lambda p, x: transformed.apply(p, None, x),
    golden_lib.init_shapes(transformed),
    images,
  )
  return [feature.shape for feature in outputs['features']]


def test_feature_shapes_of_f0_are_those_of_timm():
  nchw = golden_lib.load('timm_dm_nfnet_f0')['feature_shapes_nchw']
  shapes = feature_shapes(golden_lib.transform('NFNet/F0'), 64, 64)
  assert shapes == [(b, h, w, c) for b, c, h, w in nchw.tolist()]


def test_pooled_shortcut_of_odd_sizes_does_not_count_padding():
  # At a skip_gain of 0 a block is its shortcut, which keeps a constant image.
  forward = hk.transform(
    lambda x: nfnet.NFBlock(8, 16, stride=2, group_size=8)(x, False)[0]
  )
  x = jnp.full((1, 5, 7, 8), 1.5) * jnp.arange(1, 9)
  shapes = jax.eval_shape(forward.init, jax.random.key(0), x)
  params = reference_params.reference_params(shapes)
  params['nf_block']['skip_gain'] = np.float32(0)
  out = golden_lib.jit(forward.apply)(params, None, x)
  assert out.shape == (1, 3, 4, 16)
  np.testing.assert_allclose(
    out, jnp.broadcast_to(out[:, :1, :1], out.shape), rtol=1e-5
  )
  assert np.std(out[0, 0, 0]) > 0.1


def test_width_below_one_group_is_refused():
  with pytest.raises(ValueError, match='less than one group of 128.*larger'):
    golden_lib.init_shapes(golden_lib.transform('NFNet/F0', width=0.5))


def test_arguments_change_the_tree():
  def tree(**kwargs):
    transformed = golden_lib.transform('NFNet/digits', 10, **kwargs)
    shapes = golden_lib.init_shapes(transformed)
    return golden_lib.with_leaves(shapes, lambda *leaf: leaf[2].shape)

  default = tree()
  assert default['NFNet/~/final_conv']['w'] == (1, 1, 128, 256)
  final = tree(final_conv_mult=None, final_conv_ch=40)
  assert final['NFNet/~/final_conv']['w'] == (1, 1, 128, 40)
  assert final['NFNet/~/linear']['w'] == (40, 10)
  one_conv = tree(use_two_convs=False)
  assert set(default) - set(one_conv) == {
    f'NFNet/~/nf_block{suffix}/~/conv1b'
    for suffix in ('', '_1', '_2', '_3', '_4')
  }
  assert set(one_conv) < set(default)
  wide = tree(width=2.0)
  assert set(wide) == set(default)
  assert wide['NFNet/~/nf_block/~/conv2']['w'] == (1, 1, 32, 64)
  assert wide['NFNet/~/stem_conv3']['w'] == (3, 3, 64, 16)
  squeeze = 'NFNet/~/nf_block/~/squeeze_excite/~/linear'
  assert default[squeeze]['w'] == (32, 16)
  assert tree(se_ratio=0.25)[squeeze]['w'] == (32, 8)


def test_width_inside_a_block_is_rounded_down_to_whole_groups():
  transformed = golden_lib.transform('NFNet/F0', width=1.4)
  shapes = golden_lib.init_shapes(transformed)
  # int(1.4 * 1536) = 2150, half of it is 1075: eight groups of 128.
  conv1 = shapes['NFNet/~/nf_block_11/~/conv1']['w'].shape
  assert conv1 == (3, 3, 128, 1024)


def test_initial_parameters():
  transformed = golden_lib.transform('NFNet/digits', 10)
  last = 'NFNet/~/nf_block_4/~/conv1'

  @golden_lib.jit
  def init(key):  # Of the kernels only one, as they take long.
    params = transformed.init(key, jnp.zeros((1, 32, 32, 3)))
    return golden_lib.with_leaves(
      params,
      lambda module, name, leaf: (
        leaf if name != 'w' or module == last else jnp.zeros(())
      ),
    )

  params = init(jax.random.key(0))
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if name in ('bias', 'b', 'skip_gain'):
        assert not leaf.any(), (module, name)
      elif name == 'gain':
        assert (leaf == 1).all(), module
  kernel = params[last]['w']
  fan_in = math.prod(kernel.shape[:3])
  assert np.std(kernel) == pytest.approx(fan_in**-0.5, rel=0.05)


def test_variance_of_every_block_is_the_expected_one(monkeypatch):
  row = {
    **nfnet.NFNet.variant_dict['digits'],
    'width': [128, 128, 256, 256],
    'depth': signal_variance.DEPTHS,
    'group_width': 64,
  }
  monkeypatch.setitem(nfnet.NFNet.variant_dict, 'test', row)
  signal_variance.check(monkeypatch, 'NFNet/test', 1.5, activation='relu')
