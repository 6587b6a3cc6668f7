"""The command that computes embeddings."""

import json
import os

import golden_lib
import numpy as np
from PIL import Image
import quick_lib

from nfnets.inference import networks
import nfnets.weights

JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()


def load(path):
  """Reads the result as anybody would."""
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def expected_embedding(image):
  model, params = quick_lib.digits()
  return model.embed(params, model.preprocess(image)[None])[0]


def test_embeddings_of_a_folder_are_written(run, photos, tmp_path):
  (photos / 'deep').mkdir()
  (photos / 'c.png').rename(photos / 'deep' / 'c.png')
  output = tmp_path / 'e.npz'
  status, out, err = run(photos, f'--output={output}')
  assert (status, err) == (0, '')
  assert json.loads(out) == {
    'model': 'nfnet_digits',
    'output': str(output),
    'images': 5,
    'failed': 0,
    'dimension': 256,
  }
  result = load(output)
  assert result.keys() == {'embeddings', 'paths', 'model'}
  assert result['model'] == 'nfnet_digits'
  names = ['a.jpg', 'b.png', 'd.png', 'deep/c.png', 'e.png']
  assert list(result['paths']) == names
  embeddings = result['embeddings']
  assert embeddings.shape == (5, 256) and embeddings.dtype == np.float32
  pixels = [np.asarray(Image.open(photos / name)) for name in names[1:]]
  expected = [expected_embedding(image) for image in [JPEG, *pixels]]
  np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-5)
  assert sorted(os.listdir(tmp_path)) == ['e.npz', 'photos']


def test_images_have_the_paths_that_were_given(run, photos, tmp_path):
  output = tmp_path / 'e.npz'
  given = [str(photos), str(photos / 'b.png'), str(photos / 'b.png')]
  status, out, _ = run(*given, '--batch_size=5', f'--output={output}')
  assert status == 0 and json.loads(out)['images'] == 7
  result = load(output)
  folder = [str(photos / name) for name in sorted(os.listdir(photos))]
  assert list(result['paths']) == [*folder, *given[1:]]
  same = result['embeddings'][[1, 5, 6]]
  np.testing.assert_allclose(same, same[[0, 0, 0]], rtol=1e-4, atol=1e-6)
  run(given[1], f'--output={output}')
  assert list(load(output)['paths']) == given[1:2]


def test_without_any_image_nothing_is_written(run, tmp_path):
  (tmp_path / 'empty').mkdir()
  output = tmp_path / 'e.npz'
  for path, message in (
    ('empty', 'no image in this folder'),
    ('none', 'No such file'),
  ):
    status, out, err = run(tmp_path / path, f'--output={output}')
    assert (status, out) == (1, '')
    assert err.startswith(f'{tmp_path / path}: {message}')
    assert err.splitlines()[1:] == [
      'error: no image to embed; nothing is written.'
    ]
    assert not output.exists()


def test_names_of_files_in_other_encodings_are_kept(run, photos, tmp_path):
  name = os.fsdecode(b'caf\xe9.png')
  os.rename(photos / 'b.png', photos / name)
  (photos / os.fsdecode(b'bad\xe9.png')).write_bytes(b'')
  output = tmp_path / 'e.npz'
  status, _, err = run(photos, f'--output={output}')
  assert status == 1 and err.endswith('bad\\udce9.png: an empty file\n')
  assert name in load(output)['paths']


def test_networks_without_a_last_layer_are_taken(
  run, photos, tmp_path, monkeypatch
):
  path, output = tmp_path / 'headless.npz', tmp_path / 'e.npz'
  params = dict(quick_lib.digits()[1])
  del params['NFNet/~/linear']
  nfnets.weights.save_weights(path, params)
  embeddings = np.ones((1, 3), np.float32)
  monkeypatch.setattr(networks.Network, 'embed', lambda *_: embeddings)
  status, _, _ = run(photos / 'b.png', f'--output={output}', weights=path)
  assert status == 0
  np.testing.assert_array_equal(load(output)['embeddings'], embeddings)
