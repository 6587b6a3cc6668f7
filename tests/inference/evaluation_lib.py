"""A folder of a run, as training leaves it, of the pictures of the tests."""

import json

import pytest
import quick_lib

from nfnets import weights

# As in other tests, which have it compiled.
BATCH = 5
HEAD = 'NFNet/~/linear'


@pytest.fixture
def run(tmp_path, pictures, monkeypatch):
  """Returns the folder; its weights open with the compiled model."""
  model, params = quick_lib.digits()
  folder = tmp_path / 'a "run"'
  folder.mkdir()
  settings = {'which_dataset': pictures.root, 'eval_subset': 'valid'}
  info = {'settings': settings, 'command': 'python train.py'}
  (folder / 'run.json').write_text(json.dumps(info))
  metadata = weights.describe(
    model, class_names=pictures.names, trained_on=pictures.root
  )
  file = folder / 'weights.safetensors'
  weights.save_weights(file, params, {}, metadata)
  open_model = weights.open_model

  def open_shared(path, name=None):
    opened, params, state = open_model(path, name)
    if opened.class_names in (None, tuple(pictures.names)):
      opened = quick_lib.digits()[0]
    return opened, params, state

  monkeypatch.setattr(weights, 'open_model', open_shared)
  return folder
