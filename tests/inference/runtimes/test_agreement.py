"""Every family on every runtime, beside JAX."""

import jax
import numpy as np
import pytest
import quick_lib
import reference_params
import tiny_networks

import nfnets
from nfnets.inference import networks
import nfnets.weights

quickly_compiled = quick_lib.quickly_compiled
SLOW = pytest.mark.slow
RUNTIMES = ('openvino', 'onnxruntime')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module', autouse=True)
def tiny():
  with tiny_networks.variants([1, 1, 1, 1]):
    yield


def saved(tmp_path, name, num_classes, kwargs):
  """Returns a file of a network, and the network in JAX."""
  model = nfnets.create_model(name, num_classes, **kwargs)
  shapes = jax.eval_shape(lambda key: model.init(key, 32), jax.random.key(0))
  params, state = map(reference_params.reference_params, shapes)
  path = tmp_path / 'w.safetensors'
  metadata = nfnets.weights.describe(model)
  nfnets.weights.save_weights(path, params, state, metadata)
  return str(path), networks.of(model, params, state)


def check(path, network, size, sizes, tolerance=1e-5, **options):
  """Compares all outputs for batches of several sizes."""
  images = reference_params.reference_images(max(sizes), size, size)
  found = networks.open_network(path, image_size=size, **options)
  assert found.image_size == size
  out, _ = jax.jit(network.model.apply, static_argnums=4)(
    network.params, network.state, None, images, False
  )
  for count in sizes:
    batch = images[:count]
    outputs = {'pool': found.embed(batch), 'features': found.features(batch)}
    if network.num_classes:
      outputs['logits'] = found.logits(batch)
    else:
      with pytest.raises(ValueError, match='has no last layer'):
        found.logits(batch)
    for key, actual in outputs.items():
      expected = jax.tree.leaves(out[key])
      for x, y in zip(jax.tree.leaves(actual), expected, strict=True):
        y = np.asarray(y)[:count]
        assert x.shape == y.shape and x.dtype == np.float32
        assert np.max(np.abs(x - y)) <= tolerance * np.max(np.abs(y)), key


@pytest.mark.parametrize(
  ('name', 'kwargs', 'num_classes'),
  [
    ('nfnet_f0', {}, 10),
    pytest.param('timm/nfnet_f0', {}, 10, marks=SLOW),
    pytest.param('nf_regnet_b0', {}, 10, marks=SLOW),
    pytest.param('nf_resnet50', {'width': 1}, 10, marks=SLOW),
    pytest.param('resnet50', {'width': 1}, 10, marks=SLOW),
    pytest.param('resnet50_v1', {'width': 1}, 0, marks=SLOW),
    pytest.param('skipinit_resnet50', {'width': 1}, 10, marks=SLOW),
    pytest.param('fixup_resnet50', {'width': 1}, 10, marks=SLOW),
  ],
)
def test_all_outputs_agree_with_jax(tmp_path, name, kwargs, num_classes):
  kwargs = {'variant': 'tiny', **kwargs}
  path, network = saved(tmp_path, name, num_classes, kwargs)
  for runtime in RUNTIMES:
    check(path, network, 35, (1, 3, 2), runtime=runtime)
  # Several requests at once share a batch.
  check(path, network, 35, (5, 1), runtime='openvino', throughput=True)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['timm/eca_nfnet_l0', 'timm/nf_resnet50'])
def test_networks_of_timm_agree_with_jax(tmp_path, name):
  path, network = saved(tmp_path, name, 10, {})
  for runtime in RUNTIMES:
    check(path, network, 33, (2,), runtime=runtime)


@pytest.mark.slow
def test_bfloat16_is_near(tmp_path):
  path, network = saved(tmp_path, 'nfnet_f0', 10, {'variant': 'tiny'})
  runtimes = ['jax']
  if _openvino_has_bfloat16():
    runtimes.append('openvino')
  for runtime in runtimes:
    options = {'runtime': runtime, 'precision': 'bfloat16'}
    check(path, network, 32, (2,), tolerance=0.1, **options)
    with pytest.raises(AssertionError):
      check(path, network, 32, (2,), tolerance=1e-4, **options)


def _openvino_has_bfloat16():
  from nfnets.inference.runtimes import openvino_runtime

  return openvino_runtime.has_bfloat16()
