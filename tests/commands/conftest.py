"""Weights, pictures and a way to run the command, for its tests."""

import importlib

import golden_lib
import numpy as np
from PIL import Image
import pytest
from quick_lib import digits, quickly_compiled  # noqa: F401

from nfnets import weights
from nfnets.weights import opening

_JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()


@pytest.fixture(autouse=True)
def shared_models(monkeypatch):
  """Opens weights of `digits()` with that very model, which is compiled."""
  open_model = opening.open_model

  def open_shared(path, name=None):
    model, params, state = open_model(path, name)
    shared, _ = digits()
    what = model.name, model.num_classes, model.class_names, model.entry
    if what == (shared.name, shared.num_classes, None, shared.entry):
      model = shared
    return model, params, state

  monkeypatch.setattr(opening, 'open_model', open_shared)


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
  (folder / 'a.jpg').write_bytes(_JPEG)
  rng = np.random.default_rng(0)
  for i, name in enumerate('bcde'):
    pixels = rng.integers(0, 256, (8, 5 + i, 3), np.uint8)
    image = Image.fromarray(pixels).resize((60 + 9 * i, 40))
    image.save(folder / f'{name}.png')
  return folder


@pytest.fixture
def run(request, capsys, weights_file, tmp_path, monkeypatch):
  """Returns a function that runs the command: (*args) -> (status, out, err)."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  name = request.module.__name__.removeprefix('test_')
  main = importlib.import_module(f'nfnets.{name}').main
  always = [] if name == 'export' else ['--runtime=jax']

  def run(*args, weights=weights_file):
    try:
      status = main([f'--weights={weights}', *always, *map(str, args)])
    except SystemExit as error:
      status = error.code
    return status, *capsys.readouterr()

  return run
