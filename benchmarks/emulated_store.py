"""A Google Cloud Storage on this machine, for tests and benchmarks.

python benchmarks/emulated_store.py [--latency=0.03] [--folder=DIR]

prints the variables that lead TensorStore and TensorFlow to it, serves the
bucket gs://test-bucket (with the files of DIR in it) until Ctrl-C, and keeps
nothing. In a program,

  with emulated_store.start(latency=0.03) as store:
    subprocess.run(command, env=os.environ | store.environment)
    store.disturb('503', seconds=5)

runs it in a process of its own, which ends with the program. Besides the bucket
there is gs://forbidden-bucket, whose every request is refused with status 403;
all others are missing.

It is not one of the emulators of the package index, because what decides
whether a checkpoint or a dataset is read and written rightly is what they leave
out: gcp-storage-emulator 2026.7 ignores preconditions (ifGenerationMatch, by
which TensorStore writes atomically), refuses names that end with a slash
(TensorFlow's folders), answers one request at a time over connections that it
closes, and copies the whole object for every range. Here, a range of 100 kB
takes a third of a millisecond of one core.

TensorStore is told the address. TensorFlow always asks storage.googleapis.com
and www.googleapis.com, by TLS; so it is told of a proxy, which is also this
server: it answers what follows CONNECT itself, with a certificate that is made
by the command `openssl` and that TensorFlow is told to trust.
"""

import argparse
import asyncio
import collections
from collections.abc import Iterator
import contextlib
import http
import json
import os
import pathlib
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from urllib import parse, request

from emulated_objects import BUCKET, Answer, Objects, Request, error

KINDS = ('lost', '429', '503', 'forbidden')
_HOSTS = ('storage.googleapis.com', 'www.googleapis.com')
_CONTROL = '/_emulator/'


class Store:
  """A running store.

  Attributes:
    bucket: 'gs://test-bucket'.
    environment: The variables that a process needs to use the store by
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
      # TensorFlow: retried for seconds instead of minutes, nothing remembered.
      'GCS_RETRY_CONFIG_INIT_DELAY_TIME_US': '50000',
      'GCS_RETRY_CONFIG_MAX_DELAY_TIME_US': '1000000',
      'GCS_STAT_CACHE_MAX_AGE': '0',
    }

  def disturb(self, kind: str, seconds: float) -> None:
    """Disturbs all requests from now on.

    Args:
      kind: 'lost' (connections are cut, also those that are open), '429',
        '503' or 'forbidden' (403).
      seconds: For how long; 0 ends what is going on, inf never ends.
    """
    if kind not in KINDS:
      raise ValueError(f'{kind!r} is none of {", ".join(KINDS)}.')
    self._ask('disturb', kind=kind, seconds=seconds)

  def set_latency(self, seconds: float) -> None:
    """Sets for how long each request waits for its answer."""
    self._ask('latency', seconds=seconds)

  def requests(self) -> collections.Counter[str]:
    """Counts the requests since the start.

    Returns:
      By kind: 'read', 'write', 'list', 'stat', 'delete', 'copy', 'bucket',
      'other', and 'disturbed' for those that got no real answer.
    """
    return collections.Counter(self._ask('requests')['requests'])

  def cpu_seconds(self) -> float:
    """Returns what the store has used of the processor, in seconds."""
    return self._ask('requests')['cpu_seconds']

  def _ask(self, what: str, **query: object) -> dict:
    url = f'{self._url}{_CONTROL}{what}?{parse.urlencode(query)}'
    opener = request.build_opener(request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
      return json.load(answer)


@contextlib.contextmanager
def start(
  latency: float = 0.0, folder: str | os.PathLike[str] | None = None
) -> Iterator[Store]:
  """Serves a store in another process until the end of the `with` block.

  Args:
    latency: For how many seconds each request waits for its answer.
    folder: Whose files are in the bucket from the start.

  Raises:
    RuntimeError: It does not start.
  """
  command = [sys.executable, os.path.abspath(__file__), '--child']
  command.append(f'--latency={latency}')
  if folder is not None:
    command.append(f'--folder={os.fspath(folder)}')
  # The end of its standard input is the end of this process.
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  ) as process:
    line = process.stdout.readline()
    if not line:
      process.wait()
      raise RuntimeError('The emulated store does not start; see above.')
    try:
      yield Store(**json.loads(line))
    finally:
      process.stdin.close()


class _Server:
  """Speaks HTTP, with TLS after CONNECT; waits and disturbs."""

  def __init__(self, latency: float, objects: Objects, tls: ssl.SSLContext):
    self._latency, self._objects, self._tls = latency, objects, tls
    self._counts = collections.Counter()
    self._open: set[asyncio.StreamWriter] = set()
    self._disturbance, self._until = '', 0.0

  async def serve(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """Answers the requests of a connection."""
    self._open.add(writer)
    base = None
    try:
      while asked := await _receive(reader, writer, base):
        if asked.method == 'CONNECT':
          if self._disturbed() == 'lost':
            break
          writer.write(b'HTTP/1.1 200 Connected\r\n\r\n')
          await writer.start_tls(self._tls)
          base = f'https://{asked.path.removesuffix(":443")}'
          continue
        if asked.path.startswith(_CONTROL):
          self._open.discard(writer)  # It is not cut.
          answer = self._control(asked)
        else:
          answer = await self._answer(asked)
        if answer is None:
          break
        await _send(writer, answer)
    except (OSError, EOFError, asyncio.CancelledError):
      pass  # The other side, `disturb` or the end cut the connection.
    finally:
      self._open.discard(writer)
      writer.transport.abort()

  async def _answer(self, asked: Request) -> Answer | None:
    """Returns the answer, or None where the connection is to be cut."""
    if self._latency:
      await asyncio.sleep(self._latency)
    disturbance = self._disturbed()
    if disturbance:
      self._counts['disturbed'] += 1
      if disturbance == 'lost':
        return None
      status = 403 if disturbance == 'forbidden' else int(disturbance)
      return error(status, f'Disturbed: {disturbance}.')
    kind, answer = self._objects.answer(asked)
    self._counts[kind] += 1
    return answer

  def _disturbed(self) -> str:
    return self._disturbance if time.monotonic() < self._until else ''

  def _control(self, asked: Request) -> Answer:
    """Does what a `Store` asks for."""
    what = asked.path.removeprefix(_CONTROL)
    if what == 'disturb':
      self._disturbance = asked.query['kind']
      self._until = time.monotonic() + float(asked.query['seconds'])
      if self._disturbed() == 'lost':
        for writer in self._open:
          writer.transport.abort()
    elif what == 'latency':
      self._latency = float(asked.query['seconds'])
    used = {'requests': self._counts, 'cpu_seconds': time.process_time()}
    return Answer(200, json.dumps(used).encode())


async def _receive(
  reader: asyncio.StreamReader,
  writer: asyncio.StreamWriter,
  base: str | None,
) -> Request | None:
  """Returns the next request of a connection; None at its end."""
  try:
    head = await reader.readuntil(b'\r\n\r\n')
  except asyncio.IncompleteReadError:
    return None
  first, *lines = head.decode('latin-1').split('\r\n')
  method, target, _ = first.split(' ', 2)
  pairs = (line.partition(':') for line in lines if line)
  headers = {key.lower(): value.strip() for key, _, value in pairs}
  if headers.get('expect', '').lower() == '100-continue':
    writer.write(b'HTTP/1.1 100 Continue\r\n\r\n')
  if headers.get('transfer-encoding', '').lower() == 'chunked':
    body = b''
    while size := int(await reader.readline(), 16):
      body += await reader.readexactly(size)
      await reader.readline()
    await reader.readline()
  else:
    body = await reader.readexactly(int(headers.get('content-length', 0)))
  base = base or f'http://{headers.get("host", "")}'
  path, _, query = target.partition('?')
  fields = dict(parse.parse_qsl(query, keep_blank_values=True))
  return Request(method, path, fields, headers, body, base)


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
  try:
    reason = http.HTTPStatus(answer.status).phrase
  except ValueError:
    reason = 'Unknown'
  lines = [f'HTTP/1.1 {answer.status} {reason}']
  # TensorFlow looks for 'Location', not for 'location'.
  lines += [f'{key.title()}: {value}' for key, value in answer.headers.items()]
  if answer.status not in (204, 304):
    lines.append(f'Content-Length: {len(answer.body)}')
  writer.write('\r\n'.join([*lines, '', '']).encode())
  if answer.body:
    writer.write(answer.body)
  await writer.drain()


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


async def _run(args: argparse.Namespace, folder: pathlib.Path) -> None:
  """Serves until it is cancelled."""
  objects = Objects()
  if args.folder:
    objects.load(args.folder)
  certificate, tls = _make_certificate(folder)
  served = _Server(args.latency, objects, tls)
  server = await asyncio.start_server(
    served.serve, '127.0.0.1', args.port, limit=2**20, backlog=1000
  )
  port = server.sockets[0].getsockname()[1]
  where = {'port': port, 'certificate': certificate}
  if args.child:
    print(json.dumps(where), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # Until the parent has ended.
    shutil.rmtree(folder)
    os._exit(0)  # Open connections would be complained of.
  for name, value in Store(**where).environment.items():
    print(f'export {name}={shlex.quote(value)}', flush=True)
  print(f'# Serves {Store.bucket} until Ctrl-C.', flush=True)
  await server.serve_forever()


def main() -> None:
  """Runs the store."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--latency', type=float, default=0, help='in seconds')
  parser.add_argument('--folder', type=pathlib.Path, help='put in the bucket')
  parser.add_argument('--port', type=int, default=0)
  parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.suppress(KeyboardInterrupt),
  ):
    asyncio.run(_run(args, pathlib.Path(folder)))


if __name__ == '__main__':
  main()
