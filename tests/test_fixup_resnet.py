"""Fixup-ResNets: golden outputs, and what the first parameters mean."""

import golden_lib
import jax
import numpy as np
import pytest
import reference_params

from nfnets import base


def test_resnet50_outputs_and_signal_metrics_agree_with_golden():
  golden = golden_lib.load('fixup_resnet50')
  golden_lib.check_outputs('FixUp_ResNet/ResNet50', golden)


@pytest.fixture(scope='module')
def tiny():
  """A network of four blocks, its initial parameters, and images."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(base.resnet_params, 'tiny', {'depth': [2, 2, 0, 0]})
    transformed = golden_lib.transform('FixUp_ResNet/tiny', 10, width=1)
    images = reference_params.reference_images(2, 32, 32)
    params = golden_lib.jit(transformed.init)(jax.random.key(0), images)
    yield transformed, params, images


def test_first_branches_are_zero_and_logits_too(tiny):
  transformed, params, images = tiny
  out = golden_lib.jit(
    lambda: transformed.apply(params, None, images, metrics=True)
  )()
  for i in range(4):
    assert out[f'res_avg_var_{i}'] == 0
  # A block that keeps its shape is then the identity: its input is positive.
  for i in (1, 3):
    assert out[f'avg_var_{i + 1}'] == out[f'avg_var_{i}']
  assert not out['logits'].any() and out['pool'].any()
  assert all((feature >= 0).all() for feature in out['features'])


def test_first_kernels_are_those_of_the_paper(tiny):
  _, params, _ = tiny
  block = 'FixUp_ResNet/~/res_block_2/~'
  # He's sqrt(2 / fan_out), in the branch times 4^(-1/4).
  for conv, fan_out, factor in (
    ('conv0', 32, 4**-0.25),
    ('conv1', 9 * 32, 4**-0.25),
    ('conv_shortcut', 128, 1.0),
  ):
    std = np.std(params[f'{block}/{conv}']['w'])
    assert std == pytest.approx(factor * (2 / fan_out) ** 0.5, rel=0.05), conv
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if 'bias' in name or module.endswith(('/conv2', '/linear')):
        assert not leaf.any(), (module, name)
      elif name == 'scale':
        assert leaf == 1, module


def test_pool_and_logits_follow_from_the_last_feature_map(tiny):
  transformed, params, images = tiny
  params = reference_params.reference_params(params)
  out = golden_lib.jit(lambda: transformed.apply(params, None, images))()
  pool = np.float64(out['features'][-1]).mean((1, 2))
  np.testing.assert_allclose(out['pool'], pool, rtol=1e-5, atol=1e-7)
  fc, bias = params['FixUp_ResNet/~/linear'], params['FixUp_ResNet']['bias2']
  np.testing.assert_allclose(
    out['logits'], (pool + bias) @ fc['w'] + fc['b'], rtol=1e-4, atol=1e-5
  )
