"""Where a network looks, beside closed forms and finite differences."""

import functools
import types

import golden_lib
import numpy as np
import pytest
import reference_params
import tiny_networks

from nfnets import network
from nfnets.inference.demo import attention

IMAGES = reference_params.reference_images(1, 32, 32)


@pytest.fixture(autouse=True, scope='module')
def variants():
  """Two blocks, to compile soon."""
  with tiny_networks.variants([0, 2, 0, 0]):
    yield


@functools.cache
def tiny(name):
  """Returns a small network, its parameters, and what it computes."""
  variant, arguments = tiny_networks.NETWORKS[name]
  transformed = golden_lib.transform(variant, 10, **arguments)
  forward = golden_lib.jit(lambda p, x: transformed.apply(p, None, x))
  model = types.SimpleNamespace(
    apply=lambda p, state, rng, x, is_training: (
      transformed.apply(p, rng, x),
      state,
    ),
    test_size=32,
  )
  return model, golden_lib.reference_tree(transformed), forward


def test_grad_cam_of_the_last_map_is_its_closed_form():
  model, params, forward = tiny('NFNet')
  label = 3
  maps = forward(params, IMAGES)['features'][-1]
  looks = attention.Attention(model, params, {})
  found = np.asarray(looks.grad_cam(IMAGES[0], 4, label))
  # Logits are the mean over positions of gelu(map), times w, and more.
  w = params['NFNet/~/linear']['w'][:, label] / (maps.shape[1] * maps.shape[2])
  x = np.float64(maps)
  slopes = (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5 * w
  want = (slopes.mean(axis=(1, 2), keepdims=True) * x).sum(axis=-1)[0]
  assert (want > 0).any() and found.shape == want.shape
  np.testing.assert_allclose(found, np.maximum(want, 0), rtol=1e-4, atol=1e-7)


def gelu(x):
  z = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
  return 1.7015043497085571 * 0.5 * x * (1 + np.tanh(z))


@pytest.mark.slow
def test_gradient_is_that_of_finite_differences():
  model, params, forward = tiny('NFNet')
  label, at, step = 7, (11, 20), 0.02
  looks = attention.Attention(model, params, {})
  found = np.asarray(looks.input_gradient(IMAGES[0], label))
  moved = np.repeat(IMAGES, 6, axis=0)
  for channel in range(3):
    moved[(channel, *at, channel)] += step
    moved[(channel + 3, *at, channel)] -= step
  logits = np.float64(forward(params, moved)['logits'])[:, label]
  slopes = (logits[:3] - logits[3:]) / (2 * step)
  assert found.shape == (32, 32)
  np.testing.assert_allclose(found[at], np.linalg.norm(slopes), rtol=0.02)


@pytest.mark.parametrize('name', ['NFNet', 'ResNet', 'FixUp_ResNet'])
def test_what_is_added_to_a_map_goes_on_from_there(name):
  model, params, forward = tiny(name)
  plain = forward(params, IMAGES)
  rng = np.random.default_rng(0)
  taps = [np.float32(rng.standard_normal(x.shape)) for x in plain['features']]

  def run(taps):
    outputs = []
    for stage, tap in enumerate(taps):
      with network.tapped({stage: tap}):
        outputs.append(model.apply(params, {}, None, IMAGES, False)[0])
    return outputs

  for stage, out in enumerate(golden_lib.jit(run)(taps)):
    for i, (maps, want) in enumerate(
      zip(out['features'], plain['features'], strict=True)
    ):
      if i <= stage:
        want = want + taps[i] if i == stage else want
        np.testing.assert_allclose(maps, want, rtol=1e-4, atol=1e-4)
      else:
        assert golden_lib.rel_l2(maps, want) > 1e-3
    assert golden_lib.rel_l2(out['logits'], plain['logits']) > 1e-3


def test_best_stage_is_the_deepest_that_says_where():
  assert [attention.best_stage(x) for x in (32, 224, 256, 544)] == [1, 4, 4, 4]
  assert attention.best_stage(4) == 0
