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
from urllib.parse import urlsplit

from nfnets import errors, messages
from nfnets.inference.demo import pictures

KEPT = 600  # Seconds that a file stays there.
_FREE_SPACE = 1_000_000_000  # Bytes on the disk that uploads leave.


def is_loopback(host: str) -> bool:
  """Return whether an address can be reached from this machine alone."""
  try:
    return (
      host == 'localhost' or ipaddress.ip_address(host.strip('[]')).is_loopback
    )
  except ValueError:
    return False


@contextlib.contextmanager
def folder() -> Iterator[str]:
  """Give a folder for all files of the page, which is removed at the end.

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


class Guard:
  """Refuses what Gradio lets through, as an ASGI application around it.

  A web page in the same browser may send requests here without reading the
  answers, and read them if the name of its server comes to mean this machine.
  And Gradio takes any number of files, into `folder`. The server goes by the
  names `hosts`, or by any if that is None.
  """

  def __init__(self, app: Callable, folder: str, hosts: set[str] | None):
    self._app, self._folder, self._hosts = app, folder, hosts

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    from starlette import datastructures, responses

    headers = datastructures.Headers(raw=scope.get('headers', []))
    name = urlsplit(f'//{headers.get("host", "")}').hostname
    origin, app = headers.get('origin'), self._app
    if scope['type'] == 'lifespan':
      pass
    elif self._hosts is not None and name not in self._hosts:
      app = responses.PlainTextResponse('This server has another name.', 403)
    elif origin is not None and urlsplit(origin).hostname != name:
      app = responses.PlainTextResponse('This is for its own page alone.', 403)
    elif (
      scope['path'].endswith('/upload')
      and shutil.disk_usage(self._folder).free < _FREE_SPACE
    ):
      reason = {'detail': 'There is no space left; wait a few minutes.'}
      app = responses.JSONResponse(reason, 507)  # Gradio's page shows this.
    await app(scope, receive, send)


def launch(
  blocks: Any, path: str, host: str, port: int, share: bool, style: dict
) -> tuple[str, Callable[[], None]]:
  """Serve a page.

  Args:
    blocks: the page, of Gradio.
    path: the folder for all files.
    host: the address to listen on.
    port: the port; 0 for one that is free.
    share: whether to open a tunnel from Gradio's servers to here.
    style: `theme` and `css` of the page.

  Returns:
    Its address, and what ends it.

  Raises:
    UserError: if nothing can be served there.
  """
  address = host.strip('[]')
  family = socket.AF_INET6 if ':' in address else socket.AF_INET
  try:
    with socket.create_server((address, port), family=family) as probe:
      port = probe.getsockname()[1]
  except OSError as error:
    raise errors.UserError(
      f'Nothing can listen on {host}, port {port}: {messages.one_line(error)}; '
      '--port=0 takes a free one.'
    ) from error
  from starlette.middleware import Middleware

  is_local = is_loopback(host) and not share
  hosts = {'127.0.0.1', 'localhost', '::1', address} if is_local else None
  guard = Middleware(Guard, folder=path, hosts=hosts)
  # It logs every request that it makes itself.
  logging.getLogger('httpx').setLevel(logging.WARNING)
  blocks.queue(max_size=16, api_open=False)
  with errors.prefix('The page cannot be served'):
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
        max_file_size=pictures.MAX_BYTES,
        state_session_capacity=100,
        strict_cors=True,
        app_kwargs={'middleware': [guard], 'docs_url': None},
        **style,
      )
  if share and not public:
    blocks.close(verbose=False)
    raise errors.UserError('There is no tunnel, so the page cannot be shared.')
  return public or url, lambda: blocks.close(verbose=False)
