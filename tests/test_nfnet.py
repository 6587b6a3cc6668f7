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


@pytest.mark.parametrize('variant', VARIANTS)
def test_parameter_tree_is_the_published_one(variant):
  published = golden_lib.param_trees()[f'NFNet/{variant}']
  tree = golden_lib.model_shapes(f'NFNet/{variant}')
  shapes = golden_lib.with_leaves(tree, lambda *leaf: list(leaf[2].shape))
  assert shapes == published['params']
  assert golden_lib.num_params(tree) == published['num_params']
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype('f4')}
  if variant in PUBLISHED:
    assert golden_lib.num_params(tree) == PUBLISHED[variant][0]
  else:
    assert (
      round(golden_lib.num_params(tree) / 1e6, 2) == PUBLISHED_PLUS[variant]
    )


@pytest.mark.parametrize('variant', sorted(PUBLISHED))
def test_multiply_adds_at_the_test_size_are_the_published_ones(variant):
  size = nfnet.NFNet.variant_dict[variant]['test_imsize']
  parts, total = golden_lib.count_flops(f'NFNet/{variant}', size, size)
  assert round(total / 1e9, 3) == PUBLISHED[variant][1]
  assert sum(parts) == total


@pytest.mark.parametrize(
  ('variant', 'kwargs'),
  [
    ('F0', {}),
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


@pytest.fixture(scope='module')
def f0():
  return golden_lib.reference_tree(golden_lib.transform('NFNet/F0'))


def test_f0_outputs_and_signal_metrics_agree_with_golden(f0):
  golden_lib.check_outputs('NFNet/F0', golden_lib.load('nfnet_f0'), f0)


def test_f0_loss_and_gradient_norms_agree_with_golden(f0):
  golden = golden_lib.load('nfnet_f0')
  golden_lib.check_loss_and_gradients('NFNet/F0', golden, f0)


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


@pytest.mark.parametrize('size', [(33, 65), (65, 97), (1, 1), (2, 31)])
def test_any_image_size_works(size):
  transformed = golden_lib.transform('NFNet/digits', 10)
  params = golden_lib.reference_tree(transformed)
  images = reference_params.reference_images(2, *size)
  apply = jax.jit(
    lambda p, x: transformed.apply(p, None, x),
    compiler_options=golden_lib.QUICK,
  )
  out = apply(params, images)
  expected = [
    (2, math.ceil(size[0] / stride), math.ceil(size[1] / stride), channels)
    for stride, channels in zip(
      (2, 4, 8, 16, 32), (64, 32, 64, 128, 256), strict=True
    )
  ]
  assert [feature.shape for feature in out['features']] == expected
  assert out['logits'].shape == (2, 10) and out['pool'].shape == (2, 256)
  assert np.isfinite(out['logits']).all()


def test_pool_and_logits_follow_from_the_last_feature_map():
  transformed = golden_lib.transform('NFNet/digits', 10)
  params = golden_lib.reference_tree(transformed)
  images = reference_params.reference_images(2, 64, 96)
  out = jax.jit(lambda p, x: transformed.apply(p, None, x))(params, images)
  x = np.float64(out['features'][-1])
  tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
  pool = (1.7015043497085571 * 0.5 * x * (1 + tanh)).mean((1, 2))
  np.testing.assert_allclose(out['pool'], pool, rtol=1e-4, atol=1e-5)
  fc = params['NFNet/~/linear']
  np.testing.assert_allclose(
    out['logits'], pool @ fc['w'] + fc['b'], rtol=1e-4, atol=1e-5
  )


def test_pooled_shortcut_of_odd_sizes_does_not_count_padding():
  # At a skip_gain of 0 a block is its shortcut, which keeps a constant image.
  forward = hk.transform(
    lambda x: nfnet.NFBlock(8, 16, stride=2, group_size=8)(x, False)[0]
  )
  x = jnp.full((1, 5, 7, 8), 1.5) * jnp.arange(1, 9)
  out = jax.jit(forward.apply)(forward.init(jax.random.key(0), x), None, x)
  assert out.shape == (1, 3, 4, 16)
  np.testing.assert_allclose(
    out, jnp.broadcast_to(out[:, :1, :1], out.shape), rtol=1e-5
  )
  assert np.std(out[0, 0, 0]) > 0.1


def test_width_below_one_group_is_refused():
  with pytest.raises(ValueError, match='less than one group of 128.*larger'):
    golden_lib.init_shapes(golden_lib.transform('NFNet/F0', width=0.5))


def test_unknown_variant_is_answered_with_all_names():
  with pytest.raises(ValueError, match="'F8'.*F0, F1.*F7, F0[+].*digits"):
    golden_lib.init_shapes(golden_lib.transform('NFNet/F8'))


def test_unknown_activation_is_answered_with_all_names():
  with pytest.raises(ValueError, match="'geloo'.*celu.*gelu_erf.*tanh"):
    golden_lib.init_shapes(golden_lib.transform('NFNet/F0', activation='geloo'))


def test_default_arguments_make_f0_in_training():
  forward = hk.transform(lambda x: nfnet.NFNet(1000)(x))
  assert golden_lib.init_shapes(forward) == golden_lib.model_shapes('NFNet/F0')
  net = hk.testing.transform_and_run(lambda: nfnet.NFNet(1000))()
  assert net.drop_rate == 0.2
  with pytest.raises(ValueError, match='PRNGKey'):  # Dropout needs one.
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = golden_lib.model_shapes('NFNet/F0')
    jax.eval_shape(lambda p, x: forward.apply(p, None, x), params, images)


@pytest.mark.parametrize(
  ('drop_rate', 'expected'), [(None, 0.4), (0.0, 0.0), (0.7, 0.7)]
)
def test_drop_rate_defaults_to_the_variants_own(drop_rate, expected):
  net = hk.testing.transform_and_run(
    lambda: nfnet.NFNet(10, variant='F2', drop_rate=drop_rate)
  )()
  assert net.drop_rate == expected


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
  default = golden_lib.transform('NFNet/digits', 10)
  ones = golden_lib.transform('NFNet/digits', 10, fc_init=jnp.ones)
  images = jnp.zeros((1, 32, 32, 3))
  params, params_ones = jax.jit(
    lambda key: (default.init(key, images), ones.init(key, images)),
    compiler_options=golden_lib.QUICK,
  )(jax.random.key(0))
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if name in ('bias', 'b', 'skip_gain'):
        assert not leaf.any(), (module, name)
      elif name == 'gain':
        assert (leaf == 1).all(), module
  fc = params['NFNet/~/linear']['w']
  assert np.std(fc) == pytest.approx(0.01, rel=0.05)
  kernel = params['NFNet/~/nf_block_4/~/conv1']['w']
  fan_in = math.prod(kernel.shape[:3])
  assert np.std(kernel) == pytest.approx(fan_in**-0.5, rel=0.05)
  assert (params_ones['NFNet/~/linear']['w'] == 1).all()


def test_stochastic_depth_rate_grows_linearly_from_zero():
  def rates():
    net = nfnet.NFNet(10, variant='F0', stochdepth_rate=0.25)
    return [b.stoch_depth.drop_rate for blocks in net.stages for b in blocks]

  rates = hk.testing.transform_and_run(rates)()
  np.testing.assert_allclose(rates, 0.25 * np.arange(12) / 12)


@pytest.fixture(scope='module')
def digits_with_pool_as_logits():
  """Parameters of `digits` whose last layer is the identity, and outputs."""
  transformed = golden_lib.transform(
    'NFNet/digits', 256, drop_rate=0.0, stochdepth_rate=0.0
  )
  params = golden_lib.reference_tree(transformed)
  params['NFNet/~/linear'] = {'w': np.eye(256), 'b': np.zeros(256)}
  params = jax.tree.map(np.float32, params)
  images = reference_params.reference_images(4, 32, 32)
  out = jax.jit(lambda: transformed.apply(params, None, images, True))()
  return params, images, out


def train_and_evaluate(params, images, **kwargs):
  """Returns the outputs of training with two keys, and of evaluation."""
  transformed = golden_lib.transform('NFNet/digits', 256, **kwargs)
  train = jax.jit(lambda rng: transformed.apply(params, rng, images, True))
  evaluate = jax.jit(lambda: transformed.apply(params, None, images, False))
  return [train(jax.random.key(i)) for i in range(2)], evaluate()


def test_dropout_acts_on_pooled_features_in_training_only(
  digits_with_pool_as_logits,
):
  params, images, expected = digits_with_pool_as_logits
  trained, evaluated = train_and_evaluate(
    params, images, drop_rate=0.25, stochdepth_rate=0.0
  )
  assert golden_lib.rel_l2(evaluated['logits'], expected['logits']) < 1e-5
  for out in trained:
    assert golden_lib.rel_l2(out['pool'], expected['pool']) < 1e-5
    kept = np.asarray(out['logits']) != 0
    np.testing.assert_allclose(
      out['logits'], np.where(kept, expected['pool'] / 0.75, 0), rtol=1e-4
    )
    # 1024 draws: four standard deviations.
    assert kept.mean() == pytest.approx(0.75, abs=0.054)
  assert (trained[0]['logits'] != trained[1]['logits']).any()


def test_stochastic_depth_acts_in_training_only(digits_with_pool_as_logits):
  params, images, expected = digits_with_pool_as_logits
  trained, evaluated = train_and_evaluate(
    params, images, drop_rate=0.0, stochdepth_rate=0.9
  )
  assert golden_lib.rel_l2(evaluated['logits'], expected['logits']) < 1e-5
  for out in trained:
    assert golden_lib.rel_l2(out['pool'], expected['pool']) > 1e-3
  assert golden_lib.rel_l2(trained[0]['pool'], trained[1]['pool']) > 1e-3


def test_bfloat16_stays_bfloat16_and_close_to_float32():
  transformed = golden_lib.transform('NFNet/digits', 10)
  params = golden_lib.reference_tree(transformed)
  images = reference_params.reference_images(4, 32, 32)
  apply = jax.jit(
    lambda p, x: transformed.apply(p, None, x, metrics=True),
    compiler_options=golden_lib.QUICK,
  )
  exact = apply(params, images)
  low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (params, images))
  rough = apply(*low)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(rough)}
  assert dtypes == {jnp.dtype(jnp.bfloat16)}
  for key in ('logits', 'pool'):
    assert 1e-4 < golden_lib.rel_l2(rough[key], exact[key]) < 0.03


# Only relu and the like make act(x) * beta the same as act(x * beta); with an
# alpha as small as the default that hardly matters.
@pytest.mark.parametrize(
  ('activation', 'alpha'), [('gelu', 0.2), ('relu', 1.5)]
)
def test_variance_of_every_block_is_the_expected_one(
  monkeypatch, activation, alpha
):
  row = {
    **nfnet.NFNet.variant_dict['digits'],
    'width': [128, 128, 256, 256],
    'depth': signal_variance.DEPTHS,
    'group_width': 64,
  }
  monkeypatch.setitem(nfnet.NFNet.variant_dict, 'test', row)
  signal_variance.check(monkeypatch, 'NFNet/test', alpha, activation=activation)
