"""Starts the page, and a browser to look at it."""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_NAMES = ('chromium', 'chromium-browser', 'google-chrome')
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def serving(
  *args: str, cwd: pathlib.Path = _ROOT, env: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
  """Runs `python -m nfnets.demo`; gives the page's address and the process."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'nfnets.demo', '--port=0', *args],
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': str(_ROOT), **(env or {})},
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    line = process.stdout.readline()
    yield re.match(r'(http://127\.0\.0\.1:\d+/) ', line)[1], process
  finally:
    process.kill()
    process.wait()


@contextlib.contextmanager
def browsing():
  """Gives a browser without a window."""
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox']
    )
    yield browser
    browser.close()
