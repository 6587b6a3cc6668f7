"""Finds weights by name, and downloads, caches and verifies them.

The cache is NFNETS_CACHE, XDG_CACHE_HOME/nfnets/weights or
~/.cache/nfnets/weights. A file appears there when it is complete and has the
parameters of the named model. Its SHA-256 is stored beside it and compared when
a process first uses the file, which takes 0.2 s for F0.
"""

from collections.abc import Iterator
import contextlib
import difflib
import functools
import hashlib
import logging
import os
import pathlib
import sys
from typing import Any

try:
  import fcntl
except ModuleNotFoundError:  # Windows: two processes may both download.
  fcntl = None

from nfnets import errors, messages, paths
from nfnets.weights import downloading, hub

RELEASED = {f'nfnet_f{i}': f'F{i}_haiku.npz' for i in range(7)}
URL = 'https://storage.googleapis.com/dm-nfnets'
# MD5 of the files at URL, recorded by another project (ethanluoyc/jam).
_MD5 = {
  'F0_haiku.npz': '0a41039da1cb43adf47f1b7d86ddfe0f',
  'F1_haiku.npz': 'c9126bbfaf855f9ddb7ff3b902558781',
  'F2_haiku.npz': '7a018d8d1498020e2f5a8719a1e7f53f',
  'F3_haiku.npz': 'd8e1e78d26db659c486150dbaccbe78a',
  'F4_haiku.npz': 'f5974a7e3388aa81b91a9f1403e759a4',
  'F5_haiku.npz': '8639e925de951030651ac775b9f915c3',
  'F6_haiku.npz': 'b16cca40ac1ecec2bd5e3273866da0c1',
}
# The weights of a run.
_RUN_WEIGHTS = 'weights.safetensors'
# {local copy of a file in a bucket: its version}.
_copies: dict[pathlib.Path, bytes] = {}


def find(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
  """Find the file of weights with a name or path, and download it if needed.

  Args:
    name_or_path: a file, the folder of a run, 'nfnet_f0' to 'nfnet_f6' for the
      released weights, or 'timm/NAME' or 'hf://org/repo[@revision]' for the
      Hugging Face Hub. For files and folders in a bucket, gs://BUCKET/NAME, the
      result is a local copy that is removed at the end of the process.

  Returns:
    The path of a local file.

  Raises:
    OSError: if the file does not exist or the download fails.
    ValueError: if a folder has no weights, a name is invalid, or a cached file
      has changed.

  Example:
    >>> weights.find('digits.npz').name
    'digits.npz'
  """
  text = os.fspath(name_or_path)
  if text.startswith('hf://'):
    return hub.fetch(text, is_offline())
  path = paths.path(text)
  for found in (path, path / _RUN_WEIGHTS):
    if paths.is_file(found):
      return _copy(found) if paths.is_remote(text) else found
  if text in RELEASED:
    return _released(text)
  if hub.is_name(text):
    return hub.fetch(text, is_offline())
  if paths.is_dir(path):
    raise ValueError(
      f'{text}: this folder has no {_RUN_WEIGHTS}, the weights of a run.'
    )
  raise FileNotFoundError(f'{text}: there is no such file.{_hint(text)}')


def check(name_or_path: str) -> None:
  """Raise the errors of `find` that need no download."""
  if os.path.exists(paths.expand(name_or_path)) or not (
    paths.is_remote(name_or_path)
    or name_or_path in RELEASED
    or hub.is_name(name_or_path)
  ):
    find(name_or_path)


def digest(path: pathlib.Path) -> str:
  """Return the SHA-256 of a file. An unchanged file is read once."""
  status = path.stat()
  return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _sha256(path: pathlib.Path, *version: int) -> str:
  del version
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _copy(path: Any) -> pathlib.Path:
  """Return a local copy of a file in a bucket."""
  # With the original name, because messages contain it.
  copy = paths.process_folder() / str(path).removeprefix('gs://')
  content, _copies[copy] = paths.read_version(path, _copies.get(copy, b''))
  if content is not None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    paths.write_bytes(copy, content)
  return copy


def is_offline() -> bool:
  """Return whether NFNETS_OFFLINE forbids the network."""
  value = os.environ.get('NFNETS_OFFLINE', '').strip().lower()
  return value not in ('', '0', 'false', 'no', 'off')


def _released(name: str) -> pathlib.Path:
  path = paths.cache_folder('weights') / RELEASED[name]
  if not os.path.exists(path):  # Also if the folder is not readable.
    source = _source(path.name)
    if is_offline() and '://' in source:
      raise FileNotFoundError(
        f'{name}: the weights are not here, and nothing may be fetched '
        f'(NFNETS_OFFLINE is set). Put {source} at {path}'
      )
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with _locked(path):
        if not path.exists():  # Another process may have downloaded it.
          _fetch(name, source, path)
    except OSError as error:
      if error.errno is None:  # Its message is about the source.
        raise
      raise OSError(
        f'{error.filename or path.parent}: {error.strerror}. '
        'NFNETS_CACHE=FOLDER sets another folder for weights.'
      ) from error
  record = _record(path)
  if record.exists():
    text = record.read_text(encoding='ascii', errors='replace')
    expected, actual = text.partition(' ')[0], digest(path)
    if actual != expected:
      raise ValueError(
        f'{path} has changed: its SHA-256 is {actual[:16]}..., not '
        f'{messages.printable(expected[:16])}... Remove it to download it '
        'again.'
      )
  else:  # A user put the file there.
    _check(name, path, path)
  return path


def _record(path: pathlib.Path) -> pathlib.Path:
  """Return the file with the SHA-256 of weights, in `sha256sum`'s format."""
  return path.with_name(f'{path.name}.sha256')


def _source(file: str) -> str:
  """Return the address or path of a released file."""
  mirror = os.environ.get('NFNETS_WEIGHTS_URL') or URL
  if mirror.startswith(('http://', 'https://')):
    return f'{mirror.rstrip("/")}/{file}'
  if '://' in mirror:
    raise ValueError(
      f'NFNETS_WEIGHTS_URL={mirror} is neither http:// nor https:// nor a '
      'folder.'
    )
  return os.path.join(paths.expand(mirror), file)


def _fetch(name: str, source: str, path: pathlib.Path) -> None:
  """Download a file and check its model."""
  partial = path.with_name(f'{path.name}.partial')
  try:
    downloading.download(source, partial)
  except OSError as error:
    if error.errno is not None:  # The disk, not the source.
      raise
    raise OSError(f'{error}. You can also put the file at {path}') from error
  try:
    _check(name, partial, path, source)
  except ValueError as error:
    downloading.remove(partial)
    raise OSError(str(error).replace(str(partial), source)) from error
  paths.put(partial, path)


def _check(
  name: str, file: pathlib.Path, path: pathlib.Path, source: str = ''
) -> None:
  """Check that a file has the weights of a model, and record its SHA-256.

  The record also notes an unexpected MD5 of a file from the official address.

  Raises:
    ValueError: if the weights belong to another model.
  """
  from nfnets.weights import files, matching

  params = files.load_any(file).params
  with errors.prefix(str(file)):
    found = matching.identify(params).name
    if found != name:
      raise ValueError(f'These weights are of {found}, not of {name}.')
  record = f'{digest(file)}  {path.name}\n'
  if source == f'{URL}/{path.name}':
    with open(file, 'rb') as opened:
      md5 = hashlib.file_digest(opened, 'md5').hexdigest()
    if md5 != _MD5[path.name]:
      note = (
        f'{source} has the MD5 {md5}, and not {_MD5[path.name]}, which another '
        'project has recorded for it: the file may have changed since.'
      )
      logging.getLogger(__name__).warning('%s', note)
      record += f'# {note}\n'
  with contextlib.suppress(OSError):  # The folder may be read-only.
    _record(path).write_text(record, 'ascii')


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Lock the download of a file against other processes and threads.

  The operating system releases the lock when the process ends.
  """
  with open(path.with_name(f'.{path.name}.lock'), 'w') as file:
    if fcntl:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        print(
          f'Another process is fetching {path.name}; waiting for it',
          file=sys.stderr,
          flush=True,
        )
        fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _hint(text: str) -> str:
  # The result is '' or a sentence after a space.
  names = [*RELEASED, *hub.NAMES]
  near = {f'nfnet_{text}', f'timm/{text}', os.path.basename(text)}
  close = [x for x in names if near & {x.partition('.')[0], RELEASED.get(x)}]
  # Do not suggest names for a path.
  if not close and ('/' not in text or text.startswith('timm/')):
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.7)
  return f' Did you mean {", ".join(close)}?' if close else ''
