"""What the server lets through, before Gradio sees it.

Gradio has many doors that this page does not use: some fetch what an address
names, some take files of any number. Only those that the page needs are open.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
import json
import os
import threading
import time
from typing import Any
import urllib.parse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_API = '/gradio_api/'
_PATHS = frozenset(
  (
    *('/', '/config', '/theme.css', '/favicon.ico', '/manifest.json'),
    *(_API + x for x in ('startup-events', 'info', 'upload_progress')),
    *(_API + x for x in ('upload', 'queue/join', 'queue/data')),
    *(_API + x for x in ('cancel', 'reset', 'app_id')),
  )
)
_FOLDERS = ('/assets/', '/static/', _API + 'heartbeat/')
_FILE = _API + 'file='
_UPLOAD = _API + 'upload'

# Scripts and styles are Gradio's own; it has many within the page, and makes
# functions of strings.
_POLICY = (
  "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; "
  "object-src 'none'; base-uri 'self'; form-action 'self'; "
  "frame-ancestors 'none'"
)
_HEADERS = [
  (b'content-security-policy', _POLICY.encode()),
  (b'referrer-policy', b'no-referrer'),
  (b'x-content-type-options', b'nosniff'),
]
_MAX_MESSAGE = 1_000_000  # Bytes of JSON; a sketch is one.


class Refused(Exception):
  """A request is not served; the arguments are the status and the reason."""


class Rate:
  """So many within a minute."""

  def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
    """Counts from nothing.

    Args:
      most: how many.
      clock: returns seconds.
    """
    self._most, self._clock = most, clock
    self._times: deque[float] = deque()
    self._lock = threading.Lock()

  def take(self) -> bool:
    """Counts one more, unless there were so many in the last minute."""
    with self._lock:
      now = self._clock()
      while self._times and self._times[0] <= now - 60:
        self._times.popleft()
      if len(self._times) >= self._most:
        return False
      self._times.append(now)
      return True


class Guard:
  """An ASGI application around another one."""

  def __init__(
    self,
    app: Callable[[Message, Receive, Send], Awaitable[None]],
    *,
    folder: str,
    hosts: Iterable[str] | None,
    max_upload: int,
    max_stored: int,
    per_minute: int,
  ):
    """Puts a guard before an application.

    Args:
      app: the application.
      folder: the only one whose files are served and written.
      hosts: the names that the server goes by, so that no page of another
        server gets at it under a name of its own; None for any.
      max_upload: bytes of a request that uploads.
      max_stored: bytes of all that is in the folder.
      per_minute: how many requests may upload or ask, from all people together.
    """
    self._app = app
    self._folder = os.path.realpath(folder)
    self._hosts = None if hosts is None else frozenset(hosts)
    self._max_upload, self._max_stored = max_upload, max_stored
    self._per_minute = per_minute
    self._rate = Rate(per_minute)

  async def __call__(
    self, scope: Message, receive: Receive, send: Send
  ) -> None:
    """Serves one request."""
    if scope['type'] == 'lifespan':
      await self._app(scope, receive, send)
      return

    async def send_with_headers(message: Message) -> None:
      if message['type'] == 'http.response.start':
        message['headers'] = [*message.get('headers', ()), *_HEADERS]
      await send(message)

    try:
      receive = await self._check(scope, receive)
    except Refused as refused:
      await _answer(send_with_headers, *refused.args)
      return
    await self._app(scope, receive, send_with_headers)

  async def _check(self, scope: Message, receive: Receive) -> Receive:
    """Returns where to read the request from, or raises Refused."""
    if scope['type'] != 'http':
      raise Refused(403, 'Only HTTP is served here.')
    headers = {
      k.decode('latin-1'): v.decode('latin-1') for k, v in scope['headers']
    }
    self._check_origin(headers)
    path = scope['path']
    if path.startswith(_FILE):
      self._check_file(path.removeprefix(_FILE))
    elif path not in _PATHS and not path.startswith(_FOLDERS):
      raise Refused(404, 'There is no such page.')
    if scope['method'] in ('GET', 'HEAD', 'OPTIONS'):
      return receive
    if scope['method'] != 'POST':
      raise Refused(405, 'This is not served here.')
    is_upload = path == _UPLOAD
    size = headers.get('content-length', '')
    if not size.isdecimal():
      raise Refused(411, 'The length of the request is missing.')
    most = self._max_upload if is_upload else _MAX_MESSAGE
    if int(size) > most:
      raise Refused(413, f'At most {most / 1e6:.0f} MB are taken at once.')
    if (is_upload or path == _API + 'queue/join') and not self._rate.take():
      raise Refused(
        429, f'More than {self._per_minute} requests a minute; wait a little.'
      )
    if is_upload:
      if _stored(self._folder) + int(size) > self._max_stored:
        raise Refused(507, 'There is no space left; wait a few minutes.')
      return receive
    return await _checked_message(receive)

  def _check_origin(self, headers: MutableMapping[str, str]) -> None:
    host = headers.get('host', '')
    name = urllib.parse.urlsplit(f'//{host}').hostname
    if self._hosts is not None and name not in self._hosts:
      raise Refused(403, 'This server does not go by that name.')
    origin = headers.get('origin')
    if origin and urllib.parse.urlsplit(origin).hostname != name:
      raise Refused(403, 'Pages of other servers are not served here.')

  def _check_file(self, path: str) -> None:
    real = os.path.realpath(path)
    if not real.startswith(self._folder + os.sep):
      raise Refused(403, 'That file is not served here.')


async def _checked_message(receive: Receive) -> Receive:
  """Reads a JSON message; refuses one that has Gradio fetch a file."""
  content, more = b'', True
  while more:
    part = await receive()
    if part['type'] == 'http.disconnect':
      raise Refused(400, 'The request is incomplete.')
    content += part.get('body', b'')
    more = part.get('more_body', False)
    if len(content) > _MAX_MESSAGE:
      raise Refused(413, 'This message is too long.')
  try:
    if content and not _is_local(json.loads(content)):
      raise Refused(403, 'Only files that were sent here are read.')
  except (ValueError, RecursionError) as error:
    raise Refused(400, 'This message is no JSON.') from error
  messages = deque([{'type': 'http.request', 'body': content}])

  async def again() -> Message:
    return messages.popleft() if messages else await receive()

  return again


def _is_local(value: Any) -> bool:
  """Returns whether no file in a message is an address."""
  if isinstance(value, dict):
    path = value.get('path')
    if isinstance(path, str) and not path.startswith(os.sep):
      return False
    return all(map(_is_local, value.values()))
  return not isinstance(value, list) or all(map(_is_local, value))


def _stored(folder: str) -> int:
  """Returns the bytes of all files in a folder."""
  total = 0
  for root, _, names in os.walk(folder):
    for name in names:
      try:
        total += os.lstat(os.path.join(root, name)).st_size
      except OSError:
        continue  # It has just been removed.
  return total


async def _answer(send: Send, status: int, reason: str) -> None:
  # Gradio's page shows what is under this name.
  body = json.dumps({'detail': reason}).encode()
  headers = [
    (b'content-type', b'application/json'),
    (b'content-length', str(len(body)).encode()),
  ]
  await send(
    {'type': 'http.response.start', 'status': status, 'headers': headers}
  )
  await send({'type': 'http.response.body', 'body': body})
