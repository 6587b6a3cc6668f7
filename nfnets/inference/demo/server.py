"""Starts the page, waits, and leaves nothing behind."""

from collections.abc import Callable, Iterator
import contextlib
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

from nfnets.inference.demo import guard, uploads

MAX_FILES = 32  # Of one table.
_MAX_UPLOAD = 4 * uploads.MAX_BYTES  # Bytes of all files of one request.
_MAX_STORED = 1_000_000_000  # Bytes of all files that are there.
KEPT = 600  # Seconds that a file stays there.
PER_MINUTE = 120
_MAX_WAITING = 16  # Questions.
_SESSIONS = 100  # Whose images are in memory.


class ServerError(ValueError):
  """The page cannot be shown; the message says why, in one line."""


def is_loopback(host: str) -> bool:
  """Returns whether an address can be reached from this machine alone."""
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host.strip('[]')).is_loopback
  except ValueError:
    return False


@contextlib.contextmanager
def folder() -> Iterator[str]:
  """Gives a folder for all files of the page, which is removed at the end.

  Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt meanwhile. It has to be
  there before Gradio is imported, which looks for its name.
  """
  names = ('SIGINT', 'SIGTERM', 'SIGHUP')
  signals = [getattr(signal, x) for x in names if hasattr(signal, x)]
  before = {x: signal.signal(x, signal.default_int_handler) for x in signals}
  path = os.path.realpath(tempfile.mkdtemp(prefix='nfnets_demo_'))
  os.environ.update(
    GRADIO_TEMP_DIR=path,
    GRADIO_EXAMPLES_CACHE=os.path.join(path, 'examples_cache'),
    GRADIO_ANALYTICS_ENABLED='False',
    HF_HUB_DISABLE_TELEMETRY='1',
    # They write to the home folder when they are imported.
    KERAS_HOME=os.path.join(path, 'keras'),
    MPLCONFIGDIR=os.path.join(path, 'matplotlib'),
  )
  folder_before, tempfile.tempdir = tempfile.tempdir, path
  try:
    yield path
  finally:
    for number in signals:  # A second Ctrl-C would leave files behind.
      signal.signal(number, signal.SIG_IGN)
    tempfile.tempdir = folder_before
    shutil.rmtree(path, ignore_errors=True)
    for number, handler in before.items():
      signal.signal(number, handler)


def launch(
  blocks: Any, path: str, host: str, port: int, share: bool, style: dict
) -> tuple[str, Callable[[], None]]:
  """Serves a page.

  Args:
    blocks: the page, of Gradio.
    path: the folder for all files.
    host: the address to listen on.
    port: the port; 0 for one that is free.
    share: whether to open a tunnel from Gradio's servers to here.
    style: `theme`, `css` and `head` of the page.

  Returns:
    Its address, and what ends it.

  Raises:
    ServerError: if nothing can be served there.
  """
  port = _free_port(host, port)
  from starlette.middleware import Middleware

  local = is_loopback(host)
  hosts = {'127.0.0.1', 'localhost', '::1', host.strip('[]')}
  limits = Middleware(
    guard.Guard,
    folder=path,
    hosts=hosts if local and not share else None,
    max_upload=_MAX_UPLOAD,
    max_stored=_MAX_STORED,
    per_minute=PER_MINUTE,
  )
  # It logs every request that it makes itself.
  logging.getLogger('httpx').setLevel(logging.WARNING)
  blocks.queue(max_size=_MAX_WAITING, api_open=False)
  try:
    with contextlib.redirect_stdout(sys.stderr):
      _, url, public = blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=False,
        inline=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=uploads.MAX_BYTES,
        state_session_capacity=_SESSIONS,
        strict_cors=True,
        app_kwargs={'middleware': [limits], 'docs_url': None},
        **style,
      )
  except (OSError, ValueError) as error:
    raise ServerError(f'The page cannot be served: {error}') from error
  if share and not public:
    blocks.close(verbose=False)
    raise ServerError('There is no tunnel, so the page cannot be shared.')
  return public or url, lambda: blocks.close(verbose=False)


def _free_port(host: str, port: int) -> int:
  """Returns the port, or a free one for 0."""
  try:
    family, kind, _, _, address = socket.getaddrinfo(
      host.strip('[]'), port, type=socket.SOCK_STREAM
    )[0]
    with socket.socket(family, kind) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(address)
      return probe.getsockname()[1]
  except (OSError, OverflowError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise ServerError(
      f'Nothing can listen on {host}, port {port}: {reason}; --port=0 takes a '
      'free one.'
    ) from error
