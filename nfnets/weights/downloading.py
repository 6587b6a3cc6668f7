"""Downloads one file, and goes on where an earlier attempt stopped.

With the standard library alone, because `import nfnets` brings no package for
HTTP; `urllib` knows proxies, redirects and certificates.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import sys
import time
from typing import Any, BinaryIO
import urllib.error
import urllib.request

_TIMEOUT = 30  # Seconds, without a byte.
_PAUSE = 1  # Seconds, before the second attempt; then twice as many.
_ATTEMPTS = 3  # In a row that bring no more than a little.
_CHUNK = 2**20  # Bytes.
_MAX_BYTES = 2**33  # The largest released file has a fifth.


class DownloadError(OSError):
  """A file cannot be had; the message says why, in one line."""


class _BrokenError(Exception):
  """The transfer stopped; another attempt may go on from there."""


def download(source: str, path: pathlib.Path) -> None:
  """Downloads a file, with a bar on a terminal.

  What arrived before a failure stays, and is gone on from if the server says
  that the file is still the same one. The caller sees to it that no other
  process does the same.

  Args:
    source: an http or https address, or a local path.
    path: where to; is incomplete until this returns.

  Raises:
    DownloadError: if the file cannot be had.
    OSError: if it cannot be written.
  """
  print(f'Fetching {source}', file=sys.stderr, flush=True)
  if '://' in source:
    _attempt_often(source, path)
  else:
    _copy(source, path)


def remove(path: pathlib.Path) -> None:
  """Removes what `download` wrote."""
  path.unlink(missing_ok=True)
  _notes(path).unlink(missing_ok=True)


def _copy(source: str, path: pathlib.Path) -> None:
  try:
    file = open(source, 'rb')
  except OSError as error:
    raise DownloadError(f'{source}: {_line(error)}') from error
  with file:
    try:
      _write(file, path, 'wb', os.path.getsize(source), 0)
    except _BrokenError as error:
      raise DownloadError(f'{source}: {error}') from error


def _attempt_often(url: str, path: pathlib.Path) -> None:
  failures = 0
  while True:
    before = _size(path)
    try:
      _transfer(url, path)
      _notes(path).unlink(missing_ok=True)
      return
    except _BrokenError as error:
      failures = 0 if _size(path) > before + _CHUNK else failures + 1
      if failures == _ATTEMPTS:
        raise DownloadError(f'{url}: {error}') from error
      print(f'{error}; trying again', file=sys.stderr, flush=True)
      time.sleep(_PAUSE * 2 ** max(failures - 1, 0))


def _transfer(url: str, path: pathlib.Path) -> None:
  """Downloads a file, or the rest of it, once.

  Raises:
    _BrokenError: if it is worth another attempt.
    DownloadError: if it is not.
    OSError: if the file cannot be written.
  """
  done, known = _size(path), _read_notes(path)
  headers = {'User-Agent': 'nfnets'}
  if done and known.get('url') == url and known.get('validator'):
    headers['Range'] = f'bytes={done}-'
    headers['If-Range'] = known['validator']
  with _opened(url, headers, path) as response:
    validator = _validator(response)
    if response.status != 206:
      done = 0
    elif _first_byte(response) != done or validator != known.get('validator'):
      remove(path)
      raise _BrokenError('the server sends another part than was asked for')
    # None: until the end.
    missing = response.length
    total = None if missing is None else done + missing
    if total is not None and total > _MAX_BYTES:
      raise DownloadError(
        f'{url}: the server says that it has {total / 1e9:.1f} GB; no file of '
        'weights is so large.'
      )
    if missing is not None and missing > shutil.disk_usage(path.parent).free:
      raise DownloadError(
        f'{path.parent}: there is no space for the {missing / 1e6:.0f} MB of '
        f'{url}'
      )
    notes = {'url': url, 'validator': validator}
    _notes(path).write_text(json.dumps(notes), encoding='utf-8')
    _write(response, path, 'ab' if done else 'wb', total, done)
    _check(response, url, path, total)


@contextlib.contextmanager
def _opened(
  url: str, headers: dict[str, str], path: pathlib.Path
) -> Iterator[http.client.HTTPResponse]:
  """Sends the request; says in one line what went wrong."""
  try:
    request = urllib.request.Request(url, headers=headers)
    response = urllib.request.urlopen(request, timeout=_TIMEOUT)
  except urllib.error.HTTPError as error:
    error.close()
    proxy = urllib.request.getproxies().get(url.partition(':')[0])
    who = 'the proxy or the server' if proxy else 'the server'
    answer = f'{who} answers {error.code} ({_line(error.reason)})'
    if error.code == 416 and 'Range' in headers:
      remove(path)
      raise _BrokenError(f'{answer} to a request for the rest') from error
    if error.code >= 500 or error.code == 429:
      raise _BrokenError(answer) from error
    raise DownloadError(f'{url}: {answer}') from error
  except (OSError, ValueError, http.client.HTTPException) as error:
    reason = getattr(error, 'reason', error)
    if isinstance(reason, TimeoutError):
      raise _BrokenError(_STALLED.format(_TIMEOUT)) from error
    if isinstance(reason, (ConnectionAbortedError, ConnectionResetError)):
      raise _BrokenError(_line(reason)) from error
    raise DownloadError(f'{url}: {_line(reason)}') from error
  with response:
    yield response


_STALLED = 'the server sends nothing for {} s'


def _write(
  source: BinaryIO, path: pathlib.Path, mode: str, total: int | None, done: int
) -> None:
  """Writes what comes, until it ends."""
  with open(path, mode) as file, _bar(path, total, done) as update:
    while chunk := _read(source):
      done += len(chunk)
      if done > _MAX_BYTES:
        raise DownloadError(f'{path}: more than {_MAX_BYTES / 1e9:.0f} GB came')
      file.write(chunk)
      update(len(chunk))


def _read(source: BinaryIO) -> bytes:
  read = getattr(source, 'read1', source.read)
  try:
    return read(_CHUNK)
  except TimeoutError as error:
    raise _BrokenError(_STALLED.format(_TIMEOUT)) from error
  except (OSError, http.client.HTTPException) as error:
    raise _BrokenError(f'the transfer broke off: {_line(error)}') from error


def _check(
  response: http.client.HTTPResponse,
  url: str,
  path: pathlib.Path,
  total: int | None,
) -> None:
  """Compares the size and, where the server told it, the checksum."""
  size = _size(path)
  if total is not None and size != total:
    raise _BrokenError(f'the transfer broke off after {size} of {total} bytes')
  # As Google's storage has it.
  hashes = ','.join(response.headers.get_all('x-goog-hash', []))
  if match := re.search(r'md5=([\w+/]{22}==)', hashes):
    import base64

    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'md5').digest()
    if base64.b64encode(digest).decode() != match[1]:
      remove(path)
      raise DownloadError(
        f'{url}: what arrived has not the MD5 that the server tells'
      )


def _first_byte(response: http.client.HTTPResponse) -> int | None:
  content_range = response.headers.get('Content-Range', '')
  match = re.match(r'bytes (\d{1,18})-', content_range)
  return int(match[1]) if match else None


def _validator(response: http.client.HTTPResponse) -> str | None:
  """Returns what tells this version of the file from others."""
  etag = response.headers.get('ETag', '')
  if etag.startswith('"'):  # Others begin with W/, and are for web pages.
    return etag
  return response.headers.get('Last-Modified')


def _notes(path: pathlib.Path) -> pathlib.Path:
  """Returns the file that says where an incomplete one is from."""
  return path.with_name(f'{path.name}.json')


def _read_notes(path: pathlib.Path) -> dict[str, Any]:
  try:
    notes = json.loads(_notes(path).read_text(encoding='utf-8'))
  except (FileNotFoundError, ValueError):
    return {}
  return notes if isinstance(notes, dict) else {}


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _line(error: Any) -> str:
  """Returns an error in one line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = ' '.join(str(error).split())[:300] or type(error).__name__
  # A server's own words may hold anything.
  return ''.join(c if c.isprintable() else '?' for c in text)


@contextlib.contextmanager
def _bar(path: pathlib.Path, total: int | None, done: int) -> Iterator[Any]:
  """Shows how far it is, on a terminal and where tqdm is installed."""
  try:
    import tqdm
  except ModuleNotFoundError:
    yield lambda n: None
    return
  with tqdm.tqdm(
    desc=path.name.removesuffix('.partial'),
    total=total,
    initial=done,
    unit='B',
    unit_scale=True,
    dynamic_ncols=True,
    disable=None,  # Unless standard error is a terminal.
  ) as bar:
    yield bar.update
