"""Where the page listens, whom it answers, and what it leaves: nothing."""

import os
import shutil
import socket
import tempfile
import types

import process_lib
import pytest

from nfnets import demo
from nfnets.errors import UserError
from nfnets.inference.demo import server


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
  """Keeps the environment, and has temporary folders in a folder."""
  monkeypatch.setattr(os, 'environ', dict(os.environ))
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))


# Prints the handler before and the one after; fails if no signal ends it.
SIGNALLED = """
import os, signal, sys, tempfile
from nfnets.inference.demo import server

number = getattr(signal, sys.argv[1])
print(signal.getsignal(number))
try:
  with server.folder() as folder:
    with tempfile.NamedTemporaryFile(delete=False) as file:
      assert file.name.startswith(folder)
    os.kill(os.getpid(), number)
    sys.exit('goes on')
except KeyboardInterrupt:
  print(signal.getsignal(number))
"""


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_signals_end_it_and_the_folder_is_removed(tmp_path, name):
  ended = process_lib.run_python(SIGNALLED, name, TMPDIR=str(tmp_path))
  assert (ended.returncode, ended.stderr) == (0, '')
  before, after = ended.stdout.splitlines()
  assert after == before
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.0.2.1', 'example.com'])
def test_other_addresses_are_refused_unless_that_is_meant(host, capsys):
  assert demo.main(['--weights=nfnet_f0', f'--host={host}']) == 2
  message = capsys.readouterr().err
  assert f'--host={host} lets anyone who reaches' in message
  assert '--allow_others' in message and message.count('\n') == 1


@pytest.mark.parametrize(
  'host, is_loopback',
  [
    *(('127.0.0.1', True), ('127.9.9.9', True), ('::1', True)),
    *(('[::1]', True), ('localhost', True)),
    *(('0.0.0.0', False), ('', False), ('127.0.0.1.example.com', False)),
  ],
)
def test_loopback(host, is_loopback):
  assert server.is_loopback(host) == is_loopback


def test_port_in_use_is_an_error_of_one_line():
  with socket.socket() as other:
    other.bind(('127.0.0.1', 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(UserError, match=f'port {port}.*--port=0'):
      server.launch(None, '', '127.0.0.1', port, False, {})


@pytest.fixture
def ask(tmp_path):
  """Returns (headers, path, hosts) -> status; the application answers 200."""
  responses = pytest.importorskip('starlette.responses')
  client = pytest.importorskip('starlette.testclient')

  def ask(headers, path='/config', hosts=('127.0.0.1', 'localhost', '::1')):
    app = responses.PlainTextResponse('')
    guard = server.Guard(app, str(tmp_path), hosts and set(hosts))
    return client.TestClient(guard).get(path, headers=headers).status_code

  return ask


@pytest.mark.parametrize(
  'host, origin, status',
  [
    *(('127.0.0.1:7860', None, 200), ('localhost:7860', None, 200)),
    *(('[::1]:7860', None, 200), ('example.com', None, 403)),
    *(('127.0.0.1.example.com:7860', None, 403), ('', None, 403)),
    ('127.0.0.1:7860', 'http://127.0.0.1:7860', 200),
    ('127.0.0.1:7860', 'http://example.com', 403),
    *(('127.0.0.1:7860', 'null', 403), ('127.0.0.1', '', 403)),
  ],
)
def test_pages_of_other_servers_get_nothing(ask, host, origin, status):
  headers = {'host': host} | ({} if origin is None else {'origin': origin})
  assert ask(headers) == status


def test_a_shared_page_goes_by_any_name_and_still_has_pages_of_its_own(ask):
  headers = {'host': 'a.example.com', 'origin': 'https://a.example.com'}
  assert ask(headers, hosts=None) == 200
  assert ask(headers | {'origin': 'https://b.example.com'}, hosts=None) == 403


def test_uploads_leave_space_on_the_disk(ask, monkeypatch):
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=999_999_999)
  )
  host = {'host': 'localhost'}
  assert ask(host, '/gradio_api/upload') == 507 and ask(host) == 200
