"""Networks as ONNX graphs."""

import dataclasses
import json
import math
import os
import pathlib
import re

import golden_lib
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import numpy_helper
import onnxruntime
import pytest
import quick_lib
import reference_params

import nfnets
from nfnets import base, conv, export
from nfnets.errors import UserError
from nfnets.inference import networks, onnx_graph, onnx_ops
import nfnets.weights

quickly_compiled = quick_lib.quickly_compiled
CLASS_NAMES = ('"zéro"', *'123456789')
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """Returns a file of `quick_lib.digits()`."""
  path = tmp_path_factory.mktemp('onnx') / 'digits.onnx'
  model, params = quick_lib.digits()
  model = dataclasses.replace(model, class_names=CLASS_NAMES)
  onnx_graph.write(networks.of(model, params, {}), str(path), float16=False)
  return path


@pytest.fixture(scope='module')
def half(tmp_path_factory):
  """Returns a network with large activations, and its file in float16."""
  model, params = quick_lib.digits()
  stem = 'NFNet/~/stem_conv0'
  gain = np.full(16, 400, np.float32)
  params = {**params, stem: {**params[stem], 'gain': gain}}
  network = networks.of(model, params, {})
  path = str(tmp_path_factory.mktemp('onnx') / 'half.onnx')
  onnx_graph.write(network, path, float16=True)
  return network, path


def test_standardization_is_folded(exported):
  model, params = quick_lib.digits()
  params = nfnets.weights.fold_weights(params, model)
  kernels = [
    np.asarray(leaves[base.FOLDED]).transpose(3, 2, 0, 1)
    for leaves in params.values()
    if base.FOLDED in leaves
  ]
  graph = onnx.load(exported).graph
  tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
  convs = [node for node in graph.node if node.op_type == 'Conv']
  assert len(convs) == len(kernels) == 29
  for node in convs:
    kernel, bias = (tensors[name] for name in node.input[1:])
    assert any(k.shape == kernel.shape and (k == kernel).all() for k in kernels)
    assert bias.shape == kernel.shape[:1]


def test_graph_has_no_shapes_to_compute_and_one_layout(exported):
  ops = [node.op_type for node in onnx.load(exported).graph.node]
  assert not {'Shape', 'Expand', 'Concat', 'Gather', 'Pad', 'Max'} & set(ops)
  # The input's, a gate's for each of 4 blocks, and around what has one pixel.
  assert ops.count('Transpose') < 10


def test_every_operator_is_in_the_docs_and_in_the_opset():
  page = pathlib.Path(__file__).parents[2].joinpath('docs/inference.md')
  _, _, text = page.read_text().partition('only the following operators')
  text, _, _ = text.partition('\n## ')
  assert set(re.findall(r'`([A-Z]\w+)`', text)) == onnx_graph.OPERATORS
  for name in onnx_graph.OPERATORS:
    since = onnx.defs.get_schema(name, onnx_graph.OPSET).since_version
    assert since <= onnx_graph.OPSET


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


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_the_portable_gelus_are_gelus(dtype):
  tolerance = 1e-5
  if dtype == np.float16:
    golden_lib.skip_without_float16()
    tolerance = 1e-2
  x = np.concatenate([np.linspace(-12, 12, 241), [0, -1e4, 1e4]])
  z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  erf = np.vectorize(math.erf)(x / math.sqrt(2))
  for name, part in (('gelu', np.tanh(z)), ('gelu_erf', erf)):
    expected = 1.7015043497085571 * 0.5 * x * (1 + part)
    with conv.lowering('portable'):
      actual = np.float32(base.nonlinearities[name](jnp.asarray(x, dtype)))
    np.testing.assert_allclose(actual, expected, tolerance, tolerance)


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


def test_file_is_valid_and_says_what_it_is(exported):
  onnx.checker.check_model(str(exported), full_check=True)
  model = onnx.load(exported)
  assert [(o.domain, o.version) for o in model.opset_import] == [('', 18)]
  assert (model.ir_version, model.producer_name) == (8, 'nfnets')
  (images,), (logits,) = model.graph.input, model.graph.output
  for value, sizes in ((images, [0, 32, 32, 3]), (logits, [0, 10])):
    dims = value.type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == sizes
    assert dims[0].dim_param == 'B'
    assert value.type.tensor_type.elem_type == FLOAT
  props = {prop.key: prop.value for prop in model.metadata_props}
  entry = quick_lib.digits()[0].entry
  for name in ('mean', 'std'):
    assert json.loads(props.pop(name)) == getattr(entry, name).tolist()
  assert json.loads(props.pop('class_names')) == list(CLASS_NAMES)
  assert props == {
    'model': 'nfnet_digits',
    'image_size': '32',
    'num_classes': '10',
    'precision': 'float32',
    'preprocessing': 'resize_crop_1',
  }
  assert 'images, float32 [B, 32, 32, 3]' in model.doc_string


def test_onnxruntime_fuses_every_gelu(exported, tmp_path):
  before = [node.op_type for node in onnx.load(exported).graph.node]
  path = str(tmp_path / 'fused.onnx')
  images = np.zeros((1, 32, 32, 3), np.float32)
  run_onnx(exported, images, optimized_model_filepath=path)
  after = [node.op_type for node in onnx.load(path).graph.node]
  assert after.count('FastGelu') == before.count('Tanh') == 24
  assert 'Tanh' not in after


def test_other_operators_are_refused(tmp_path, monkeypatch):
  operators = onnx_graph.OPERATORS - {'ReduceMean', 'Gemm'}
  monkeypatch.setattr(onnx_graph, 'OPERATORS', operators)
  network = networks.of(*quick_lib.digits(), {})
  with pytest.raises(
    UserError,
    match='nfnet_digits .* not every runtime knows: Gemm, ReduceMean.$',
  ):
    onnx_graph.write(network, str(tmp_path / 'a.onnx'))
  assert not os.listdir(tmp_path)


def test_float16_bears_large_activations(half):
  network, path = half
  params = nfnets.weights.fold_weights(network.params, network.model)
  images = reference_params.reference_images(7, 32, 32)
  kernel = params['NFNet/~/stem_conv0'][base.FOLDED]
  stem = conv.conv2d(images, kernel, stride=(2, 2))
  assert 1300 < np.max(np.abs(stem)) < 5000  # 0.04 x^2 is no float16.
  assert 1e-4 < export.compare(network, path)['relative_difference'] < 1e-2


def test_constants_too_large_for_float16_are_its_largest_numbers():
  builder = onnx_ops.Builder(float16=True)
  name = builder.constant(np.float32([1e6, -1e6, 3]))
  np.testing.assert_array_equal(builder.constants[name], [65504, -65504, 3])


def test_large_weights_go_into_a_second_file(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_graph, '_MAX_BYTES', 10_000)
  model, params = quick_lib.digits()
  params = {k: x for k, x in params.items() if k != 'NFNet/~/linear'}
  network = networks.of(nfnets.create_model(model.name, 0), params, {})
  path = tmp_path / 'x.onnx'
  onnx_graph.write(network, str(path))
  assert sorted(os.listdir(tmp_path)) == ['x.onnx', 'x.onnx.data']
  assert path.stat().st_size < 100_000
  onnx.checker.check_model(str(path), full_check=True)
  (output,) = onnx.load(path).graph.output
  assert output.name == 'embedding'
  assert export.compare(network, str(path))['relative_difference'] < 1e-5
