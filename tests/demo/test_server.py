"""Where the page listens, and that it leaves nothing behind."""

import os
import signal
import socket
import tempfile

import pytest

from nfnets import demo
from nfnets.inference.demo import server


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
  """Keeps the environment, and has temporary folders in a folder."""
  monkeypatch.setattr(os, 'environ', dict(os.environ))
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_signals_end_it_and_the_folder_is_removed(tmp_path, name):
  number = getattr(signal, name)
  before = signal.getsignal(number)
  with pytest.raises(KeyboardInterrupt), server.folder() as folder:
    with tempfile.NamedTemporaryFile(delete=False) as file:
      assert file.name.startswith(folder)
    os.kill(os.getpid(), number)
  assert not list(tmp_path.iterdir())
  assert signal.getsignal(number) == before


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.0.2.1', 'example.com'])
def test_other_addresses_are_refused_unless_that_is_meant(host, capsys):
  assert demo.main(['--weights=none', f'--host={host}']) == 2
  message = capsys.readouterr().err
  assert f'--host={host} lets whoever reaches' in message
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
    with pytest.raises(server.ServerError, match=f'port {port}.*--port=0'):
      server.launch(None, '', '127.0.0.1', port, False, {})
