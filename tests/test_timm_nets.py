"""timm's own networks: golden outputs, sizes, and what is new in them."""

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params
import timm_lib

import nfnets
from nfnets import timm_nets, zoo
from nfnets.weights import timm as timm_weights

NAMES = [name for name in timm_weights.NETWORKS if 'dm_' not in name]
# One of each kind; `nfnet_f0`, `nfnet_l0` and two more are compared in full.
QUICK = ['test_nfnet', 'nf_seresnet26', 'nf_ecaresnet26']


def test_all_networks_of_timm_are_listed():
  assert {*NAMES, *(f'dm_nfnet_f{i}' for i in range(7))} == set(
    timm_lib.golden()['settings']
  )
  models = nfnets.list_models('timm/')
  assert models == [f'timm/{name}' for name in NAMES]


@pytest.mark.parametrize('name', NAMES)
def test_image_sizes_crop_and_normalization_are_those_of_timm(name):
  train, test, crop, mean, std = timm_lib.golden()['settings'][name]
  entry = zoo.get_entry(f'timm/{name}')
  assert (entry.train_size, entry.test_size) == (train, test)
  prefix, _, part = entry.eval_preproc.rpartition('_')
  assert prefix == 'center_crop' and float(part) == crop
  model = nfnets.create_model(f'timm/{name}')
  red = model.normalize(np.full((1, 1, 3), 51, np.float32))[0, 0, 0]
  np.testing.assert_allclose(red, (0.2 - mean) / std, rtol=1e-5)


def outputs(name, size=64):
  model = nfnets.create_model(f'timm/{name}')
  params = timm_weights.from_timm(name, timm_lib.state_dict(name))
  return timm_lib.outputs(model, params, size, size)


def check_outputs(name):
  golden = timm_lib.golden()
  out = outputs(name)
  means = [jnp.mean(x, axis=(0, 1, 2)) for x in out['features']]
  for key, value in (
    ('logits', out['logits'][:, ::5]),
    ('pool', out['pool'][:, ::12]),
    ('features', jnp.concatenate(means)[::32]),
  ):
    assert golden_lib.rel_l2(value, golden[f'{name}/{key}']) < 1e-4, key


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('nf_resnet50', 'nfnet_f0', 'nfnet_l0', 'eca_nfnet_l0')
  ],
)
def test_outputs_agree_with_golden_of_one_network(name):
  golden = golden_lib.load(f'timm_{name}')
  out = outputs(name)
  for key in ('logits', 'pool'):
    assert golden_lib.rel_l2(out[key], golden[key]) < 1e-4, key


@pytest.mark.parametrize(
  'name', [*QUICK, pytest.param('nf_regnet_b0', marks=pytest.mark.slow)]
)
def test_outputs_and_features_agree_with_golden(name):
  check_outputs(name)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
  'name', [n for n in NAMES if n not in (*QUICK, 'nf_regnet_b0')]
)
def test_outputs_and_features_of_large_networks_agree_with_golden(name):
  check_outputs(name)


def transform(f):
  return hk.without_apply_rng(hk.transform(f))


@pytest.mark.parametrize('size', [(8, 8), (7, 5)])
@pytest.mark.parametrize('stride', [1, 2])
def test_convolution_pads_all_sides_alike_with_gamma_in_its_kernel(
  size, stride
):
  net = transform(
    lambda x: timm_nets.WSConv2D(6, 3, 1.7, stride, 2, name='conv')(x)
  )
  shapes = {'w': (3, 3, 2, 6), 'gain': (6,), 'bias': (6,)}
  params = reference_params.reference_params({'conv': shapes})
  # As small as 1e-5 makes a difference.
  params['conv']['w'] *= 1e-2
  images = reference_params.reference_images(2, *size)
  images = np.concatenate([images, images[..., :1]], axis=-1)
  actual = net.apply(params, images)

  w, gain, bias = (params['conv'][key].astype(np.float64) for key in shapes)
  w = (w - w.mean((0, 1, 2))) / np.sqrt((w.var((0, 1, 2)) + 1e-5) * 18)
  w *= 1.7 * gain
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  windows = windows[:, ::stride, ::stride]  # [B, H, W, C, 3, 3]
  expected = [
    np.einsum('bhwcij,ijck->bhwk', windows[..., c, :, :], w[..., k])
    for c, k in ((slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 6)))
  ]
  expected = np.concatenate(expected, axis=-1) + bias
  assert golden_lib.rel_l2(actual, expected) < 1e-5


@pytest.mark.parametrize(
  ('channels', 'size'),
  [(32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1536, 5), (2048, 7)],
)
def test_efficient_channel_attention_sees_the_neighbours(channels, size):
  net = transform(
    lambda x: timm_nets.EfficientChannelAttention(channels, name='eca')(x)
  )
  x = np.random.default_rng(0).standard_normal((2, 3, 4, channels))
  x = x.astype(np.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), x)
  params = reference_params.reference_params(shapes)
  kernel = params['eca/~/conv']['w']
  assert kernel.shape == (size, 1, 1)
  means = np.pad(x.mean((1, 2)), ((0, 0), (size // 2, size // 2)))
  logits = [np.correlate(row, kernel[:, 0, 0], 'valid') for row in means]
  expected = 1 / (1 + np.exp(-np.array(logits)))[:, None, None, :]
  assert golden_lib.rel_l2(net.apply(params, x), expected) < 1e-5


def test_kept_branches_are_scaled_up():
  row = timm_nets.NormFreeNet.variant_dict['test_nfnet']

  def branch(x, is_training):
    block = timm_nets.NFBlock(row, 32, 32, stochdepth_rate=0.5)
    return block(x, is_training)[0] - x

  net = hk.transform(branch)
  x = np.random.default_rng(0).standard_normal((64, 4, 4, 32))
  x = x.astype(np.float32)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, False))
  params = reference_params.reference_params(shapes)
  apply = jax.jit(
    net.apply, static_argnums=3, compiler_options=golden_lib.QUICK
  )
  whole = apply(params, None, x, False)
  parts = apply(params, jax.random.key(1), x, True)
  kept = np.abs(parts).max((1, 2, 3)) > 0
  assert 16 < kept.sum() < 48
  np.testing.assert_allclose(parts[kept], 2 * whole[kept], atol=1e-5)
