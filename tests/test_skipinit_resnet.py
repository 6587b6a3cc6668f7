"""SkipInit-ResNets: golden outputs, and what the first parameters mean."""

import golden_lib
import jax
import numpy as np
import pytest
import reference_params

from nfnets import base


def test_resnet50_outputs_and_signal_metrics_agree_with_golden():
  golden = golden_lib.load('skipinit_resnet50')
  golden_lib.check_outputs('SkipInit_ResNet/ResNet50', golden)


@pytest.fixture(scope='module')
def tiny():
  """A network of one block, its initial parameters, and images."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(base.resnet_params, 'tiny', {'depth': [0, 0, 0, 1]})
    transformed = golden_lib.transform('SkipInit_ResNet/tiny', 10, width=1)
    images = reference_params.reference_images(2, 32, 32)
    params = golden_lib.jit(transformed.init)(jax.random.key(0), images)
    yield transformed, params, images


def test_first_branches_are_zero_and_logits_too(tiny):
  transformed, params, images = tiny
  apply = golden_lib.jit(lambda p: transformed.apply(p, None, images))
  expected = apply(params)
  assert not expected['logits'].any() and expected['pool'].any()
  # So whatever the branches compute does not matter,
  in_branch = ('conv0', 'conv1', 'conv2')
  noise = np.random.default_rng(0)
  changed = golden_lib.with_leaves(
    params,
    lambda module, name, leaf: (
      np.float32(noise.standard_normal(leaf.shape))
      if module.endswith(in_branch)
      else leaf
    ),
  )
  np.testing.assert_array_equal(apply(changed)['pool'], expected['pool'])
  # until their gains are not zero.
  changed = golden_lib.with_leaves(
    changed, lambda _, name, leaf: leaf + (name == 'skip_gain')
  )
  assert golden_lib.rel_l2(apply(changed)['pool'], expected['pool']) > 0.1


def test_first_parameters_are_haikus_and_zeros(tiny):
  _, params, _ = tiny
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if name in ('b', 'skip_gain') or module.endswith('/linear'):
        assert not leaf.any(), (module, name)
  kernel = params['SkipInit_ResNet/~/nf_res_block/~/conv1']['w']
  # Cut off at two standard deviations of 1 / sqrt(fan_in).
  assert np.max(np.abs(kernel)) <= 2 * (9 * 128) ** -0.5
  # Whose standard deviation is 0.8796 of what it was.
  assert np.std(kernel) == pytest.approx(0.8796 * (9 * 128) ** -0.5, rel=0.02)


def test_activation_is_not_scaled(tiny):
  transformed, params, images = tiny
  out = golden_lib.jit(lambda: transformed.apply(params, None, images))()
  pool = np.maximum(out['features'][-1], 0).mean((1, 2))
  np.testing.assert_allclose(out['pool'], pool, rtol=1e-5, atol=1e-7)
