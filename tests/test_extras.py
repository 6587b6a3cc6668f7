"""Each extra brings what its commands need, in an environment of its own."""

import contextlib
import glob
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import urllib.request

import numpy as np
from PIL import Image
import pytest
import quick_lib

from nfnets import weights

ROOT = pathlib.Path(__file__).parents[1]
_EXPERIMENT = ROOT / 'experiments' / 'experiment.py'
_STUDY = ROOT / 'experiments' / 'tools' / 'study.py'
_PLAN = ROOT / 'experiments' / 'tools' / 'plan.py'
_RAY = ROOT / 'examples' / 'classify_on_ray.py'
_SMALL = f'{_EXPERIMENT} --config=digits:small --compile_quickly'
# Commands that the docs name, and one that writes what the next one reads.
_COMMANDS = {
  'train': (_SMALL,),
  'heic': (
    'write_heic.py',
    '-m nfnets.embed --weights=w.safetensors photos --output=e.npz',
  ),
  'onnx': (
    '-m nfnets.export --weights=w.safetensors --output=w.onnx',
    '-m nfnets.embed --weights=w.safetensors photos --output=e.npz',
  ),
  'openvino': (
    '-m nfnets.embed --weights=w.safetensors photos --output=e.npz',
    '-m nfnets.classify --weights=w.safetensors photos --output=c.parquet',
  ),
  'hub': ('-m nfnets.embed --weights=hf://me/net photos --output=e.npz',),
  'demo': ('-m nfnets.demo --weights=w.safetensors --port=0',),
  'ray': (f'{_RAY} --weights=w.safetensors photos --output=out',),
  'private': (
    f'{_SMALL} --clip_per_example=norm --private.noise_multiplier=3 '
    '--private.epsilon=inf --private.delta=1e-5',
  ),
  'study': (f'{_STUDY} sweep sweep.py --output=sweep',),
  'plan': (f'{_PLAN} --config=digits:small --device=tpu_v3 --quick',),
}
_WRITE_HEIC = """\
from PIL import Image
import pillow_heif
pillow_heif.register_heif_opener()
Image.new('RGB', (64, 64)).save('photos/b.heic')
print('{"failed": 0}')
"""
_SWEEP = """\
config = 'digits:small'
settings = {'compile_quickly': True}
axes = {'train_batch_size': [16]}
seeds = range(1)
"""


@pytest.fixture
def folder(tmp_path):
  """A folder with what the commands read."""
  model, params = quick_lib.digits()
  file = tmp_path / 'w.safetensors'
  weights.save_weights(file, params, metadata=weights.describe(model))
  # As the hub's own client keeps it.
  repository = tmp_path / 'hub' / 'models--me--net'
  (repository / 'refs').mkdir(parents=True)
  (repository / 'refs' / 'main').write_text('0' * 40)
  snapshot = repository / 'snapshots' / ('0' * 40)
  snapshot.mkdir(parents=True)
  shutil.copy(file, snapshot / 'weights.safetensors')
  (tmp_path / 'photos').mkdir()
  Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(
    tmp_path / 'photos' / 'a.png'
  )
  (tmp_path / 'sweep.py').write_text(_SWEEP)
  (tmp_path / 'write_heic.py').write_text(_WRITE_HEIC)
  return tmp_path


@contextlib.contextmanager
def _started(python, command, folder):
  """Yields a process that ends with this."""
  env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
  env |= {'HF_HUB_CACHE': str(folder / 'hub'), 'NFNETS_OFFLINE': '1'}
  env |= {'XDG_CACHE_HOME': str(folder / 'cache')}
  env.pop('JAX_PLATFORMS', None)
  with subprocess.Popen(
    [python, *command.split()],
    cwd=folder,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      yield process
    finally:
      process.kill()


@pytest.mark.slow
@pytest.mark.parametrize('extra', _COMMANDS)
def test_an_extra_alone_is_enough_for_its_commands(extra, folder):
  # A copy, because several tests may build at once.
  source = folder / 'source'
  shutil.copytree(ROOT / 'nfnets', source / 'nfnets')
  for name in ('pyproject.toml', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  uv = [sys.executable, '-m', 'uv']
  python = folder / 'venv' / 'bin' / 'python'
  subprocess.run(
    [*uv, 'venv', '--python', sys.executable, folder / 'venv'], check=True
  )
  subprocess.run(
    [*uv, 'pip', 'install', '--python', python, f'{source}[{extra}]'],
    check=True,
  )
  for command in _COMMANDS[extra]:
    with _started(python, command, folder) as process:
      if extra == 'demo':
        address = process.stdout.readline().split(' ')[0]
        assert b'<html' in urllib.request.urlopen(address, timeout=60).read()
        process.send_signal(signal.SIGINT)
      out, err = process.communicate(timeout=600)
    assert process.returncode == 0, f'{command}\n{err}'
    if extra != 'demo':
      assert not json.loads(out.splitlines()[-1]).get('failed')
    assert 'libtpu' not in err.lower() and 'TPU_' not in err


@pytest.mark.skipif(
  bool(importlib.util.find_spec('jax_plugins') or glob.glob('/dev/accel*')),
  reason='there is an accelerator',
)
@pytest.mark.parametrize('order', ['nfnets, jax', 'jax, nfnets'])
@pytest.mark.parametrize('given', [None, 'cpu,cpu'])
def test_an_absent_tpu_is_not_started(tmp_path, order, given):
  """Without a TPU, libtpu would warn; it may be installed for planning."""
  (tmp_path / 'libtpu.py').write_text('get_library_path = lambda: __file__\n')
  env = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)]),
  }
  env.pop('JAX_PLATFORMS', None)
  env |= {'JAX_PLATFORMS': given} if given else {}
  env.pop('XLA_FLAGS', None)
  program = f'import {order}; print(jax.devices(), jax.config.jax_platforms)'
  out = subprocess.run(
    [sys.executable, '-c', program], env=env, check=True, capture_output=True
  ).stdout
  assert out.decode() == f'[CpuDevice(id=0)] {given or "cpu"}\n'
