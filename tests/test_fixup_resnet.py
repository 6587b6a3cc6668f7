"""Fixup-ResNets: golden outputs, and what the first parameters mean."""

import golden_lib
import haiku as hk
import jax
import numpy as np
import pytest
import reference_params

from nfnets import base, fixup_resnet


def test_resnet50_outputs_and_signal_metrics_agree_with_golden():
  golden = golden_lib.load('fixup_resnet50')
  golden_lib.check_outputs('FixUp_ResNet/ResNet50', golden)


def test_default_arguments_make_resnet50_without_dropout():
  forward = hk.transform(lambda x: fixup_resnet.FixUp_ResNet(1000)(x))
  shapes = golden_lib.model_shapes('FixUp_ResNet/ResNet50')
  assert golden_lib.init_shapes(forward) == shapes
  net = hk.testing.transform_and_run(lambda: fixup_resnet.FixUp_ResNet(1000))()
  assert net.drop_rate == 0
  assert list(net.variant_dict) == [
    f'ResNet{depth}' for depth in (50, 101, 152, 200, 288, 600)
  ]


@pytest.fixture
def tiny(monkeypatch):
  """A network of 16 blocks, its initial parameters, and images."""
  monkeypatch.setitem(base.resnet_params, 'tiny', {'depth': [4, 4, 4, 4]})
  transformed = golden_lib.transform('FixUp_ResNet/tiny', 10, width=1)
  images = reference_params.reference_images(2, 32, 32)
  params = jax.jit(transformed.init, compiler_options=golden_lib.QUICK)(
    jax.random.key(0), images
  )
  return transformed, params, images


def test_first_branches_are_zero_and_logits_too(tiny):
  transformed, params, images = tiny
  out = jax.jit(
    lambda: transformed.apply(params, None, images, metrics=True),
    compiler_options=golden_lib.QUICK,
  )()
  for i in range(16):
    assert out[f'res_avg_var_{i}'] == 0
  # A block that keeps its shape is then the identity: its input is positive.
  for first in (1, 5, 9, 13):
    for i in range(first, first + 3):
      assert out[f'avg_var_{i + 1}'] == out[f'avg_var_{first}']
  assert not out['logits'].any() and out['pool'].any()
  assert all((feature >= 0).all() for feature in out['features'])


def test_first_kernels_are_those_of_the_paper(tiny):
  _, params, _ = tiny
  block = 'FixUp_ResNet/~/res_block_12/~'
  # He's sqrt(2 / fan_out), in the branch times 16^(-1/4) = 1/2.
  for conv, fan_out, factor in (
    ('conv0', 128, 0.5),
    ('conv1', 9 * 128, 0.5),
    ('conv_shortcut', 512, 1.0),
  ):
    std = np.std(params[f'{block}/{conv}']['w'])
    assert std == pytest.approx(factor * (2 / fan_out) ** 0.5, rel=0.02), conv
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if 'bias' in name or module.endswith(('/conv2', '/linear')):
        assert not leaf.any(), (module, name)
      elif name == 'scale':
        assert leaf == 1, module


def test_pool_and_logits_follow_from_the_last_feature_map(tiny):
  transformed, params, images = tiny
  params = reference_params.reference_params(params)
  out = jax.jit(
    lambda: transformed.apply(params, None, images),
    compiler_options=golden_lib.QUICK,
  )()
  pool = np.float64(out['features'][-1]).mean((1, 2))
  np.testing.assert_allclose(out['pool'], pool, rtol=1e-5, atol=1e-7)
  fc, bias = params['FixUp_ResNet/~/linear'], params['FixUp_ResNet']['bias2']
  np.testing.assert_allclose(
    out['logits'], (pool + bias) @ fc['w'] + fc['b'], rtol=1e-4, atol=1e-5
  )
