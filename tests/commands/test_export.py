"""The command that writes ONNX files."""

import contextlib
import io
import json
import os

import numpy as np
import onnx
from onnx import numpy_helper
import process_lib
import pytest
import quick_lib

from nfnets import export
from nfnets.errors import UserError
from nfnets.inference import onnx_graph
import nfnets.weights

_HEAD = 'NFNet/~/linear'


@pytest.fixture(scope='module')
def written(tmp_path_factory, weights_file):
  """Returns a file that the command wrote, and (status, out, err)."""
  path = tmp_path_factory.mktemp('onnx') / 'digits.onnx'
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = export.main([f'--weights={weights_file}', f'--output={path}'])
  return path, (status, out.getvalue(), err.getvalue())


def test_command_reports_what_it_wrote(written):
  path, (status, out, err) = written
  assert status == 0
  results = json.loads(out)
  assert results['output'] == str(path)
  assert results['model'] == 'nfnet_digits'
  assert results['image_size'] == 32
  assert results['opset'] == 18
  assert 0 < results['relative_difference'] < 1e-5
  assert 0 < results['max_difference'] < 1e-5
  assert results['onnxruntime_ms'] > 0 and results['jax_ms'] > 0
  assert results['megabytes'] == round(path.stat().st_size / 1e6, 3)
  assert 'Traceback' not in err and len(err.splitlines()) == 4
  assert os.listdir(path.parent) == ['digits.onnx']
  model = onnx.load(path)
  assert results['operators'] == sorted({n.op_type for n in model.graph.node})
  (images,), (logits,) = model.graph.input, model.graph.output
  assert (images.name, logits.name) == ('images', 'logits')


@pytest.mark.parametrize('value', [1.01, 1e30, np.nan])
def test_wrong_file_is_not_left_in_place(
  run, tmp_path, written, monkeypatch, value
):
  model = onnx.load(written[0])
  (last,) = (n for n in model.graph.node if 'logits' in n.output)
  for tensor in model.graph.initializer:
    if tensor.name == last.input[1]:
      array = numpy_helper.to_array(tensor) * np.float32(value)
      tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

  def write_wrong(network, path, float16):
    onnx.save(model, path)
    return []

  monkeypatch.setattr(onnx_graph, 'write', write_wrong)
  path = tmp_path / 'digits.onnx'
  path.write_text('older')
  status, out, err = run(f'--output={path}')
  assert (status, out) == (1, '')
  last = err.splitlines()[-1]
  assert last.startswith('error: ONNX Runtime and JAX differ by ')
  assert last.endswith('more than 0.001; nothing is written.')
  assert os.listdir(tmp_path) == ['digits.onnx']
  assert path.read_text() == 'older'


def test_weights_that_are_not_finite_are_what_is_wrong(run, tmp_path):
  path = tmp_path / 'nan.npz'
  _, params = quick_lib.digits()
  linear = {k: x * np.float32(np.nan) for k, x in params[_HEAD].items()}
  nfnets.weights.save_weights(path, {**params, _HEAD: linear})
  status, out, err = run(f'--output={tmp_path / "a.onnx"}', weights=path)
  assert (status, out) == (1, '')
  assert err.splitlines()[-1].startswith("error: The network's output is not f")
  assert os.listdir(tmp_path) == ['nan.npz']


def test_arguments_reach_the_network(run, tmp_path, monkeypatch):
  written = []

  def refuse(network, path, float16):
    written.append((network.model.test_size, float16))
    raise UserError('It is not written.')

  monkeypatch.setattr(onnx_graph, 'write', refuse)
  output = f'--output={tmp_path / "a.onnx"}'
  run(output)
  run(output, '--image_size=33', '--float16')
  assert written == [(32, False), (33, True)]


# Ends with an error, or is ended by an interrupt.
ENDED = """
import os, signal, sys
from nfnets import export
from nfnets.errors import UserError
from nfnets.inference import onnx_graph

def write(network, path, float16):
  if sys.argv[1] == 'interrupt':
    os.kill(os.getpid(), signal.SIGINT)
  raise UserError('It has a loop.')

onnx_graph.write = write
sys.exit(export.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
  ('how', 'status', 'message'),
  [
    ('raise', 1, 'error: It has a loop.'),
    ('interrupt', 130, 'error: interrupted'),
  ],
)
def test_nothing_is_left_of_what_is_not_written(
  weights_file, tmp_path, how, status, message
):
  args = f'--weights={weights_file}', f'--output={tmp_path / "a.onnx"}'
  ended = process_lib.run_python(ENDED, how, *args)
  assert (ended.returncode, ended.stdout) == (status, '')
  assert ended.stderr.splitlines()[-1] == message
  assert not os.listdir(tmp_path)
