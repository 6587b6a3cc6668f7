"""The cache of graphs: what is found there, and what is made again."""

import json
import os

import jax
import numpy as np
import pytest
import quick_lib
import reference_params

import nfnets
from nfnets.inference import networks, onnx_graph
from nfnets.inference.runtimes import graphs
import nfnets.weights

IMAGES = reference_params.reference_images(2, 32, 32)


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'digits.npz'
  nfnets.weights.save_weights(path, quick_lib.digits()[1])
  return str(path)


@pytest.fixture
def made(monkeypatch, tmp_path):
  """Returns a list that grows whenever a graph is made."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  calls = []
  write = onnx_graph.write

  def count(*args):
    calls.append(args)
    return write(*args)

  monkeypatch.setattr(onnx_graph, 'write', count)
  return calls


def answer(weights_file, *args, **kwargs):
  kwargs.setdefault('runtime', 'onnxruntime')
  return networks.open_network(weights_file, *args, **kwargs).logits(IMAGES)


def test_graph_is_made_once_for_all_runtimes(weights_file, made, monkeypatch):
  first = answer(weights_file)
  monkeypatch.setattr(nfnets.weights, 'open_model', None)  # Is not needed.
  np.testing.assert_array_equal(answer(weights_file), first)
  second = networks.open_network(weights_file, runtime='openvino')
  np.testing.assert_allclose(second.logits(IMAGES), first, rtol=1e-4)
  assert len(made) == 1
  model, _ = quick_lib.digits()
  assert second.name == model.name and second.class_names is None
  np.testing.assert_array_equal(second.mean, model.entry.mean)
  np.testing.assert_array_equal(second.std, model.entry.std)


def test_what_changes_a_graph_has_one_made(
  weights_file, made, monkeypatch, tmp_path
):
  answer(weights_file)
  other = tmp_path / 'other.npz'
  params = quick_lib.digits()[1]
  changed = {
    **params,
    'NFNet/~/linear': jax.tree.map(lambda x: x + 1, params['NFNet/~/linear']),
  }
  nfnets.weights.save_weights(other, changed)
  assert np.all(answer(str(other)) != answer(weights_file))
  assert len(made) == 2
  networks.open_network(weights_file, image_size=40, runtime='onnxruntime')
  assert len(made) == 3
  monkeypatch.setattr(graphs, '_versions', lambda: {'jax': '0'})
  answer(weights_file)
  assert len(made) == 4


def entry():
  [path] = graphs.folder().iterdir()
  return path


def truncate(path):
  file = path / 'graph.onnx.data'
  file.write_bytes(file.read_bytes()[:-100])


def flip(path):
  file = path / 'graph.onnx'
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def rename(path):
  file = path / 'entry.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), 'key': 'x'}))


def spoil(path):
  (path / 'entry.json').write_bytes(b'[]')


def open_to_others(path):
  path.chmod(0o777)


@pytest.mark.parametrize(
  'damage', [truncate, flip, rename, spoil, open_to_others]
)
def test_damaged_and_foreign_entries_are_made_again(weights_file, made, damage):
  first = answer(weights_file)
  damage(entry())
  np.testing.assert_array_equal(answer(weights_file), first)
  assert len(made) == 2
  np.testing.assert_array_equal(answer(weights_file), first)
  assert len(made) == 2 and entry().stat().st_mode & 0o77 == 0


def test_a_folder_that_cannot_be_written_is_done_without(
  weights_file, made, tmp_path, caplog
):
  (tmp_path / 'cache').write_text('no folder')
  assert answer(weights_file).shape == (2, 10)
  assert 'The graph is not kept' in caplog.text
  assert len(made) == 1


def test_a_full_disk_leaves_nothing_in_the_cache(
  weights_file, made, monkeypatch, caplog
):
  write = onnx_graph.write

  def fill(network, path, *args):
    if str(graphs.folder()) in path:
      with open(f'{path}.data', 'wb') as file:
        file.write(b'half')
      raise OSError(28, 'No space left on device')
    return write(network, path, *args)

  monkeypatch.setattr(onnx_graph, 'write', fill)
  assert answer(weights_file).shape == (2, 10)
  assert 'No space left on device' in caplog.text
  assert os.listdir(graphs.folder()) == []


def test_the_oldest_graphs_are_removed(weights_file, made, monkeypatch):
  answer(weights_file)
  old = entry()
  os.utime(old, (0, 0))
  monkeypatch.setattr(graphs, '_MAX_BYTES', 2_000_000)
  networks.open_network(weights_file, image_size=40, runtime='onnxruntime')
  assert entry() != old
