"""The command that writes ONNX files."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import sys

import jax
import numpy as np
import onnx
from onnx import numpy_helper
import onnxruntime
import predict_lib
import pytest
import quick_lib
import reference_params

import nfnets
from nfnets import base, conv, export, onnx_graph, predict
import nfnets.weights

shared_models = predict_lib.shared_models
quickly_compiled = quick_lib.quickly_compiled
weights_file = predict_lib.weights_file
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture
def run(capsys, weights_file):
  """Returns a function that runs the command: (*args) -> (status, out, err)."""
  return predict_lib.runner(export.main, capsys, weights_file)


@pytest.fixture(scope='module')
def exported(tmp_path_factory, weights_file):
  """Returns a file of `predict_lib.digits()`."""
  path = tmp_path_factory.mktemp('onnx') / 'digits.onnx'
  assert export.main([f'--weights={weights_file}', f'--output={path}']) == 0
  return path


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
  """Returns images, and the logits of `predict_lib.digits()` for them."""
  model, params = predict_lib.digits()
  images = reference_params.reference_images(7, 32, 32)
  return images, np.asarray(model.logits(params, images))


def reference_network(model, edit=lambda params: params):
  """Returns folded deterministic weights as a `predict.Network`."""
  params, state = jax.eval_shape(
    lambda key: model.init(key, 32), jax.random.key(0)
  )
  params = edit(reference_params.reference_params(params))
  params = nfnets.weights.fold_weights(params, model)
  return predict.Network(
    model, params, reference_params.reference_params(state)
  )


def test_command_reports_what_it_wrote(run, tmp_path):
  path = tmp_path / 'digits.onnx'
  status, out, err = run(f'--output={path}', '--image_size=33')
  assert status == 0
  results = json.loads(out)
  assert results['output'] == str(path)
  assert results['model'] == 'nfnet_digits'
  assert results['image_size'] == 33
  assert results['opset'] == 18
  assert 0 < results['relative_difference'] < 1e-5
  assert 0 < results['max_difference'] < 1e-5
  assert results['onnxruntime_ms'] > 0 and results['jax_ms'] > 0
  assert results['megabytes'] == round(path.stat().st_size / 1e6, 3)
  assert 'Traceback' not in err and len(err.splitlines()) == 4
  assert os.listdir(tmp_path) == ['digits.onnx']
  model = onnx.load(path)
  assert results['operators'] == sorted({n.op_type for n in model.graph.node})
  (images,), (logits,) = model.graph.input, model.graph.output
  assert (images.name, logits.name) == ('images', 'logits')


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
  entry = predict_lib.digits()[0].entry
  assert json.loads(props['mean']) == pytest.approx(list(entry.mean))
  assert json.loads(props['std']) == pytest.approx(list(entry.std))
  assert 'images, float32 [B, 32, 32, 3]' in model.doc_string


def test_any_batch_gives_what_jax_gives(exported):
  images, expected = examples()
  for size in (1, 3, 7):
    actual = run_onnx(exported, images[:size])
    assert relative(actual, expected[:size]) < 1e-5


def test_standardization_is_folded(exported):
  model, params = predict_lib.digits()
  folded = nfnets.weights.fold_weights(params, model)
  kernels = [
    np.asarray(leaf).transpose(3, 2, 0, 1)
    for leaves in folded.values()
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
  text = pathlib.Path(__file__).parents[1].joinpath('docs/onnx.md').read_text()
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


def test_other_operators_are_refused(run, tmp_path, monkeypatch):
  monkeypatch.setattr(
    onnx_graph, 'OPERATORS', onnx_graph.OPERATORS - {'Tanh', 'Gemm'}
  )
  status, out, err = run(f'--output={tmp_path / "a.onnx"}')
  assert (status, out) == (1, '')
  assert err.splitlines()[-1] == (
    'error: nfnet_digits would have operators that not every runtime knows: '
    'Gemm, Tanh.'
  )
  assert not os.listdir(tmp_path)


def test_float16_computes_in_float16_but_for_means(run, tmp_path):
  path = tmp_path / 'digits.onnx'
  status, out, _ = run(f'--output={path}', '--float16')
  assert status == 0
  assert 1e-4 < json.loads(out)['relative_difference'] < 1e-2
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
  images, expected = examples()
  assert relative(run_onnx(path, images), expected) < 1e-2


def test_float16_bears_large_activations(tmp_path):
  model, _ = predict_lib.digits()

  def large(params):
    params['NFNet/~/stem_conv0']['gain'] = np.full(16, 400, np.float32)
    return params

  network = reference_network(model, large)
  kernel = network.params['NFNet/~/stem_conv0'][base.FOLDED]
  stem = conv.conv2d(examples()[0], kernel, stride=(2, 2))
  assert 1300 < np.max(np.abs(stem)) < 5000  # 0.04 x^2 is no float16.
  path = str(tmp_path / 'a.onnx')
  onnx_graph.write(network, path, float16=True)
  assert export.compare(network, path)['relative_difference'] < 1e-2


def test_gelu_is_gelu():
  x = np.concatenate([np.linspace(-12, 12, 241), [0, -1e4, 1e4]])
  z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  expected = 1.7015043497085571 * 0.5 * x * (1 + np.tanh(z))
  actual = onnx_graph._gelu(np.float32(x))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  half = onnx_graph._gelu(jax.numpy.float16(x))
  actual = np.asarray(half, np.float32)
  np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)


def test_weights_without_a_last_layer_give_embeddings(tmp_path, capsys):
  _, params = predict_lib.digits()
  params = {
    key: leaves for key, leaves in params.items() if 'NFNet/~/linear' != key
  }
  weights, path = tmp_path / 'w.npz', tmp_path / 'a.onnx'
  nfnets.weights.save_weights(weights, params)
  assert export.main([f'--weights={weights}', f'--output={path}']) == 0
  (output,) = onnx.load(path).graph.output
  assert output.name == 'embedding'
  images, logits = examples()
  linear = predict_lib.digits()[1]['NFNet/~/linear']
  actual = run_onnx(path, images) @ linear['w'] + linear['b']
  assert relative(actual, logits) < 1e-5


def test_large_weights_go_into_a_second_file(run, tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_graph, '_MAX_BYTES', 100_000)
  path = tmp_path / 'digits.onnx'
  status, out, _ = run(f'--output={path}')
  assert status == 0
  assert sorted(os.listdir(tmp_path)) == ['digits.onnx', 'digits.onnx.data']
  sizes = [file.stat().st_size for file in tmp_path.iterdir()]
  assert path.stat().st_size < 200_000
  assert json.loads(out)['megabytes'] == round(sum(sizes) / 1e6, 3)
  onnx.checker.check_model(str(path), full_check=True)
  images, expected = examples()
  assert relative(run_onnx(path, images), expected) < 1e-5


@pytest.mark.parametrize('value', [1.01, np.nan, 1e30])
def test_wrong_file_is_not_left_in_place(run, tmp_path, monkeypatch, value):
  write = onnx_graph.write

  def corrupt(network, path, float16):
    operators = write(network, path, float16)
    model = onnx.load(path)
    (last,) = (n for n in model.graph.node if 'logits' in n.output)
    for tensor in model.graph.initializer:
      if tensor.name == last.input[1]:
        array = numpy_helper.to_array(tensor) * np.float32(value)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    return operators

  monkeypatch.setattr(onnx_graph, 'write', corrupt)
  path = tmp_path / 'digits.onnx'
  path.write_text('older')
  status, out, err = run(f'--output={path}')
  assert (status, out) == (1, '')
  last = err.splitlines()[-1]
  assert last.startswith('error: ONNX Runtime and JAX differ by ')
  assert last.endswith('more than 0.001; nothing is written.')
  assert os.listdir(tmp_path) == ['digits.onnx']
  assert path.read_text() == 'older'


def test_missing_packages_are_named(run, tmp_path, monkeypatch):
  for name in ('jax2onnx', 'onnxruntime'):
    monkeypatch.setitem(sys.modules, name, None)
  status, out, err = run(f'--output={tmp_path / "a.onnx"}')
  assert (status, out) == (1, '')
  assert err == (
    'error: ONNX export needs packages that are not installed: jax2onnx, '
    'onnxruntime; pip install ".[onnx]" in the folder of this project.\n'
  )


@pytest.mark.parametrize(
  ('output', 'status', 'message'),
  [
    ('a.npz', 2, 'a.npz does not end in .onnx.'),
    ('none/a.onnx', 1, 'there is no folder'),
    ('folder.onnx', 1, 'is a folder.'),
  ],
)
def test_bad_output_is_told_before_the_work(
  run, tmp_path, monkeypatch, output, status, message
):
  (tmp_path / 'folder.onnx').mkdir()
  monkeypatch.setattr(predict, 'open_network', None)
  code, out, err = run(f'--output={tmp_path / output}')
  assert (code, out) == (status, '')
  assert err.startswith(f'error: --output={tmp_path / output}')
  assert message in err and err.count('\n') == 1


@pytest.mark.parametrize('size', ['0', '-3', 'x', '1.5'])
def test_bad_image_size_is_a_wrong_command(run, tmp_path, size):
  status, _, err = run(f'--output={tmp_path / "a"}', f'--image_size={size}')
  assert status == 2
  assert 'is no whole number above 0' in err


def test_bad_weights_are_told_in_one_line(run, tmp_path):
  bad = tmp_path / 'bad.npz'
  bad.write_bytes(b'nothing')
  for path in (bad, tmp_path / 'none.npz'):
    status, out, err = run(f'--output={tmp_path / "a.onnx"}', weights=path)
    assert (status, out) == (1, '')
    assert err.startswith(f'error: {path}') and err.count('\n') == 1
  assert os.listdir(tmp_path) == ['bad.npz']


SLOW = pytest.mark.slow
MORE = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.mark.parametrize(
  ('name', 'kwargs', 'size'),
  [
    ('nf_resnet50', {'width': 1}, 35),
    ('timm/test_nfnet', {}, 33),
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
  network = reference_network(dataclasses.replace(model, entry=entry))
  path = str(tmp_path / 'a.onnx')
  assert set(onnx_graph.write(network, path, False)) <= onnx_graph.OPERATORS
  assert export.compare(network, path)['relative_difference'] < 1e-4
