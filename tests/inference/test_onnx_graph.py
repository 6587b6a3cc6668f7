"""Networks as ONNX graphs."""

import dataclasses
import functools
import json
import math
import os
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import numpy_helper
import onnxruntime
import pytest
import quick_lib
import reference_params

import nfnets
from nfnets import base, conv
from nfnets.inference import networks, onnx_check, onnx_graph
import nfnets.weights

quickly_compiled = quick_lib.quickly_compiled
CLASS_NAMES = ('"zéro"', *'123456789')
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def folded(model, params, state=None):
  """Returns a network whose kernels are standardized."""
  params = nfnets.weights.fold_weights(params, model)
  return networks.of(model, params, state or {})


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """Returns a file of `quick_lib.digits()`."""
  path = tmp_path_factory.mktemp('onnx') / 'digits.onnx'
  model, params = quick_lib.digits()
  model = dataclasses.replace(model, class_names=CLASS_NAMES)
  onnx_graph.write(folded(model, params), str(path), float16=False)
  return path


@pytest.fixture(scope='module')
def half(tmp_path_factory):
  """Returns a network with large activations, and its file in float16."""
  model, params = quick_lib.digits()
  stem = 'NFNet/~/stem_conv0'
  gain = np.full(16, 400, np.float32)
  params = {**params, stem: {**params[stem], 'gain': gain}}
  network = folded(model, params)
  path = str(tmp_path_factory.mktemp('onnx') / 'half.onnx')
  onnx_graph.write(network, path, float16=True)
  return network, path


def tiny(num_classes=10):
  """Returns a network of a mean and a matrix product."""

  def forward(images, is_training):
    pool = jnp.mean(images, (1, 2))
    logits = {'logits': hk.Linear(num_classes)(pool)} if num_classes else {}
    return {'pool': pool, **logits}

  model, _ = quick_lib.digits()
  transformed = hk.transform_with_state(forward)
  model = dataclasses.replace(
    model, num_classes=num_classes, transformed=transformed
  )
  return networks.of(model, *model.init(jax.random.key(0)))


def run_onnx(path, images, **options):
  """Returns the only output, by ONNX Runtime."""
  session_options = onnxruntime.SessionOptions()
  session_options.log_severity_level = 3
  for name, value in options.items():
    setattr(session_options, name, value)
  session = onnxruntime.InferenceSession(
    str(path), session_options, providers=['CPUExecutionProvider']
  )
  return session.run(None, {'images': images})[0]


def relative(actual, expected):
  difference = np.linalg.norm(np.float64(actual) - np.float64(expected))
  return difference / np.linalg.norm(np.float64(expected))


@functools.cache
def examples():
  """Returns images, and the logits of `quick_lib.digits()` for them."""
  model, params = quick_lib.digits()
  images = reference_params.reference_images(7, 32, 32)
  return images, np.asarray(model.logits(params, images))


def test_file_is_valid_and_says_what_it_is(exported):
  onnx.checker.check_model(str(exported), full_check=True)
  model = onnx.load(exported)
  assert [(o.domain, o.version) for o in model.opset_import] == [('', 18)]
  assert model.ir_version == 8
  assert model.producer_name == 'nfnets'
  for value, shape in (
    (model.graph.input[0], [0, 32, 32, 3]),
    (model.graph.output[0], [0, 10]),
  ):
    dims = value.type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == shape
    assert dims[0].dim_param == 'B'
    assert value.type.tensor_type.elem_type == FLOAT
  props = {prop.key: prop.value for prop in model.metadata_props}
  assert props['model'] == 'nfnet_digits'
  assert (props['image_size'], props['num_classes']) == ('32', '10')
  entry = quick_lib.digits()[0].entry
  assert json.loads(props['class_names']) == list(CLASS_NAMES)
  assert props['preprocessing'] == 'resize_crop_1'
  assert json.loads(props['mean']) == pytest.approx(list(entry.mean))
  assert json.loads(props['std']) == pytest.approx(list(entry.std))
  assert 'images, float32 [B, 32, 32, 3]' in model.doc_string


def test_any_batch_gives_what_jax_gives(exported):
  images, expected = examples()
  for size in (1, 3, 7):
    actual = run_onnx(exported, images[:size])
    assert relative(actual, expected[:size]) < 1e-5


def test_standardization_is_folded(exported):
  model, params = quick_lib.digits()
  params = nfnets.weights.fold_weights(params, model)
  kernels = [
    np.asarray(leaf).transpose(3, 2, 0, 1)
    for leaves in params.values()
    for leaf in leaves.values()
    if leaf.ndim == 4
  ]
  tensors = {t.name: t for t in onnx.load(exported).graph.initializer}
  graph = onnx.load(exported).graph
  convs = [node for node in graph.node if node.op_type == 'Conv']
  assert len(convs) == len(kernels) == 29
  # With their biases, all but the last: its image is one pixel.
  assert all(len(node.input) == 3 for node in convs[:-1])
  for node in convs:
    kernel = numpy_helper.to_array(tensors[node.input[1]])
    assert any(
      kernel.shape == k.shape and np.allclose(kernel, k) for k in kernels
    )


def test_graph_has_no_shapes_to_compute_and_one_layout(exported):
  ops = [node.op_type for node in onnx.load(exported).graph.node]
  assert not {'Shape', 'Expand', 'Concat', 'Gather', 'Pad', 'Max'} & set(ops)
  # The input's, a gate's for each of 4 blocks, and around what has one pixel.
  assert ops.count('Transpose') < 10


def test_onnxruntime_fuses_every_gelu(exported, tmp_path):
  before = [node.op_type for node in onnx.load(exported).graph.node]
  path = str(tmp_path / 'fused.onnx')
  images = np.zeros((1, 32, 32, 3), np.float32)
  run_onnx(exported, images, optimized_model_filepath=path)
  after = [node.op_type for node in onnx.load(path).graph.node]
  assert after.count('FastGelu') == before.count('Tanh') == 24
  assert 'Tanh' not in after


def test_every_operator_is_documented_for_every_runtime():
  text = pathlib.Path(__file__).parents[2].joinpath('docs/onnx.md').read_text()
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('| ') and 'TensorRT' not in line
  ]
  assert {row[0] for row in rows} == onnx_graph.OPERATORS
  for row in rows:
    assert all(cell.startswith('yes') for cell in row[2:]) and len(row) == 5
  for name in onnx_graph.OPERATORS:
    since = onnx.defs.get_schema(name, onnx_graph.OPSET).since_version
    assert since <= onnx_graph.OPSET


def test_other_operators_are_refused(tmp_path, monkeypatch):
  operators = onnx_graph.OPERATORS - {'ReduceMean', 'Gemm'}
  monkeypatch.setattr(onnx_graph, 'OPERATORS', operators)
  with pytest.raises(
    onnx_graph.GraphError,
    match='nfnet_digits .* not every runtime knows: Gemm, ReduceMean.$',
  ):
    onnx_graph.write(tiny(), str(tmp_path / 'a.onnx'), float16=False)
  assert not os.listdir(tmp_path)


def test_float16_computes_in_float16_but_for_means(half):
  _, path = half
  onnx.checker.check_model(str(path), full_check=True)
  model = onnx.shape_inference.infer_shapes(onnx.load(path))
  graph = model.graph
  types = {
    value.name: value.type.tensor_type.elem_type
    for value in [*graph.input, *graph.output, *graph.value_info]
  } | {tensor.name: tensor.data_type for tensor in graph.initializer}
  assert types['images'] == types['logits'] == FLOAT
  for node in graph.node:
    expected = FLOAT if node.op_type == 'ReduceMean' else FLOAT16
    if node.op_type != 'Cast':
      assert types[node.input[0]] == types[node.output[0]] == expected


def test_float16_bears_large_activations(half):
  network, path = half
  kernel = network.params['NFNet/~/stem_conv0'][base.FOLDED]
  stem = conv.conv2d(examples()[0], kernel, stride=(2, 2))
  assert 1300 < np.max(np.abs(stem)) < 5000  # 0.04 x^2 is no float16.
  assert 1e-4 < onnx_check.compare(network, path)['relative_difference'] < 1e-2


def test_gelu_is_gelu():
  x = np.concatenate([np.linspace(-12, 12, 241), [0, -1e4, 1e4]])
  z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  expected = 1.7015043497085571 * 0.5 * x * (1 + np.tanh(z))
  actual = onnx_graph._gelu(np.float32(x))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  half = onnx_graph._gelu(jax.numpy.float16(x))
  actual = np.asarray(half, np.float32)
  np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)


def test_weights_without_a_last_layer_give_embeddings(tmp_path):
  network, path = tiny(0), tmp_path / 'a.onnx'
  onnx_graph.write(network, str(path), float16=False)
  (output,) = onnx.load(path).graph.output
  assert output.name == 'embedding'
  images, _ = examples()
  assert relative(run_onnx(path, images), network.embed(images)) < 1e-5


def test_large_weights_go_into_a_second_file(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_graph, '_MAX_BYTES', 10_000)
  network, path = tiny(1000), tmp_path / 'tiny.onnx'
  onnx_graph.write(network, str(path), float16=False)
  assert sorted(os.listdir(tmp_path)) == ['tiny.onnx', 'tiny.onnx.data']
  assert path.stat().st_size < 5000
  onnx.checker.check_model(str(path), full_check=True)
  images, _ = examples()
  expected = network.logits(images)
  assert relative(run_onnx(path, images), expected) < 1e-5


SLOW = pytest.mark.slow
MORE = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.mark.parametrize(
  ('name', 'kwargs', 'size'),
  [
    ('nf_resnet50', {'width': 1}, 35),
    pytest.param('timm/test_nfnet', {}, 33, marks=MORE),
    pytest.param('resnet50', {'width': 1}, 33, marks=SLOW),
    pytest.param('resnet50_v1', {'width': 1}, 34, marks=MORE),
    pytest.param('fixup_resnet50', {'width': 1}, 33, marks=MORE),
    pytest.param('skipinit_resnet50', {'width': 1}, 33, marks=MORE),
    pytest.param('nf_regnet_b0', {}, 65, marks=MORE),
    pytest.param('timm/eca_nfnet_l0', {}, 65, marks=SLOW),
    pytest.param('timm/nf_resnet50', {}, 33, marks=MORE),
    pytest.param('timm/nfnet_f0', {}, 33, marks=MORE),
    pytest.param('nfnet_f0', {}, 64, marks=SLOW),
  ],
)
def test_other_networks_agree(tmp_path, name, kwargs, size):
  model = nfnets.create_model(name, 10, **kwargs)
  entry = dataclasses.replace(model.entry, test_size=size)
  model = dataclasses.replace(model, entry=entry)
  shapes = jax.eval_shape(lambda key: model.init(key, 32), jax.random.key(0))
  network = folded(model, *map(reference_params.reference_params, shapes))
  path = str(tmp_path / 'a.onnx')
  assert set(onnx_graph.write(network, path, False)) <= onnx_graph.OPERATORS
  assert onnx_check.compare(network, path)['relative_difference'] < 1e-4
