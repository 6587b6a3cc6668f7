"""Downloads a file, and resumes interrupted downloads.

Uses only the standard library, because nfnets does not require an HTTP package.
`urllib` supports proxies, redirects and certificates.
"""

import contextlib
import errno
import http.client
import pathlib
import shutil
import ssl
import sys
import time
from typing import Any
import urllib.error
import urllib.request

from nfnets import messages

_TIMEOUT = 30  # Seconds without data.
_PAUSE = 1  # Seconds before the second attempt; doubles each time.
_ATTEMPTS = 3  # Consecutive attempts with little progress.
_CHUNK = 2**20  # Bytes.
# `_BROKEN` errors can be retried, `_OTHERS` not. All other errors concern the
# disk.
_BROKEN = (
  *(TimeoutError, ConnectionResetError, ConnectionAbortedError),
  *(http.client.IncompleteRead, ssl.SSLError),
)
_OTHERS = (urllib.error.URLError, http.client.HTTPException, ValueError)


def download(source: str, path: pathlib.Path) -> None:
  """Download a file, with a progress bar on a terminal.

  After a failure, the received part stays. The next call resumes it if the
  server reports the same file. The caller must prevent concurrent downloads.

  Args:
    source: an http or https address, or a local path.
    path: target file. It is incomplete until this returns.

  Raises:
    OSError: if the download fails (one line, without errno), or the file cannot
      be written.
  """
  print(f'Fetching {source}', file=sys.stderr, flush=True)
  failures = 0
  while True:
    before = _size(path)
    try:
      return _transfer(source, path)
    except (*_BROKEN, *_OTHERS) as error:
      if getattr(error, 'code', None) == 416:  # Nothing is left to resume.
        remove(path)
      reason, is_broken = _explain(error)
      failures = 0 if _size(path) > before + _CHUNK else failures + 1
      if failures == _ATTEMPTS or not is_broken:
        raise OSError(f'{source}: {reason}') from error
      print(f'{reason}; trying again', file=sys.stderr, flush=True)
      time.sleep(_PAUSE * 2 ** max(failures - 1, 0))


def remove(path: pathlib.Path) -> None:
  """Remove the files of `download`."""
  path.unlink(missing_ok=True)
  _notes(path).unlink(missing_ok=True)


def _explain(error: Any) -> tuple[str, bool]:
  """Return the reason on one line, and whether to retry."""
  if isinstance(error, urllib.error.HTTPError):
    reason = messages.one_line(error.reason)
    reason = f'the server answers {error.code} ({reason})'
    return reason, error.code >= 500 or error.code in (416, 429)
  error = getattr(error, 'reason', error)  # A URLError's.
  if isinstance(error, TimeoutError):
    return f'the server sends nothing for {_TIMEOUT} s', True
  return messages.one_line(error), isinstance(error, _BROKEN)


def _transfer(source: str, path: pathlib.Path) -> None:
  """Make one attempt to download a file or the rest of it."""
  notes = _notes(path)
  known = notes.read_text(encoding='utf-8') if notes.exists() else ''
  known_source, _, known_validator = known.partition('\n')
  done, headers = 0, {'User-Agent': 'nfnets'}
  # Resume only the same version of the same file.
  if known_source == source and known_validator and (done := _size(path)):
    headers |= {'Range': f'bytes={done}-', 'If-Range': known_validator}
  url = source
  if '://' not in source:
    url = pathlib.Path(source).absolute().as_uri()
  request = urllib.request.Request(url, headers=headers)
  with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
    found = response.headers
    validator = found.get('ETag') or found.get('Last-Modified') or ''
    if response.status != 206:
      done = 0
    elif validator != known_validator:
      remove(path)
      raise ConnectionAbortedError('the file has changed on the server')
    left = getattr(response, 'length', None)  # None: until the end.
    if left and left > shutil.disk_usage(path.parent).free:
      reason = f'there is no space for the {left / 1e6:.0f} MB'
      raise OSError(errno.ENOSPC, reason)
    notes.write_text(f'{source}\n{validator}', encoding='utf-8')
    total = left and done + left
    mode = 'ab' if done else 'wb'
    with open(path, mode) as file, _bar(path, total, done) as bar:
      while chunk := response.read1(_CHUNK):
        done += file.write(chunk)
        if bar is not None:
          bar.update(len(chunk))
  if left is not None and done != total:
    raise ConnectionAbortedError(
      f'the transfer broke off after {done} of {total} bytes'
    )
  notes.unlink()


def _notes(path: pathlib.Path) -> pathlib.Path:
  """Return the file with source and version of an incomplete download."""
  return path.with_name(f'{path.name}.txt')


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _bar(path: pathlib.Path, total: int | None, done: int) -> Any:
  """Return a progress bar if tqdm is installed."""
  try:
    import tqdm
  except ModuleNotFoundError:
    return contextlib.nullcontext()
  return tqdm.tqdm(
    desc=path.name.removesuffix('.partial'),
    total=total,
    initial=done,
    unit='B',
    unit_scale=True,
    dynamic_ncols=True,
    disable=None,  # Unless standard error is a terminal.
  )
