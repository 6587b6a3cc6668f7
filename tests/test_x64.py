"""Where JAX has numbers of 64 bits, networks are float32 all the same."""

import jax
import numpy as np
import pytest
import quick_lib

import nfnets
from nfnets import export, weights
from nfnets.inference import networks, onnx_graph

quickly_compiled = quick_lib.quickly_compiled


@pytest.fixture(autouse=True)
def x64():
  with jax.enable_x64(True):
    yield


def dtypes(tree):
  return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('nfnet_digits', {'float32'}),
    ('resnet50', {'float32', 'int32'}),  # With a counter.
    ('timm/test_nfnet', {'float32'}),
  ],
)
def test_new_parameters_and_state_are_float32(name, expected):
  model = nfnets.create_model(name, 10)
  assert dtypes(jax.eval_shape(model.init, jax.random.key(0))) == expected


@pytest.mark.slow
def test_weights_are_loaded_folded_frozen_and_exported(tmp_path):
  path = tmp_path / 'w.npz'
  weights.save_weights(path, quick_lib.digits()[1])
  model, params, state = nfnets.load(path, num_classes=3)
  assert dtypes(params) == {'float32'}
  image = model.preprocess(np.full((40, 40, 3), 99, np.uint8))[None]
  logits = model.logits(params, image)
  folded = weights.fold_weights(params, model)
  assert dtypes((logits, folded)) == {'float32'}
  frozen = weights.freeze(model, params, state)
  np.testing.assert_allclose(frozen(image), logits, rtol=1e-3, atol=1e-5)
  network = networks.of(model, folded, state)
  onnx_graph.write(network, str(tmp_path / 'x.onnx'))
  found = export.compare(network, str(tmp_path / 'x.onnx'))
  assert found['relative_difference'] < 1e-5
