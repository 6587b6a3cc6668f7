"""Files of weights: reading by content, and writing.

What the project writes is .npz or .safetensors, with the keys 'module/name' of
parameters and 'state:module/name' of model state, and what is to be said about
the network as JSON beside them (see metadata.py). It also reads the released
format, which is a pickle, and PyTorch's files. No file can run anything.

A reader raises UserError with the rest of a sentence that begins with 'This
file', or any other error where the file is damaged.
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
_NPZ_METADATA = '__metadata__'  # An array of bytes in .npz.
_METADATA = 'nfnets'  # Among the metadata that .safetensors has.
# Weights hardly shrink when they are packed; zeros do.
_MAX_PACKING = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 100}
# How files begin: those that are read, and others that people take for weights.
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
  state: Tree  # Empty for most networks.


def load_haiku_file(path: Path) -> Tree:
  """Reads parameters, as `load_weights` does.

  Example:
    >>> params = weights.load_haiku_file('digits.npz')
  """
  return load_weights(path).params


def load_weights(path: Path) -> Weights:
  """Reads parameters and state from a file that is recognized by its content.

  It can be in the released format (a pickle, whatever its suffix, which is read
  without running anything), or .npz or .safetensors as `save_weights` writes.

  Args:
    path: the file.

  Returns:
    Plain dicts of NumPy arrays, which are writable, aligned and in the
    machine's byte order; bfloat16 becomes float32.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is anything else than such a file, or is damaged.

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
  """Reads a state dict that PyTorch or safetensors wrote, without PyTorch.

  Where a checkpoint of training has it under 'state_dict' or the like, this is
  what is read, averaged weights first; all else in the checkpoint is skipped.
  Before the names, '_orig_mod.', 'module.', 'model.', 'net.' and 'backbone.' of
  torch.compile, DDP and Lightning are removed.

  Args:
    path: a .pth or .bin file that torch.save wrote since PyTorch 1.6, or a
      .safetensors file; recognized by its content.

  Returns:
    {name: array}; bfloat16 becomes float32.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is anything else than such a file, or is damaged.

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
  """Reads what `load_weights` does, or converts a state dict of timm's."""
  with _opened(path) as (kind, file):
    has_modules = kind == 'safetensors' and '/' in ''.join(file.keys())
    if has_modules or kind in ('pickle', 'npz'):
      return _read_weights(kind, file)
    tensors = _read_tensors(kind, file)
  with errors.prefix(os.fspath(path)):
    return Weights(timm.guess_tree(tensors), {})


def read_metadata(path: Path) -> dict[str, Any]:
  """Reads what `save_weights` was given as metadata, and no weights.

  Args:
    path: the file.

  Returns:
    A dict of JSON values, empty where a file has none. What the keys mean, and
    that they have the type for it, is in nfnets/weights/metadata.py.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no file of weights, or its metadata are damaged.
  """
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
  """Writes parameters and model state, so that `load_weights` reads them.

  A file of this name is replaced when the new one is complete, and not before.

  Args:
    path: ends in .npz or .safetensors, which decides how it is written; here,
      or gs://BUCKET/NAME.
    params: {module: {name: array}} of numbers, of NumPy or JAX. bfloat16 is
      written as float32, which has the same values, because NumPy's files do
      not know it.
    state: the same for model state; None or empty if there is none.
    metadata: a dict of JSON values, for `read_metadata` and `open_model`;
      `nfnets.weights.describe` makes one of a model.

  Raises:
    OSError: if it cannot be written.
    ValueError: for another suffix or scheme, and for names, leaves or metadata
      that would not come back from the file.

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
  """Opens a file of weights, and names it in what is raised about it.

  Yields:
    'pickle' (the released format) and the mapped file, 'npz' and 'torch' and
    the archive, or 'safetensors' and its reader.
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
      import safetensors  # `import nfnets` does without it.

      content = safetensors.safe_open(path, framework='numpy')
    elif kind == 'pickle':
      content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    else:
      content = zipfile.ZipFile(file)
      kind = _recognize_zip(content, size)
    yield kind, stack.enter_context(content)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Turns any error of a reader into a ValueError with the file's name."""
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
  """Returns 'pickle', 'zip' or 'safetensors', by how a file begins."""
  if not start:
    raise UserError('is empty: a download that did not begin')
  is_json = start[8:9] == b'{'
  # The first eight bytes are a length then, and may look like anything else.
  if is_json and int.from_bytes(start[:8], 'little') <= size - 8:
    return 'safetensors'
  for magic, kind in _STARTS.items():
    if start.lstrip().startswith(magic):
      if ' ' in kind:
        raise UserError(kind)
      return kind
  if is_json:  # Its reader says that it is too short.
    return 'safetensors'
  raise UserError(
    'is not a file of weights: neither the released format (a pickle) nor '
    f'.npz, .safetensors or .pth. It begins with {start[:16]!r}'
  )


def _recognize_zip(archive: zipfile.ZipFile, size: int) -> str:
  """Returns 'torch' or 'npz'.

  What an archive says about sizes is checked before memory is taken: a few
  bytes can claim, and even unpack to, more than there is.
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
  """Reads {key: array} from a file that `_opened` yields, but for pickles."""
  if kind == 'torch':
    return torch_file.read(file)
  if kind == 'npz':
    keys = [name.removesuffix('.npy') for name in file.namelist()]
    keys = [key for key in keys if key != _NPZ_METADATA]
    return {key: _as_numbers(key, _read_npy(file, key)) for key in keys}
  return {key: _as_numbers(key, file.get_tensor(key)) for key in file.keys()}


def _read_tensors(kind: str, file: Any) -> dict[str, np.ndarray]:
  """Reads {name: array} from a file of PyTorch or of safetensors."""
  arrays = torch_file.clean_names(_read_arrays(kind, file))
  if not arrays:
    raise UserError('holds no tensors')
  return arrays


def _read_weights(kind: str, file: Any) -> Weights:
  """Reads what `save_weights` wrote, or the released format."""
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
  """Returns an array in the machine's byte order; bfloat16 as float32."""
  if array.dtype == jnp.bfloat16:
    array = array.astype(np.float32)
  if array.dtype.str[1:] not in pickles.NUMERIC:
    raise UserError(
      f'has {ascii(key)[:200]}, an array of {array.dtype} and not of numbers'
    )
  return array.astype(array.dtype.newbyteorder('='), copy=False)


def _flatten(tree: Any, prefix: str) -> dict[str, np.ndarray]:
  """Returns {'module/name': array}, as the files have it."""
  flat = {}
  if not isinstance(tree, Mapping) or not all(
    isinstance(leaves, Mapping) for leaves in tree.values()
  ):
    raise UserError('is to hold a dict of modules, and each a dict of arrays')
  for module, leaves in tree.items():
    for name, leaf in leaves.items():
      key = f'{module}/{name}'
      # What is not printable, or very long, cannot be in every file.
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
