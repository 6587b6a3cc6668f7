"""What the tests of the commands on image files share."""

import functools

import golden_lib
import jax
import numpy as np
from PIL import Image
import pytest

import nfnets
from nfnets import weights

JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()


@functools.cache
def digits():
  """Returns a small network and random parameters."""
  model = nfnets.create_model('nfnet_digits', 10)
  params, _ = jax.jit(model.init, compiler_options=golden_lib.QUICK)(
    jax.random.key(0)
  )
  return model, jax.tree.map(np.asarray, params)


@pytest.fixture(autouse=True)
def shared_models(monkeypatch):
  """Opens weights of `digits()` with that very model, which is compiled."""
  open_model = weights.open_model

  def open_shared(path, name=None):
    model, params, state = open_model(path, name)
    shared, _ = digits()
    if (model.name, model.num_classes) == (shared.name, shared.num_classes):
      model = shared
    return model, params, state

  monkeypatch.setattr(weights, 'open_model', open_shared)


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
  """Returns a file of the parameters of `digits()`."""
  path = tmp_path_factory.mktemp('weights') / 'digits.npz'
  weights.save_weights(path, digits()[1])
  return path


@pytest.fixture
def photos(tmp_path):
  """Returns a folder of a.jpg and b.png to e.png, of several sizes."""
  folder = tmp_path / 'photos'
  folder.mkdir()
  (folder / 'a.jpg').write_bytes(JPEG)
  rng = np.random.default_rng(0)
  for i, name in enumerate('bcde'):
    pixels = rng.integers(0, 256, (8, 5 + i, 3), np.uint8)
    image = Image.fromarray(pixels).resize((60 + 9 * i, 40))
    image.save(folder / f'{name}.png')
  return folder


def runner(main, capsys, weights_file):
  """Returns a function that runs a command: (*args) -> (status, out, err)."""

  def run(*args, weights=weights_file):
    try:
      status = main([f'--weights={weights}', *map(str, args)])
    except SystemExit as error:
      status = error.code
    return status, *capsys.readouterr()

  return run
