"""Weights of the Hugging Face Hub, from a hub on this machine."""

import hashlib
import sys
import time

from huggingface_hub import constants
import jax
import numpy as np
import pytest
import quick_lib
import reference_params
import safetensors.numpy
import weights_server

import nfnets
from nfnets import weights
from nfnets.weights import hub, timm

COMMIT = 40 * 'c'


class Hub:
  """What the hub answers; `files` is {path: bytes}, `error` for all of them."""

  def __init__(self, server):
    self.server, self.files, self.error = server, {}, None
    server.misbehave = self._answer

  def _answer(self, handler):
    content, status = self.files.get(handler.path), 200
    headers = {'X-Repo-Commit': COMMIT}
    if content is None:
      content, status = b'', 404
      headers['X-Error-Code'] = 'EntryNotFound'
    if self.error:
      status, headers['X-Error-Code'] = self.error
    headers['ETag'] = f'"{hashlib.sha256(content).hexdigest()}"'
    handler.answer(content, status, **headers)

  def paths(self):
    """Returns what was asked for of repositories."""
    return [x for x in self.server.paths if '/resolve/' in x]


@pytest.fixture
def served(tmp_path, monkeypatch):
  """A hub without any weights, and an empty cache."""
  cache = str(tmp_path / 'hub')
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', cache)
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  monkeypatch.delenv('NFNETS_OFFLINE', raising=False)
  with weights_server.serving(b'') as server:
    monkeypatch.setenv('HF_ENDPOINT', server.url)
    yield Hub(server)


@pytest.fixture(scope='module')
def small():
  """timm's smallest network, as timm has it, and as it is here."""
  model = nfnets.create_model('timm/test_nfnet', 10)
  shapes, _ = jax.eval_shape(lambda rng: model.init(rng, 32), jax.random.key(0))
  params = reference_params.reference_params(shapes)
  state_dict = timm.to_timm('test_nfnet', params)
  return safetensors.numpy.save(state_dict, {'format': 'pt'}), params


def test_weights_of_timm_are_fetched_once(served, small):
  content, params = small
  path = '/timm/test_nfnet.r160_in1k/resolve/main/model.safetensors'
  served.files[path] = content
  model, read, _ = weights.open_model('timm/test_nfnet')
  assert (model.name, model.num_classes) == ('timm/test_nfnet', 10)
  jax.tree.map(np.testing.assert_array_equal, read, params)
  assert set(served.paths()) == {path}
  served.server.paths.clear()
  found = weights.find('timm/test_nfnet.r160_in1k')
  assert found.read_bytes() == content and not served.server.paths


def test_weights_of_another_network_are_not_taken(served, small):
  path = '/timm/nfnet_l0.ra2_in1k/resolve/main/model.safetensors'
  served.files[path] = small[0]
  with pytest.raises(ValueError, match='of timm/test_nfnet with .*, not of'):
    weights.open_model('timm/nfnet_l0')


def test_repositories_of_anyone_have_ours(served, tmp_path):
  model, params = quick_lib.digits()
  names = [str(i) for i in range(10)]
  path = tmp_path / 'x.safetensors'
  metadata = weights.describe(model, class_names=names)
  weights.save_weights(path, params, metadata=metadata)
  served.files['/me/my.net/resolve/v1/weights.safetensors'] = path.read_bytes()
  opened, _, _ = weights.open_model('hf://me/my.net@v1')
  assert opened.class_names == tuple(names)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('hf://me', 'is not of the form hf://organization/repository'),
    ('hf://../../etc', 'is not of the form'),
    ('hf://me/x@', 'is not of the form'),
    ('timm/nfnet_f7', 'timm has published no weights of nfnet_f7, only timm/'),
  ],
)
def test_names_that_there_cannot_be(served, name, message):
  with pytest.raises(ValueError, match=f'^{name}:? {message}'):
    weights.find(name)
  assert not served.server.paths


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (None, 'me/x has neither model.safetensors nor weights.safetensors.'),
    ((404, 'RepoNotFound'), '.*Repository Not Found'),
    ((404, 'RevisionNotFound'), '.*Revision Not Found'),
    ((403, 'GatedRepo'), '.*Cannot access gated repo'),
    ((403, 'x'), '.*403 Forbidden'),
  ],
)
def test_errors_of_the_hub_are_one_line(served, error, message):
  served.error = error
  with pytest.raises(OSError, match=f'^hf://me/x@v1: {message}') as caught:
    weights.find('hf://me/x@v1')
  assert '\n' not in str(caught.value)


def test_hub_that_is_not_there(served, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
  monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # Before retries.
  with pytest.raises(OSError, match='^hf://me/x: the hub cannot be reached: '):
    weights.find('hf://me/x')


def test_offline_the_hub_is_not_asked(served, monkeypatch):
  monkeypatch.setenv('NFNETS_OFFLINE', '1')
  expected = 'hf download timm/nfnet_l0.ra2_in1k model.safetensors'
  with pytest.raises(OSError, match=expected):
    weights.find('timm/nfnet_l0')
  monkeypatch.delenv('NFNETS_OFFLINE')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(OSError, match=expected):
    weights.find('timm/nfnet_l0')
  assert not served.server.paths


def test_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(
    OSError, match=r'installed: hug.*. Run pip install "\.\[hub\]'
  ):
    hub.fetch('timm/nfnet_l0', offline=False)
