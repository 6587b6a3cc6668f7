"""Which runtime is taken, and what is said where there is none."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import quick_lib

import nfnets
from nfnets.inference import networks
from nfnets.inference.runtimes import choice, openvino_runtime
import nfnets.weights


def without(monkeypatch, *names):
  for name in names:
    monkeypatch.setitem(sys.modules, name, None)


def test_auto_is_the_fastest_that_is_installed(monkeypatch):
  monkeypatch.setattr(openvino_runtime, 'has_bfloat16', lambda: True)
  assert choice.choose('auto', 'float32') == 'openvino'
  assert choice.choose('auto', 'bfloat16') == 'openvino'
  monkeypatch.setattr(openvino_runtime, 'has_bfloat16', lambda: False)
  assert choice.choose('auto', 'bfloat16') == 'jax'
  without(monkeypatch, 'openvino')
  assert choice.choose('auto', 'float32') == 'onnxruntime'
  without(monkeypatch, 'onnx')
  assert choice.choose('auto', 'float32') == 'jax'


def test_auto_is_jax_where_it_has_an_accelerator(monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(choice, '_is_installed', lambda name: True)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert choice.choose('auto', 'float32') == 'jax'
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  assert choice.choose('auto', 'float32') == 'openvino'


def test_what_cannot_be_had_is_told(monkeypatch):
  monkeypatch.setattr(openvino_runtime, 'has_bfloat16', lambda: False)
  for runtime, precision, message in (
    ('tensorrt', 'float32', 'No runtime .*auto, jax, onnxruntime, openvino'),
    ('jax', 'float16', "No precision 'float16'; there are float32, bfloat16"),
    ('onnxruntime', 'bfloat16', 'OpenVINO and JAX do in both'),
    ('openvino', 'bfloat16', 'not compute in bfloat16 on this CPU'),
  ):
    with pytest.raises(ValueError, match=message):
      choice.choose(runtime, precision)
  for threads, runtime in ((0, 'openvino'), (2, 'jax')):
    with pytest.raises(ValueError, match='thread'):
      networks.open_network('x.npz', runtime=runtime, threads=threads)
  without(monkeypatch, 'openvino', 'onnx')
  with pytest.raises(
    networks.RuntimeMissingError,
    match=r'not installed: openvino, onnx; pip install ".\[openvino\]"',
  ):
    choice.choose('openvino', 'float32')


def test_loaded_model_runs_for_its_own_parameters(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  shared, own = quick_lib.digits()
  path = tmp_path / 'digits.npz'
  nfnets.weights.save_weights(path, own)
  model, params, state = nfnets.load(path, runtime='onnxruntime')
  images = np.zeros((2, 32, 32, 3), np.float32)
  np.testing.assert_allclose(
    model.logits(params, images), shared.logits(own, images), atol=1e-5
  )
  assert len(model.features(params, images, state)) == 5
  assert nfnets.load(path, 3, runtime='onnxruntime')[0].logits.__self__
  for others in (own, {**params, 'NFNet/~/linear': {}}):
    with pytest.raises(ValueError, match='for the parameters that nfnets.load'):
      model.logits(others, images)
  with pytest.raises(ValueError, match='read-only'):
    params['NFNet/~/linear']['b'][:] = 0
  with pytest.raises(ValueError, match='JAX cannot trace'):
    jax.jit(lambda x: model.embed(params, x))(images)


def test_openvino_is_imported_without_what_reports_its_use():
  code = (
    'import sys\n'
    'from nfnets.inference.runtimes import openvino_runtime\n'
    'openvino_runtime.load()\n'
    "names = {'openvino_telemetry', 'openvino.tools.ovc', 'jax'}\n"
    'assert not names & set(sys.modules)\n'
    'from openvino.tools.ovc import convert_model'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_a_network_from_the_cache_needs_no_jax(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  path = tmp_path / 'digits.npz'
  nfnets.weights.save_weights(path, quick_lib.digits()[1])
  networks.open_network(str(path), runtime='onnxruntime')
  code = (
    'import sys, numpy as np\n'
    'from nfnets.inference import networks\n'
    f'n = networks.open_network({str(path)!r}, runtime="onnxruntime")\n'
    'x = n.preprocess(np.zeros((40, 50, 3), np.uint8))\n'
    'assert n.logits(x[None]).shape == (1, 10)\n'
    "names = {'jax', 'haiku', 'tensorflow', 'onnx'} & set(sys.modules)\n"
    'assert not names, names'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
