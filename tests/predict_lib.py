"""What the tests of the commands on image files share."""

import golden_lib
import numpy as np
from PIL import Image
import pytest
import quick_lib

from nfnets import weights

digits = quick_lib.digits
JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()


@pytest.fixture(autouse=True)
def shared_models(monkeypatch):
  """Opens weights of `digits()` with that very model, which is compiled."""
  open_model = weights.open_model

  def open_shared(path, name=None):
    model, params, state = open_model(path, name)
    shared, _ = digits()
    what = model.name, model.num_classes, model.class_names, model.entry
    if what == (shared.name, shared.num_classes, None, shared.entry):
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


def runner(main, capsys, weights_file, *always):
  """Returns a function that runs a command: (*args) -> (status, out, err)."""

  def run(*args, weights=weights_file):
    try:
      status = main([f'--weights={weights}', *always, *map(str, args)])
    except SystemExit as error:
      status = error.code
    return status, *capsys.readouterr()

  return run
