"""The example on Ray gives the rows of the commands, and loses none."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image
import psutil
from pyarrow import dataset
import pytest
import quick_lib

from nfnets import weights

pytestmark = pytest.mark.slow
pytest.importorskip('ray')

_ROOT = pathlib.Path(__file__).parents[1]
_PARTS = 24


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with weights and pictures, large ones, for it to take a while."""
  folder = tmp_path_factory.mktemp('ray')
  model, params = quick_lib.digits()
  metadata = {**weights.describe(model), 'class_names': list('abcdefghij')}
  weights.save_weights(folder / 'w.safetensors', params, metadata=metadata)
  (folder / 'photos' / 'inner').mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(10 * _PARTS - 2):
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((1600, 1200))
    image.save(folder / 'photos' / 'inner' / f'{i:03}.jpg')
  (folder / 'photos' / 'text.jpg').write_bytes(b'no image')
  (folder / 'photos' / 'empty.png').write_bytes(b'')
  (folder / 'photos' / '.hidden.jpg').write_bytes(b'')
  return folder


@pytest.fixture
def start(folder, monkeypatch):
  """Returns a function that starts a program in the folder."""
  # The paths of Ray's sockets have to be short.
  temporary = tempfile.mkdtemp(prefix='ray')
  monkeypatch.setenv('RAY_TMPDIR', temporary)
  monkeypatch.setenv('HOME', str(folder))
  monkeypatch.setenv('PYTHONPATH', str(_ROOT))
  monkeypatch.delenv('RAY_ADDRESS', raising=False)
  yield lambda *args: subprocess.Popen(
    [sys.executable, *args, '--weights=w.safetensors'],
    cwd=folder,
    stdout=subprocess.PIPE,
    text=True,
  )
  shutil.rmtree(temporary, ignore_errors=True)


def finish(process):
  """Returns the exit status and the last line that a program printed."""
  out, _ = process.communicate(timeout=300)
  # Ray may print lines on a lost worker at any time.
  (line,) = (line for line in out.splitlines() if line.startswith('{'))
  return process.returncode, json.loads(line)


def read_rows(folder):
  rows = dataset.dataset(folder, format='parquet').to_table().to_pylist()
  return {x['image']: x for x in rows}, len(rows)


def test_rows_are_those_of_the_command_though_a_worker_is_killed(folder, start):
  example = _ROOT / 'examples' / 'classify_on_ray.py'
  command = [example, 'photos', '--output=out', '--workers=2', '--part=10']
  process, out = start(*command), folder / 'out'
  while not (out.is_dir() and list(out.glob('*.parquet'))):
    assert process.poll() is None
    time.sleep(0.02)
  family = psutil.Process(process.pid).children(recursive=True)
  workers = [x for x in family if x.name().startswith('ray::MapWork')]
  assert len(workers) == 2
  workers[0].kill()
  assert len(list(out.glob('*.parquet'))) < _PARTS
  status, last = finish(process)
  assert (status, last) == (1, {'images': 10 * _PARTS, 'failed': 2})
  rows, count = read_rows(out)
  assert count == len(rows) == 10 * _PARTS

  finish(start('-m', 'nfnets.classify', 'photos', '--output=rows.jsonl'))
  for line in (folder / 'rows.jsonl').read_text().splitlines():
    want = json.loads(line)
    row = rows.pop(want['image'])
    assert row['error'] == want.get('error')
    if 'error' not in want:
      top = want['top']
      assert row['label'] == [x['label'] for x in top]
      assert row['name'] == [x['name'] for x in top]
      probabilities = [x['probability'] for x in top]
      np.testing.assert_allclose(row['probability'], probabilities, rtol=1e-4)
  assert not rows

  # A second start makes what is missing, and nothing else.
  parts = sorted(out.glob('*.parquet'))
  parts[3].unlink()
  before = {x: os.stat(x).st_mtime_ns for x in parts if x.exists()}
  assert finish(start(*command)) == (0, {'images': 10 * _PARTS, 'failed': 0})
  assert sorted(out.glob('*.parquet')) == parts
  assert all(os.stat(x).st_mtime_ns == time for x, time in before.items())
  # Other options are refused before anything is made.
  process = start(*command, '--top=3')
  assert process.wait(60) == 2 and sorted(out.glob('*.parquet')) == parts


def test_embeddings_of_a_list_are_those_of_the_command(folder, start):
  names = [f'photos/inner/{i:03}.jpg' for i in (7, 2, 5)] + ['photos/text.jpg']
  (folder / 'list').write_text('\n'.join(names))
  example = _ROOT / 'examples' / 'classify_on_ray.py'
  options = ['--list=list', '--embed', '--runtime=jax', '--output=vectors']
  assert finish(start(example, *options))[1] == {'images': 4, 'failed': 1}
  rows, _ = read_rows(folder / 'vectors')
  assert rows.pop('photos/text.jpg')['embedding'] is None
  finish(start('-m', 'nfnets.embed', '--list=list', '--output=e.npz'))
  with np.load(folder / 'e.npz') as file:
    want = dict(zip(file['paths'], file['embeddings'], strict=True))
  assert rows.keys() == want.keys()
  for name, row in rows.items():
    np.testing.assert_allclose(row['embedding'], want[name], atol=1e-3)
