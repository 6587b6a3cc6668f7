"""A Google Cloud Storage on this machine, for tests and benchmarks.

  with emulated_store.start(latency=0.03) as store:
    subprocess.run(command, env=os.environ | store.environment)
    store.disturb('503', seconds=5)

serves the bucket gs://test-bucket in a process of its own, which ends with the
program and keeps nothing. Every request for gs://forbidden-bucket is refused
with status 403; all other buckets are missing.

The emulators on PyPI leave out what decides whether a checkpoint is written and
a dataset read correctly: gcp-storage-emulator 2026.7 ignores preconditions
(ifGenerationMatch, by which TensorStore writes atomically), refuses names that
end with a slash (TensorFlow's folders), answers one request at a time over
connections that it closes, and copies the whole object for every range. None of
them fails on request.

TensorStore takes the store's address from its environment. TensorFlow always
asks storage.googleapis.com and www.googleapis.com by TLS. Its environment names
a proxy, which is this server, too: it answers what follows CONNECT itself, with
a certificate made by `openssl` that TensorFlow trusts.
"""

import collections
from collections.abc import Iterator
import contextlib
from http import server
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from urllib import parse, request

from emulated_objects import (
  BUCKET,
  Answer,
  Objects,
  Request,
  error,
  json_answer,
)

_DISTURBANCES = {'lost': 0, '429': 429, '503': 503, 'forbidden': 403}
_HOSTS = ('storage.googleapis.com', 'www.googleapis.com')
_CONTROL = '/_emulator/'


class Store:
  """A running store.

  Attributes:
    bucket: 'gs://test-bucket'.
    environment: the variables that a process needs to use the store by
      TensorStore and TensorFlow; most are read when these are imported.
  """

  bucket = f'gs://{BUCKET}'

  def __init__(self, port: int, certificate: str):
    self._url = f'http://127.0.0.1:{port}'
    self.environment = {
      'TENSORSTORE_GCS_HTTP_URL': self._url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'anyone',
      'https_proxy': self._url,
      'HTTPS_PROXY': self._url,
      'CURL_CA_BUNDLE': certificate,
      'NO_GCE_CHECK': 'true',
      'no_proxy': '127.0.0.1,localhost',
      'NO_PROXY': '127.0.0.1,localhost',
      # TensorFlow retries for seconds instead of minutes, and caches nothing.
      'GCS_RETRY_CONFIG_INIT_DELAY_TIME_US': '50000',
      'GCS_RETRY_CONFIG_MAX_DELAY_TIME_US': '1000000',
      'GCS_STAT_CACHE_MAX_AGE': '0',
    }

  def disturb(self, kind: str, seconds: float) -> None:
    """Disturbs all requests from now on.

    Args:
      kind: 'lost' (connections are cut, also those that are open), '429',
        '503' or 'forbidden' (403).
      seconds: for how long; 0 ends a disturbance, inf never ends.
    """
    if kind not in _DISTURBANCES:
      raise ValueError(f'{kind!r} is none of {", ".join(_DISTURBANCES)}.')
    self._ask('disturb', kind=kind, seconds=seconds)

  def set_latency(self, seconds: float) -> None:
    """Sets how long each request waits for its answer."""
    self._ask('latency', seconds=seconds)

  def requests(self) -> collections.Counter[str]:
    """Counts the requests since the start.

    Returns:
      By kind: 'read', 'write', 'list', 'stat', 'delete', 'copy', 'bucket',
      'other', and 'disturbed' for those that got no real answer.
    """
    return collections.Counter(self._ask('requests'))

  def _ask(self, action: str, **query: object) -> dict:
    url = f'{self._url}{_CONTROL}{action}?{parse.urlencode(query)}'
    opener = request.build_opener(request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
      return json.load(answer)


@contextlib.contextmanager
def start(
  latency: float = 0.0, folder: str | os.PathLike[str] | None = None
) -> Iterator[Store]:
  """Serves a store in another process until the end of the `with` block.

  Args:
    latency: how many seconds each request waits for its answer.
    folder: the bucket has its files from the start.
  """
  command = [sys.executable, __file__, str(latency), os.fspath(folder or '')]
  # The child ends when its standard input does.
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  ) as process:
    try:
      yield Store(**json.loads(process.stdout.readline()))
    finally:
      process.stdin.close()


class _Server(server.ThreadingHTTPServer):
  """Counts, delays and disturbs the requests of all connections."""

  request_queue_size = 1000

  def __init__(self, latency, objects: Objects, tls: ssl.SSLContext):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.latency, self.objects, self.tls = latency, objects, tls
    self.counts, self.lock = collections.Counter(), threading.Lock()
    self.sockets: set[socket.socket] = set()
    self._disturbance, self._until = '', 0.0

  def disturbed(self) -> str:
    return self._disturbance if time.monotonic() < self._until else ''

  def control(self, action: str, query: dict[str, str]) -> Answer:
    """Does what a `Store` asks for."""
    if action == 'disturb':
      self._disturbance = query['kind']
      self._until = time.monotonic() + float(query['seconds'])
      for connection in [*self.sockets] if self.disturbed() == 'lost' else ():
        with contextlib.suppress(OSError):
          connection.shutdown(socket.SHUT_RDWR)
    elif action == 'latency':
      self.latency = float(query['seconds'])
    return json_answer(self.counts)

  def handle_error(self, *_) -> None:
    """A connection that the other side has cut is no error."""
    if not isinstance(sys.exception(), OSError):
      super().handle_error(*_)


class _Handler(server.BaseHTTPRequestHandler):
  """Answers the requests of one connection, by TLS after CONNECT."""

  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True
  wbufsize = -1  # Head and body leave together.
  _host = None

  def setup(self) -> None:
    super().setup()
    self.server.sockets.add(self.request)

  def finish(self) -> None:
    self.server.sockets.discard(self.request)
    with contextlib.suppress(OSError):
      super().finish()
    self.request.close()

  def log_message(self, *_) -> None:
    """Logs nothing."""

  def handle_expect_100(self) -> bool:
    super().handle_expect_100()
    self.wfile.flush()  # Else the client waits a second before it sends.
    return True

  def do_CONNECT(self) -> None:
    if self.server.disturbed() == 'lost':
      self.close_connection = True
      return
    self.wfile.write(b'HTTP/1.1 200 Connected\r\n\r\n')
    self.wfile.flush()
    self._host = f'https://{self.path.removesuffix(":443")}'
    self.server.sockets.discard(self.request)
    self.request = self.server.tls.wrap_socket(self.request, server_side=True)
    self.setup()

  def _handle(self) -> None:
    body = self._read_body()
    path, _, query = self.path.partition('?')
    fields = dict(parse.parse_qsl(query, keep_blank_values=True))
    if path.startswith(_CONTROL):
      self.server.sockets.discard(self.request)  # Control is not cut.
      answer = self.server.control(path.removeprefix(_CONTROL), fields)
    else:
      time.sleep(self.server.latency)
      disturbance, kind = self.server.disturbed(), 'disturbed'
      if disturbance:
        text = f'Disturbed: {disturbance}.'
        answer = error(_DISTURBANCES[disturbance], text)
      base = self._host or f'http://{self.headers["host"]}'
      asked = Request(path, fields, self.headers, body, base)
      with self.server.lock:
        if not disturbance:
          kind, answer = self.server.objects.answer(self.command, asked)
        self.server.counts[kind] += 1
      if disturbance == 'lost':
        self.close_connection = True
        return
    self.send_response(answer.status)
    for key, value in answer.headers.items():
      # TensorFlow looks for 'Location', not for 'location'.
      self.send_header(key.title(), value)
    if answer.status not in (204, 304):
      self.send_header('Content-Length', len(answer.body))
    self.end_headers()
    self.wfile.write(answer.body)

  do_GET = do_POST = do_PUT = do_DELETE = _handle

  def _read_body(self) -> bytes:
    if self.headers.get('transfer-encoding', '').lower() != 'chunked':
      return self.rfile.read(int(self.headers.get('content-length', 0)))
    body = b''
    while size := int(self.rfile.readline(), 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body


def _make_certificate(folder: pathlib.Path) -> tuple[str, ssl.SSLContext]:
  """Returns the file of a certificate for TensorFlow's hosts, and its use."""
  certificate, key = folder / 'certificate.pem', folder / 'key.pem'
  names = ','.join(f'DNS:{host}' for host in _HOSTS)
  command = 'openssl req -x509 -nodes -days 7 -newkey ec -pkeyopt'
  command += ' ec_paramgen_curve:prime256v1 -subj /CN=emulated_store'
  subprocess.run(
    [*command.split(), '-addext', f'subjectAltName={names}']
    + ['-keyout', str(key), '-out', str(certificate)],
    check=True,
    stderr=subprocess.PIPE,
  )
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(certificate, key)
  return str(certificate), context


def main(latency: str, folder: str) -> None:
  """Serves until standard input ends, as it does with the parent."""
  with (
    tempfile.TemporaryDirectory() as temporary,
    contextlib.suppress(KeyboardInterrupt),
  ):
    certificate, tls = _make_certificate(pathlib.Path(temporary))
    files = pathlib.Path(folder) if folder else None
    served = _Server(float(latency), Objects(files), tls)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    where = {'port': served.server_address[1], 'certificate': certificate}
    print(json.dumps(where), flush=True)
    sys.stdin.read()


if __name__ == '__main__':
  main(*sys.argv[1:])
