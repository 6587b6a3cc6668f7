"""Weights by name: fetched once, whole, of the right model, or not at all."""

from concurrent import futures
import hashlib
import os
import subprocess

import jax
import numpy as np
import pytest
import quick_lib
import reference_params
import weights_lib
import weights_server

import nfnets
from nfnets import classify, weights
from nfnets.weights import downloading, fetching, files

NAME, FILE = 'nfnet_digits', 'digits.npz'


def saved(path, model):
  """Returns the bytes of a file of weights of a model."""
  shapes, _ = jax.eval_shape(lambda rng: model.init(rng, 32), jax.random.key(0))
  files.save_weights(path, reference_params.reference_params(shapes))
  return path.read_bytes()


@pytest.fixture(scope='module')
def content(tmp_path_factory):
  """The bytes of a small network's weights."""
  path = tmp_path_factory.mktemp('released') / FILE
  files.save_weights(path, quick_lib.digits()[1])
  return path.read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The cache, where a small network is among the released ones."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv('NFNETS_CACHE', str(folder))
  monkeypatch.setenv('no_proxy', '*')
  for name in ('NFNETS_OFFLINE', 'NFNETS_WEIGHTS_URL'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setitem(fetching.RELEASED, NAME, FILE)
  monkeypatch.setattr(downloading, '_PAUSE', 0)
  return folder


@pytest.fixture
def server(content, cache, monkeypatch):
  """The mirror of the weights."""
  with weights_server.serving(content) as server:
    monkeypatch.setenv('NFNETS_WEIGHTS_URL', f'{server.url}/')
    yield server


def test_file_is_fetched_once_and_recorded(server, cache, content):
  path = weights.find(NAME)
  assert path == cache / FILE and path.read_bytes() == content
  assert weights.find(NAME) == path and len(server.requests) == 1
  digest = hashlib.sha256(content).hexdigest()
  assert (cache / f'{FILE}.sha256').read_text() == f'{digest}  {FILE}\n'
  assert sorted(os.listdir(cache)) == [f'.{FILE}.lock', FILE, f'{FILE}.sha256']


@pytest.mark.parametrize('is_official', [True, False])
@pytest.mark.parametrize('is_known', [True, False])
def test_another_md5_than_the_known_one_is_warned_about_and_recorded(
  server, cache, content, monkeypatch, caplog, is_official, is_known
):
  md5 = hashlib.md5(content).hexdigest()
  known = md5 if is_known else 32 * '0'
  monkeypatch.setitem(fetching._MD5, FILE, known)
  if is_official:
    monkeypatch.delenv('NFNETS_WEIGHTS_URL')
    monkeypatch.setattr(fetching, 'URL', server.url)
  assert weights.find(NAME).read_bytes() == content
  said = [x.getMessage() for x in caplog.records if x.levelname == 'WARNING']
  assert len(said) == (is_official and not is_known)
  assert all(known in text and md5 in text for text in said)
  _, *notes = (cache / f'{FILE}.sha256').read_text().splitlines()
  assert notes == [f'# {text}' for text in said]
  # sha256sum and the next process read the record all the same.
  assert weights.find(NAME) == cache / FILE
  subprocess.run(['sha256sum', '-c', f'{FILE}.sha256'], cwd=cache, check=True)


def test_every_reader_takes_names(server):
  model, params, _ = weights.open_model(NAME)
  assert (model.name, model.num_classes) == (NAME, 10)
  weights_lib.assert_same(params, quick_lib.digits()[1])
  weights_lib.assert_same(weights.read_weights(NAME).params, params)
  assert weights.read_metadata(NAME) == {}
  assert len(server.requests) == 1


def test_transfer_goes_on_where_it_broke_off(server, content):
  server.misbehave = weights_server.break_off(3000, times=1)
  assert weights.find(NAME).read_bytes() == content
  first, second = server.requests
  assert 'Range' not in first
  assert (second['Range'], second['If-Range']) == ('bytes=3000-', '"1"')


@pytest.mark.parametrize('has_changed', [False, True])
def test_next_attempt_goes_on_too_unless_the_file_has_changed(
  server, cache, tmp_path, monkeypatch, has_changed
):
  monkeypatch.setattr(downloading, '_ATTEMPTS', 1)
  server.misbehave = weights_server.break_off(3000, times=1)
  with pytest.raises(OSError, match=r'broke off after 3000 of \d+ bytes'):
    weights.find(NAME)
  assert not (cache / FILE).exists()
  if has_changed:
    model = nfnets.create_model(NAME, 3)
    server.content, server.etag = saved(tmp_path / 'other.npz', model), '"2"'
  assert weights.find(NAME).read_bytes() == server.content
  last = server.requests[-1]
  assert (last['Range'], last['If-Range']) == ('bytes=3000-', '"1"')


@pytest.mark.parametrize('is_same', [True, False])
def test_what_is_whole_or_from_elsewhere_is_not_gone_on_from(
  server, cache, is_same
):
  cache.mkdir()
  partial = cache / f'{FILE}.partial'
  partial.write_bytes(server.content)
  partial.with_name(f'{FILE}.partial.txt').write_text(
    f'{server.url if is_same else "http://other"}/{FILE}\n{server.etag}'
  )
  assert weights.find(NAME).read_bytes() == server.content
  assert ['Range' in x for x in server.requests] == [True] * is_same + [False]


def test_rest_of_another_file_is_not_taken(server, content):
  """From a server that pays no attention to If-Range."""

  def misbehave(handler):
    if 'Range' not in handler.headers:
      return breaking(handler)
    return handler.answer(b'x' * (len(content) - 3000), 206, ETag='"2"')

  breaking = weights_server.break_off(3000, times=1)
  server.misbehave = misbehave
  assert weights.find(NAME).read_bytes() == content
  assert ['Range' in x for x in server.requests] == [False, True, False]


def answering(*args, **kwargs):
  """Returns a behaviour: this answer."""
  return lambda handler: handler.answer(*args, **kwargs)


def stall_in_the_middle(handler):
  handler.answer(b'x' * 100, length=200)
  handler.stall()


@pytest.mark.parametrize(
  ('misbehave', 'message'),
  [
    (answering(b'', 404), 'the server answers 404 (Not Found)'),
    (answering(b'', 403), 'the server answers 403 (Forbidden)'),
    (answering(b'', 503), 'the server answers 503 (Service Unavailable)'),
    (answering(b' <!doctype html>'), 'is a web page (HTML) and not weights'),
    (answering(b''), 'is empty'),
    (answering(b'\x1f\x8b\x08'), 'is packed with gzip'),
    (answering(b'x' * 9, length='many'), 'is not a file of weights'),
    # Says that the file is shorter than it is.
    (
      lambda x: x.answer(x.server.content, length=5000),
      'File is not a zip file',
    ),
    (answering(b'x' * 100, length=200), 'broke off after 100 of 200 bytes'),
    (weights_server.Handler.stall, 'the server sends nothing for 0.2 s'),
    (stall_in_the_middle, 'the server sends nothing for 0.2 s'),
    (lambda x: x.wfile.write(b'\x1b[31mwhat?\r\n\r\n'), r'\x1b[31mwhat?'),
    (lambda handler: None, 'Remote end closed connection'),
    (lambda x: x.answer(b'', 302, Location=x.path), 'the server answers 302'),
  ],
)
def test_bad_servers_are_told_from_good_ones(
  server, cache, monkeypatch, misbehave, message
):
  monkeypatch.setattr(downloading, '_TIMEOUT', 0.2)
  server.misbehave = misbehave
  with pytest.raises(OSError) as caught:
    weights.find(NAME)
  text = str(caught.value)
  assert text.startswith(f'{server.url}/{FILE}') and message in text
  assert '\n' not in text and '\x1b' not in text and len(text) < 500
  assert not (cache / FILE).exists()
  server.misbehave = None  # It is good again.
  assert weights.find(NAME).read_bytes() == server.content


def test_other_model_is_not_taken(server, cache, tmp_path):
  other = nfnets.create_model('timm/test_nfnet', 10)
  server.content = saved(tmp_path / 'other.npz', other)
  with pytest.raises(OSError, match='of timm/test_nfnet, not of nfnet_d'):
    weights.find(NAME)
  assert sorted(os.listdir(cache)) == [f'.{FILE}.lock']


@pytest.mark.parametrize(
  ('url', 'message'),
  [
    ('http://127.0.0.1:9', f'^http.*:9/{FILE}: Connection refused'),
    ('http://no host', 'URL can.t contain control characters'),
    ('ftp://x', '^NFNETS_WEIGHTS_URL=ftp://x is neither http'),
    ('/nowhere', f'^/nowhere/{FILE}: No such file'),
  ],
)
def test_server_that_is_not_there_or_no_server(
  cache, monkeypatch, url, message
):
  monkeypatch.setenv('NFNETS_WEIGHTS_URL', url)
  with pytest.raises((OSError, ValueError), match=message):
    weights.find(NAME)


def test_disk_that_is_full_or_cannot_be_written(
  server, cache, tmp_path, monkeypatch
):
  def check(message):
    with pytest.raises(OSError, match=message):
      weights.find(NAME)
    assert not (cache / FILE).exists()

  cache.mkdir()
  (cache / f'{FILE}.partial').symlink_to('/dev/full')
  check(f'^{cache}: No space left.* NFNETS_CACHE')
  server.misbehave = answering(b'', length=10**15)
  check(f'{cache}: there is no space for the 1000')
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('NFNETS_CACHE', str(tmp_path / 'file' / 'cache'))
  check('file.* Not a dir.* NFNETS_CACHE=FOLDER')


def test_offline_nothing_is_asked_for(server, cache, content, monkeypatch):
  monkeypatch.setenv('NFNETS_OFFLINE', '1')
  with pytest.raises(FileNotFoundError) as caught:
    weights.find(NAME)
  assert f'Put {server.url}/{FILE} at {cache / FILE}' in str(caught.value)
  cache.mkdir()
  (cache / FILE).write_bytes(content)  # As it says.
  assert weights.find(NAME) == cache / FILE and not server.requests
  assert (cache / f'{FILE}.sha256').exists()


def test_wrong_file_in_the_cache_is_refused(server, cache, content):
  path = cache / FILE
  cache.mkdir()
  path.write_text('<html>')
  with pytest.raises(ValueError, match=f'^{path}: This file is a web'):
    weights.find(NAME)
  path.unlink()
  assert weights.find(NAME).read_bytes() == content
  path.write_bytes(content[:-1] + b'x')
  with pytest.raises(ValueError, match=f'^{path} has changed: its SHA-256'):
    weights.find(NAME)


def test_mirror_may_be_a_folder(cache, content, tmp_path, monkeypatch):
  (tmp_path / FILE).write_bytes(content)
  monkeypatch.setenv('NFNETS_WEIGHTS_URL', str(tmp_path))
  monkeypatch.setenv('NFNETS_OFFLINE', '1')  # No network is needed.
  path = weights.find(NAME)
  assert path == cache / FILE and path.read_bytes() == content


def test_threads_fetch_once(server, content, capsys):
  server.misbehave = weights_server.slowly(0.3)
  with futures.ThreadPoolExecutor(4) as pool:
    paths = set(pool.map(weights.find, 4 * [NAME]))
  assert paths.pop().read_bytes() == content and not paths
  assert len(server.requests) == 1
  assert capsys.readouterr().err.count(f'fetching {FILE}; waiting') == 3


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('nfnet_f9', ' Did you mean nfnet_f6, nfnet_f5, nfnet_f4?'),
    ('F0_haiku.npz', ' Did you mean nfnet_f0?'),
    ('f4', ' Did you mean nfnet_f4?'),
    ('dm_nfnet_f0', ' Did you mean timm/dm_nfnet_f0.dm_in1k?'),
    ('nfnet_f7', ' Did you mean nfnet_f6, '),
    ('runs/x.npz', ''),
  ],
)
def test_what_is_neither_file_nor_name(cache, monkeypatch, name, hint):
  monkeypatch.delitem(fetching.RELEASED, NAME)
  with pytest.raises(FileNotFoundError) as caught:
    weights.find(name)
  text = str(caught.value)
  assert text.startswith(f'{name}: there is no such file.{hint}')
  assert hint or text.endswith('there is no such file.')


def test_files_and_folders_come_before_names(tmp_path, monkeypatch, content):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'run').mkdir()
  with pytest.raises(ValueError, match='^run: this folder has no weights.saf'):
    weights.find('run')
  file = tmp_path / 'run' / 'weights.safetensors'
  file.write_bytes(b'')
  (tmp_path / 'nfnet_f0').write_bytes(content)
  found = [weights.find(x).absolute() for x in ('run', '~/run', 'nfnet_f0')]
  assert found == [file, file, tmp_path / 'nfnet_f0']


def test_commands_say_in_one_line_what_is_wrong(server, cache, capsys):
  server.misbehave = answering(b'', 404)
  assert classify.main([f'--weights={NAME}', 'x.png']) == 1
  assert capsys.readouterr().err.splitlines() == [
    f'Fetching {server.url}/{FILE}',
    f'error: {NAME}: {server.url}/{FILE}: the server answers 404 (Not Found). '
    f'You can also put the file at {cache / FILE}',
  ]


@pytest.mark.slow
def test_load_takes_any_number_of_classes(server):
  head = 'NFNet/~/linear'
  body = {k: v for k, v in quick_lib.digits()[1].items() if k != head}
  model, params, state = nfnets.load(NAME, num_classes=0)
  assert (model.name, model.num_classes, state) == (NAME, 0, {})
  weights_lib.assert_same(params, body)
  model, params, _ = nfnets.load(NAME, num_classes=5)
  assert model.num_classes == 5 and model.class_names is None
  weights.check_fits(params, model)
  fresh = params.pop(head)
  weights_lib.assert_same(params, body)
  # As the published network begins.
  assert fresh['w'].std() == pytest.approx(0.01, rel=0.1)
  assert not fresh['b'].any()
  other = nfnets.load(NAME, 5, seed=1)[1][head]['w']
  assert not np.array_equal(other, fresh['w'])
