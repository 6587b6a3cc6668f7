"""A web server on this machine, as good or bad as a test wants it."""

import contextlib
import http.server
import re
import threading
import time


class Server(http.server.ThreadingHTTPServer):
  """Serves one file, or does what `misbehave` does with a request."""

  daemon_threads = True

  def __init__(self, content: bytes):
    super().__init__(('127.0.0.1', 0), Handler)
    self.content, self.etag = content, '"1"'
    self.requests = []  # Of each, its headers.
    self.paths = []
    self.misbehave = (
      None  # Called with a handler; False if it has not answered.
    )
    self.stop = threading.Event()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers with the file, or the rest of it that is asked for."""

  def do_GET(self):
    self.server.requests.append(dict(self.headers))
    self.server.paths.append(self.path)
    if self.server.misbehave and self.server.misbehave(self) is not False:
      return
    content, start = self.server.content, 0
    match = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
    if match and self.headers.get('If-Range') in (None, self.server.etag):
      start = int(match[1])
    if start >= len(content):
      self.send_error(416)
      return
    headers = {'ETag': self.server.etag}
    if start:
      last = len(content) - 1
      headers['Content-Range'] = f'bytes {start}-{last}/{len(content)}'
    self.answer(content[start:], 206 if start else 200, **headers)

  do_HEAD = do_GET

  def answer(self, content: bytes, status=200, length=None, **headers):
    """Sends a whole answer; `length` is what it says of itself."""
    self.send_response(status)
    length = len(content) if length is None else length
    self.send_header('Content-Length', str(length))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    if self.command == 'HEAD':
      return
    with contextlib.suppress(ConnectionError):
      self.wfile.write(content)

  def stall(self):
    """Sends nothing more until the test is over."""
    self.wfile.flush()
    self.server.stop.wait(20)

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def serving(content: bytes):
  """Yields a server that runs."""
  server = Server(content)
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield server
  finally:
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def break_off(after: int, times: float = float('inf')):
  """Returns a behaviour: stops after a number of bytes, a number of times."""
  count = 0

  def misbehave(handler):
    nonlocal count
    count += 1
    if count > times or 'Range' in handler.headers:
      return False
    content = handler.server.content
    handler.answer(
      content[:after], length=len(content), ETag=handler.server.etag
    )
    return None

  return misbehave


def slowly(seconds: float):
  """Returns a behaviour: the usual one, after a while."""

  def misbehave(handler):
    time.sleep(seconds)
    return False

  return misbehave
