"""Reads and writes files of weights.

The format is recognized by its content. The project writes .npz or .safetensors
with the keys 'module/name' for parameters and 'state:module/name' for model
state, and JSON metadata (see metadata.py). It also reads the released format, a
pickle, and PyTorch's files. Reading never executes code of a file.

Readers raise UserError with the rest of a sentence that begins with 'This
file', and any other error if the file is damaged.
"""

from collections.abc import Iterator, Mapping
import contextlib
import io
import mmap
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from nfnets import errors, messages, paths
from nfnets.errors import UserError
from nfnets.weights import metadata as metadata_lib
from nfnets.weights import pickles, timm, torch_file

Tree = dict[str, dict[str, np.ndarray]]
Path = str | os.PathLike[str]

_STATE = 'state:'
_MAX_KEY = 1000  # Characters.
_NPZ_METADATA = '__metadata__'  # A byte array in .npz.
_METADATA = 'nfnets'  # A key of the .safetensors metadata.
# Maximum compression ratio. Weights hardly compress, zeros do.
_MAX_PACKING = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 100}
# First bytes of supported formats, and of files mistaken for weights.
_STARTS = {
  b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.': (
    'is a PyTorch file of the format before version 1.6; with a newer PyTorch, '
    "torch.save(torch.load('old.pth'), 'new.pth') converts it"
  ),
  b'\x80': 'pickle',
  b'PK': 'zip',
  b'version https://git-lfs': 'is a Git LFS pointer; `git lfs pull` fetches it',
  b'\x1f\x8b': 'is packed with gzip; unpack it first',
  b'\x89HDF': 'is an HDF5 file',
  b'\x93NUMPY': 'is a single array, not a tree of them',
  b'{': 'is JSON',
  b'<': 'is a web page (HTML) and not weights: the download went wrong',
}


class Weights(NamedTuple):
  """Parameters and model state, {module: {name: array}} each.

  Example:
    >>> weights.load_weights('digits.npz').state
    {}
  """

  params: Tree
  state: Tree  # Empty without BatchNorm.


def load_haiku_file(path: Path) -> Tree:
  """Read parameters, as `load_weights` does.

  Example:
    >>> params = weights.load_haiku_file('digits.npz')
  """
  return load_weights(path).params


def load_weights(path: Path) -> Weights:
  """Read parameters and state from a file.

  The content determines the format: the released pickles, which are read
  without executing code, or .npz or .safetensors from `save_weights`.

  Args:
    path: the file.

  Returns:
    Dicts of writable NumPy arrays in native byte order. bfloat16 becomes
    float32.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if the file has another format or is damaged.

  Example:
    >>> params, state = weights.load_weights('digits.npz')
  """
  with _opened(path) as (kind, file):
    if kind == 'torch':
      raise UserError(
        'is a file of PyTorch; nfnets.weights.open_model reads it, if it is '
        "one of timm's normalizer-free networks"
      )
    return _read_weights(kind, file)


def load_tensors(path: Path) -> dict[str, np.ndarray]:
  """Read a PyTorch state dict without PyTorch.

  In a training checkpoint, it reads 'state_dict' or a similar key, with a
  preference for averaged weights, and skips the rest. It removes the prefixes
  '_orig_mod.', 'module.', 'model.', 'net.' and 'backbone.' (torch.compile, DDP,
  Lightning) from the names.

  Args:
    path: a file of torch.save (PyTorch 1.6 or later), or a .safetensors file.
      The content determines the format.

  Returns:
    {name: array}. bfloat16 becomes float32.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if the file has another format or is damaged.

  Example:
    >>> tensors = weights.load_tensors('digits.safetensors')
  """
  with _opened(path) as (kind, file):
    if kind not in ('torch', 'safetensors'):
      raise UserError(
        "is no file of PyTorch; nfnets.weights.load_weights reads Haiku's"
      )
    return _read_tensors(kind, file)


def load_any(path: Path) -> Weights:
  """Read the formats of `load_weights`, or convert a state dict of timm."""
  with _opened(path) as (kind, file):
    has_modules = kind == 'safetensors' and '/' in ''.join(file.keys())
    if has_modules or kind in ('pickle', 'npz'):
      return _read_weights(kind, file)
    tensors = _read_tensors(kind, file)
  with errors.prefix(os.fspath(path)):
    return Weights(timm.guess_tree(tensors), {})


def read_metadata(path: Path) -> dict[str, Any]:
  """Read only the metadata of a file; see `opening.read_metadata`."""
  text = None
  with _opened(path) as (kind, file):
    if kind == 'npz' and f'{_NPZ_METADATA}.npy' in file.namelist():
      text = _read_npy(file, _NPZ_METADATA).tobytes()
    elif kind == 'safetensors':
      text = (file.metadata() or {}).get(_METADATA)
    return {} if text is None else metadata_lib.decode(text)


def save_weights(
  path: Path,
  params: Mapping[str, Mapping[str, Any]],
  state: Mapping[str, Mapping[str, Any]] | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Write parameters and model state to a file for `load_weights`.

  The write is atomic, also if the file exists.

  Args:
    path: a local file or gs://BUCKET/NAME. The suffix, .npz or .safetensors,
      determines the format.
    params: {module: {name: array}} of NumPy or JAX. bfloat16 is written as
      float32 with the same values, because NumPy's files do not support it.
    state: model state in the same form, or None.
    metadata: a dict of JSON values for `read_metadata` and `open_model`, e.g.
      from `nfnets.weights.describe`.

  Raises:
    OSError: if the file cannot be written.
    ValueError: if the suffix or scheme is not supported, or the file could not
      store names, arrays or metadata.

  Example:
    >>> metadata = weights.describe(model, step=3000)
    >>> weights.save_weights('digits.safetensors', params, state, metadata)
  """
  suffix = pathlib.PurePath(path).suffix
  if suffix.lower() not in ('.npz', '.safetensors'):
    raise ValueError(
      f'{path}: weights are written to a name that ends in .npz or '
      f'.safetensors, not {suffix or "without a suffix"!r}.'
    )
  with _naming(os.fspath(path)):
    arrays = {**_flatten(params, ''), **_flatten(state or {}, _STATE)}
    text = metadata_lib.encode(metadata) if metadata else None
  with paths.writing(path) as temporary, open(temporary, 'wb') as file:
    if suffix.lower() == '.npz':
      if text is not None:
        arrays[_NPZ_METADATA] = np.frombuffer(text.encode(), np.uint8)
      np.savez(file, **arrays)
    else:
      import safetensors.numpy

      entries = None if text is None else {_METADATA: text}
      file.write(safetensors.numpy.save(arrays, entries))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[str, Any]]:
  """Open a file of weights, and add its name to errors in this context.

  Yields:
    'pickle' (the released format) and the mapped file; 'npz' or 'torch' and the
    archive; or 'safetensors' and its reader.
  """
  path = os.fspath(path)
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path}: there is no such file.')
  if not os.path.isfile(path):
    raise ValueError(f'{path}: this is a folder or a device, not a file.')
  with _naming(path), contextlib.ExitStack() as stack:
    file = stack.enter_context(open(path, 'rb'))
    size = os.fstat(file.fileno()).st_size
    kind = _recognize(file.read(512), size)
    if kind == 'safetensors':
      import safetensors  # Not required by `import nfnets`.

      content = safetensors.safe_open(path, framework='numpy')
    elif kind == 'pickle':
      content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    else:
      content = zipfile.ZipFile(file)
      kind = _recognize_zip(content, size)
    yield kind, stack.enter_context(content)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Convert all errors in this context to a ValueError with the file name."""
  try:
    yield
  except UserError as error:
    raise ValueError(f'{path}: This file {error}.') from error
  except Exception as error:
    reason = messages.one_line(error).rstrip('.')
    raise ValueError(
      f'{path}: This file is damaged, or a download that stopped: {reason}.'
    ) from error


def _recognize(start: bytes, size: int) -> str:
  """Return 'pickle', 'zip' or 'safetensors', based on the first bytes."""
  if not start:
    raise UserError('is empty: a download that did not begin')
  is_json = start[8:9] == b'{'
  # The first eight bytes are a length, which may look like another format.
  if is_json and int.from_bytes(start[:8], 'little') <= size - 8:
    return 'safetensors'
  for magic, kind in _STARTS.items():
    if start.lstrip().startswith(magic):
      if ' ' in kind:
        raise UserError(kind)
      return kind
  if is_json:  # A truncated file: its reader raises the error.
    return 'safetensors'
  raise UserError(
    'is not a file of weights: neither the released format (a pickle) nor '
    f'.npz, .safetensors or .pth. It begins with {start[:16]!r}'
  )


def _recognize_zip(archive: zipfile.ZipFile, size: int) -> str:
  """Return 'torch' or 'npz'.

  Check the claimed sizes before allocating memory: a few bytes can unpack to
  more than the machine has.
  """
  names = archive.namelist()
  sizes = [
    member.file_size / _MAX_PACKING.get(member.compress_type, 1e-9)
    for member in archive.infolist()
  ]
  if sum(sizes) > size or len(set(names)) != len(names):
    raise UserError(
      f'is a zip archive of {size} bytes that claims to hold much more, has '
      'two files of the same name, or is packed in an unknown way'
    )
  if any(name.endswith('/data.pkl') for name in names):
    return 'torch'
  if names and all(name.endswith('.npy') for name in names):
    return 'npz'
  shown = ascii(names[:3])[:200] if names else 'nothing'
  raise UserError(f'is a zip archive of {shown}, not of weights')


def _read_npy(archive: zipfile.ZipFile, key: str) -> np.ndarray:
  content = io.BytesIO(archive.read(f'{key}.npy'))  # Compares its checksum.
  return np.lib.format.read_array(content, allow_pickle=False)


def _read_arrays(kind: str, file: Any) -> dict[str, np.ndarray]:
  """Read {key: array} from a file of `_opened`, except pickles."""
  if kind == 'torch':
    return torch_file.read(file)
  if kind == 'npz':
    keys = [name.removesuffix('.npy') for name in file.namelist()]
    keys = [key for key in keys if key != _NPZ_METADATA]
    return {key: _as_numbers(key, _read_npy(file, key)) for key in keys}
  return {key: _as_numbers(key, file.get_tensor(key)) for key in file.keys()}


def _read_tensors(kind: str, file: Any) -> dict[str, np.ndarray]:
  """Read {name: array} from a PyTorch or safetensors file."""
  arrays = torch_file.clean_names(_read_arrays(kind, file))
  if not arrays:
    raise UserError('holds no tensors')
  return arrays


def _read_weights(kind: str, file: Any) -> Weights:
  """Read the files of `save_weights`, or the released format."""
  if kind == 'pickle':
    weights = Weights(pickles.read_tree(file), {})
  else:
    weights = Weights({}, {})
    for key, array in _read_arrays(kind, file).items():
      module, _, name = key.rpartition('/')
      if not module or not name:
        raise UserError(
          f'has a key {ascii(key)[:200]}, not of the form module/name; '
          "nfnets.weights.open_model reads timm's files"
        )
      is_state = module.startswith(_STATE)
      tree = weights.state if is_state else weights.params
      tree.setdefault(module.removeprefix(_STATE), {})[name] = array
  if not weights.params:
    raise UserError('holds no parameters')
  return weights


def _as_numbers(key: str, array: np.ndarray) -> np.ndarray:
  """Return an array in native byte order; bfloat16 as float32."""
  if array.dtype == jnp.bfloat16:
    array = array.astype(np.float32)
  if array.dtype.str[1:] not in pickles.NUMERIC:
    raise UserError(
      f'has {ascii(key)[:200]}, an array of {array.dtype} and not of numbers'
    )
  return array.astype(array.dtype.newbyteorder('='), copy=False)


def _flatten(tree: Any, prefix: str) -> dict[str, np.ndarray]:
  """Return {'module/name': array}, the content of a file."""
  flat = {}
  if not isinstance(tree, Mapping) or not all(
    isinstance(leaves, Mapping) for leaves in tree.values()
  ):
    raise UserError('is to hold a dict of modules, and each a dict of arrays')
  for module, leaves in tree.items():
    for name, leaf in leaves.items():
      key = f'{module}/{name}'
      # Not all formats support unprintable or very long names.
      if (
        not (isinstance(module, str) and module and isinstance(name, str))
        or not name
        or '/' in name
        or module.startswith(_STATE)
        or not key.isprintable()
        or len(key) > _MAX_KEY
      ):
        raise UserError(
          f'is to hold {name!r} of module {module!r}, which would not have the '
          'same names when it is read again'
        )
      try:
        array = np.asarray(leaf, order='C')
      except (TypeError, ValueError) as error:
        raise UserError(f'is to hold {key}, no array: {error}') from error
      flat[prefix + key] = _as_numbers(key, array)
  return flat
