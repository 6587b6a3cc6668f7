"""Weights by name: where they are from, where they are kept, what is checked.

The released weights are kept in one folder, the cache: NFNETS_CACHE, else
XDG_CACHE_HOME/nfnets/weights, else ~/.cache/nfnets/weights. A file appears
there when it is complete, and has been found to be of the model that was named.
Its SHA-256 is written beside it then, and compared whenever a process first
takes the file, which takes as long as reading it: 0.2 s for F0.
"""

import atexit
from collections.abc import Iterator
import contextlib
import difflib
import functools
import hashlib
import os
import pathlib
import re
import shutil
import sys
import tempfile

try:
  import fcntl
except ModuleNotFoundError:  # Windows, where two processes would fetch twice.
  fcntl = None

from nfnets import buckets, paths
from nfnets.weights import downloading, hub

RELEASED = {f'nfnet_f{i}': f'F{i}_haiku.npz' for i in range(7)}
URL = 'https://storage.googleapis.com/dm-nfnets'
# What a run leaves in its folder.
_RUN_WEIGHTS = 'weights.safetensors'
# The version of each local copy of what is in a bucket.
_copies: dict[pathlib.Path, bytes] = {}


def find(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the file of weights that a name or a path stands for.

  Args:
    name_or_path: a file; or else the folder of a run, for the weights in it; or
      else a name: 'nfnet_f0' to 'nfnet_f6' for the released weights,
      'timm/NAME' or 'hf://org/repo[@revision]' for those of the Hugging Face
      Hub. What is not there yet is fetched. A file or the folder of a run may
      be in a bucket, as gs://BUCKET/NAME; then this is a copy, which this
      process keeps until it ends.

  Raises:
    OSError: if there is no such file, or it cannot be fetched.
    ValueError: for a folder without weights, a name that there cannot be, and a
      file in the cache that has changed.
  """
  text = os.fspath(name_or_path)
  if text.startswith('gs://'):
    return _in_bucket(text)
  if not hub.is_name(text):
    paths.path(text)  # Refuses other schemes.
  path = os.path.expanduser(text)
  if os.path.isdir(path):
    inside = os.path.join(path, _RUN_WEIGHTS)
    if os.path.isfile(inside):
      return pathlib.Path(inside)
  elif os.path.exists(path):
    return pathlib.Path(path)
  if text in RELEASED:
    return _released(text)
  if hub.is_name(text):
    found = hub.fetch(text, is_offline())
    # The hub's cache names large files by their SHA-256.
    blob = found.resolve()
    if re.fullmatch('[0-9a-f]{64}', blob.name):
      _compare(blob, blob.name)
    return found
  if os.path.isdir(path):
    raise ValueError(
      f'{text}: this folder has no {_RUN_WEIGHTS}, which a run leaves there.'
    )
  raise FileNotFoundError(f'{text}: there is no such file.{_hint(text)}')


def digest(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, which is read once if it does not change."""
  return _sha256(path, *_version(path))


def _in_bucket(name: str) -> pathlib.Path:
  """Returns a local copy of a file in a bucket, or of what a run left there."""
  path = paths.path(name)
  if not paths.is_file(path):
    path = path / _RUN_WEIGHTS
    if not paths.is_file(path):
      raise FileNotFoundError(
        f'{name}: there is no such file, and no {path}, which a run leaves.'
      )
  # Under its name, because messages name the copy.
  copy = _copies_folder() / str(path).removeprefix('gs://')
  content, _copies[copy] = buckets.read_version(
    str(path), _copies.get(copy, b'')
  )
  if content is not None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    paths.write_bytes(copy, content)
  return copy


@functools.cache
def _copies_folder() -> pathlib.Path:
  """Returns a folder that is removed when the process ends."""
  folder = tempfile.mkdtemp(prefix='nfnets-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


def is_offline() -> bool:
  """Returns whether NFNETS_OFFLINE forbids the network."""
  value = os.environ.get('NFNETS_OFFLINE', '').strip().lower()
  return value not in ('', '0', 'false', 'no', 'off')


def cache_folder() -> pathlib.Path:
  """Returns the folder of the released weights."""
  if folder := os.environ.get('NFNETS_CACHE'):
    return pathlib.Path(os.path.expanduser(folder))
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(cache, 'nfnets', 'weights')


def _released(name: str) -> pathlib.Path:
  """Returns the file of a model's released weights."""
  path = cache_folder() / RELEASED[name]
  if not os.path.exists(path):  # Nor may one look.
    source = _source(RELEASED[name])
    if is_offline() and '://' in source:
      raise FileNotFoundError(
        f'{name}: the weights are not here, and nothing may be fetched '
        f'(NFNETS_OFFLINE is set). Put {source} at {path}'
      )
    try:
      _fetch(name, source, path)
    except downloading.DownloadError:
      raise
    except OSError as error:
      raise downloading.DownloadError(
        f'{error.filename or path.parent}: {error.strerror or error}. '
        'NFNETS_CACHE=FOLDER names another place to keep weights.'
      ) from error
  _verify(name, path)
  return path


def _source(file: str) -> str:
  """Returns the address of a released file, or its path."""
  mirror = os.environ.get('NFNETS_WEIGHTS_URL') or URL
  if mirror.startswith(('http://', 'https://')):
    return f'{mirror.rstrip("/")}/{file}'
  if '://' in mirror:
    raise ValueError(
      f'NFNETS_WEIGHTS_URL={mirror} is neither http:// nor https:// nor a '
      'folder.'
    )
  return os.path.join(os.path.expanduser(mirror), file)


def _fetch(name: str, source: str, path: pathlib.Path) -> None:
  """Fetches a file, unless another process has done so meanwhile."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with _locked(path):
    if path.exists():
      return
    partial = path.with_name(f'{path.name}.partial')
    downloading.download(source, partial)
    try:
      _check(name, partial)
    except ValueError as error:
      downloading.remove(partial)
      reason = str(error).removeprefix(f'{partial} ')
      where = f'{source} ' if reason != str(error) else f'{source}: '
      raise downloading.DownloadError(where + reason) from error
    _record(path, partial)
    os.replace(partial, path)


def _check(name: str, path: pathlib.Path) -> None:
  """Raises ValueError unless a file has weights of that model."""
  from nfnets.weights import files, matching

  match = matching.identify(files.load_weights(path).params)
  if match.name != name:
    raise ValueError(f'These weights are of {match.name}, not of {name}.')


def _verify(name: str, path: pathlib.Path) -> None:
  """Raises ValueError unless a file in the cache is what it was."""
  try:
    recorded = _digest_file(path).read_text(encoding='ascii', errors='replace')
  except FileNotFoundError:
    # Somebody put the file there.
    try:
      _check(name, path)
    except ValueError as error:
      where = '' if str(path) in str(error) else f'{path}: '
      raise ValueError(f'{where}{error}') from error
    with contextlib.suppress(OSError):  # A folder that others look after.
      _record(path, path)
    return
  _compare(path, recorded.partition(' ')[0])


def _record(path: pathlib.Path, content: pathlib.Path) -> None:
  """Writes the SHA-256 of a file's content, as `sha256sum` does."""
  text = f'{digest(content)}  {path.name}\n'
  _digest_file(path).write_text(text, encoding='ascii')


def _compare(path: pathlib.Path, expected: str) -> None:
  actual = digest(path)
  if actual != expected:
    raise ValueError(
      f'{path} is not what was fetched: its SHA-256 is {actual[:16]}..., not '
      f'{ascii(expected[:16])[1:-1]}... Remove it, and it will be fetched anew.'
    )


def _digest_file(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{path.name}.sha256')


def _version(path: pathlib.Path) -> tuple[int, int, int]:
  status = path.stat()
  return status.st_size, status.st_mtime_ns, status.st_ino


@functools.cache
def _sha256(path: pathlib.Path, *version: int) -> str:
  """Returns the SHA-256 of a file, computed once for each version of it."""
  del version
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Lets one process or thread at a time fetch a file.

  The system takes the lock back from a process that ends, however it ends.
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
  """Returns what else could have been meant, as another sentence."""
  for name, file in RELEASED.items():
    if os.path.basename(text) == file:
      return f' The name {name} fetches the released file.'
  from nfnets import zoo

  if text in zoo.list_models():
    return (
      f' {text} is a model without released weights; these are of '
      f'{", ".join(RELEASED)}.'
    )
  names = [*RELEASED, *hub.NAMES]
  near = (f'nfnet_{text}', f'timm/{text}', text)
  close = [name for name in names if name.partition('.')[0] in near]
  # A path is no misspelled name.
  if not close and ('/' not in text or text.startswith('timm/')):
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.7)
  return f' Did you mean {", ".join(close)}?' if close else ''
