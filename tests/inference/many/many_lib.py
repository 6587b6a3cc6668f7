"""A network that costs nothing, and pictures for it."""

import types

import numpy as np
from PIL import Image
import pytest

from nfnets.inference import command_line

NUM_IMAGES = 22
BROKEN = (3, 4, 17)


class Network(types.SimpleNamespace):
  """Stands for a `networks.Network` of 3 classes."""

  name, num_classes, class_names = 'fake', 3, ('a', 'b,"c', 'd\ne')
  image_size, preprocessing = 2, 'resize_crop_1'
  runtime, precision, tta = 'jax', 'float32', None

  def preprocess(self, image):
    return np.float32(image[:2, :2])

  def logits(self, images):
    return images[:, 0, 0] / 40

  def embed(self, images):
    return images.reshape(len(images), -1) / 7


@pytest.fixture
def network(tmp_path, monkeypatch):
  """Has commands open `Network`, whose weights are in fake.npz."""
  (tmp_path / 'fake.npz').write_bytes(b'weights')
  opened = Network()
  monkeypatch.setattr(command_line, 'open_network', lambda *_, **__: opened)
  return opened


@pytest.fixture
def pictures(tmp_path):
  """Returns a folder of pictures, some of which are broken."""
  folder = tmp_path / 'pictures'
  rng = np.random.default_rng(0)
  for i in range(NUM_IMAGES):
    path = folder / f'{i % 3}' / f'{i:02}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).save(path)
    if i in BROKEN:
      path.write_bytes(b'')
  return folder


@pytest.fixture
def run(tmp_path, capsys, network):
  """Returns a function that runs a command: (status, out, err)."""

  def run_command(main, *args):
    capsys.readouterr()  # Of a command before that was stopped.
    try:
      status = main([f'--weights={tmp_path / "fake.npz"}', *map(str, args)])
    except SystemExit as error:
      status = error.code
    return status, *capsys.readouterr()

  return run_command
