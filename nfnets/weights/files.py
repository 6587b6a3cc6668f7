"""Files of weights: reading by content, and writing.

What the project writes is .npz or .safetensors, with the keys 'module/name' of
parameters and 'state:module/name' of model state, and what is to be said about
the network as JSON beside them (see metadata.py). It also reads the released
format, which is a pickle, and PyTorch's files. No file can run anything.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nfnets import paths
from nfnets.weights import (
  archive,
  haiku_pickle,
  safetensors_file,
  torch_file,
  unpickle,
)
from nfnets.weights import metadata as metadata_lib

Tree = dict[str, dict[str, np.ndarray]]
Path = str | os.PathLike[str]

_STATE = 'state:'
_MAX_KEY = 1000  # Characters.
# The array of bytes in .npz that has the metadata.
_NPZ_METADATA = '__metadata__'
# How other files begin that people take for weights.
_OTHERS = (
  (
    b'version https://git-lfs',
    'a Git LFS pointer; `git lfs pull` gets the file',
  ),
  (b'\x1f\x8b', 'packed with gzip; unpack it first'),
  (b'\x89HDF', 'an HDF5 file'),
  (b'\x93NUMPY', 'a single array, not a tree of them'),
  (b'{', 'JSON'),
)


class Weights(NamedTuple):
  """Parameters and model state, {module: {name: array}} each."""

  params: Tree
  state: Tree  # Empty for most networks.


def load_haiku_file(path: Path) -> Tree:
  """Reads parameters, as `load_weights` does."""
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
  """
  with _opened(path) as file:
    match _recognize(file):
      case 'pickle':
        weights = Weights(haiku_pickle.read(file), {})
      case 'npz':
        members = archive.Archive(file.raw, file.size)
        arrays = archive.read_npz(members)
        arrays.pop(_NPZ_METADATA, None)
        weights = _unflatten(arrays)
      case 'safetensors':
        weights = _unflatten(safetensors_file.read(path))
      case _:
        raise ValueError(
          'is a file of PyTorch; nfnets.weights.open_model reads it, if it is '
          "one of timm's normalizer-free networks"
        )
    if not weights.params:
      raise ValueError('holds no parameters')
    return weights


def load_tensors(path: Path) -> dict[str, np.ndarray]:
  """Reads a state dict that PyTorch or safetensors wrote, without PyTorch.

  Where a checkpoint of training has it under 'state_dict' or the like, this is
  what is read, averaged weights first. A 'module.' or
  '_orig_mod.' before the names, from a wrapped model, is removed.

  Args:
    path: a .pth or .bin file of torch.save, or a .safetensors file; recognized
      by its content.

  Returns:
    {name: array}; bfloat16 becomes float32.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is anything else than such a file, or is damaged.
  """
  with _opened(path) as file:
    match _recognize(file):
      case 'torch_zip':
        members = archive.Archive(file.raw, file.size)
        arrays = torch_file.read_zip(members)
      case 'torch_legacy':
        arrays = torch_file.read_legacy(file)
      case 'safetensors':
        arrays = torch_file.clean_names(safetensors_file.read(path))
      case _:
        raise ValueError(
          "is no file of PyTorch; nfnets.weights.load_weights reads Haiku's"
        )
    if not arrays:
      raise ValueError('holds no tensors')
    return arrays


def has_modules(path: Path) -> bool:
  """Returns whether names in a .safetensors file are those of Haiku's modules.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged.
  """
  with _opened(path):
    return any('/' in name for name in safetensors_file.names(path))


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
  with _opened(path) as file:
    match _recognize(file):
      case 'npz':
        members = archive.Archive(file.raw, file.size)
        text = archive.read_bytes(members, _NPZ_METADATA)
      case 'safetensors':
        text = safetensors_file.read_metadata(path)
      case _:
        text = None
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
  """
  suffix = pathlib.PurePath(path).suffix
  if suffix.lower() not in ('.npz', '.safetensors'):
    raise ValueError(
      f'{path}: weights are written to a name that ends in .npz or '
      f'.safetensors, not {suffix or "without a suffix"!r}.'
    )
  arrays = {**_flatten(params, ''), **_flatten(state or {}, _STATE)}
  text = metadata_lib.encode(metadata) if metadata else None
  with paths.writing(path) as temporary:
    with open(temporary, 'wb') as file:
      mode = os.fstat(file.fileno()).st_mode
      if suffix.lower() == '.npz':
        if text is not None:
          arrays[_NPZ_METADATA] = np.frombuffer(text, np.uint8)
        np.savez(file, **arrays)
    if suffix.lower() == '.safetensors':
      safetensors_file.write(temporary, arrays, text)
      # It made a new file, which only its owner may read.
      os.chmod(temporary, mode)


def recognize(path: Path) -> str:
  """Returns what kind of file it is, by its content.

  Returns:
    'pickle' (the released format), 'npz', 'safetensors', 'torch_zip' or
    'torch_legacy'.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is none of these.
  """
  with _opened(path) as file:
    return _recognize(file)


def _recognize(file: unpickle.File) -> str:
  start = file.read(min(file.size, 512))
  file.rewind()
  if not start:
    raise ValueError('is empty: a download that did not begin')
  # The first eight bytes are a length here, and may look like anything else.
  length = int.from_bytes(start[:8], 'little')
  if start[8:9] == b'{' and length <= file.size - 8:
    return 'safetensors'
  if start.startswith(torch_file.LEGACY_START):
    return 'torch_legacy'
  if start.startswith(b'\x80'):
    return 'pickle'
  if start.startswith(b'PK'):
    return _recognize_zip(archive.Archive(file.raw, file.size))
  if start[8:9] == b'{':
    raise ValueError(
      'is a .safetensors file that is damaged, or a download that stopped'
    )
  if start.lstrip().startswith(b'<'):
    raise ValueError(
      'is a web page (HTML) and not weights: the download went wrong'
    )
  for magic, what in _OTHERS:
    if start.startswith(magic):
      raise ValueError(f'is {what}')
  raise ValueError(
    'is not a file of weights: neither the released format (a pickle) nor '
    f'.npz, .safetensors or .pth. It begins with {start[:16]!r}.'
  )


def _recognize_zip(members: archive.Archive) -> str:
  names = members.names
  if any(name.endswith('/data.pkl') for name in names):
    return 'torch_zip'
  if names and all(name.endswith('.npy') for name in names):
    return 'npz'
  shown = ascii(names[:3])[:200] if names else 'nothing'
  raise ValueError(f'is a zip archive of {shown}, not of weights')


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[unpickle.File]:
  """Opens a file, and names it in what is raised about it."""
  if not os.path.exists(path):
    raise FileNotFoundError(f'{os.fspath(path)}: there is no such file.')
  if not os.path.isfile(path):
    raise ValueError(f'{os.fspath(path)} is a folder or a device, not a file.')
  with open(path, 'rb') as file:
    try:
      yield unpickle.File(file, os.fstat(file.fileno()).st_size)
    except ValueError as error:
      message = str(error).rstrip('.')
      raise ValueError(f'{os.fspath(path)} {message}.') from error


def _flatten(tree: Any, prefix: str) -> dict[str, np.ndarray]:
  """Returns {'module/name': array}, as the files have it."""
  if not isinstance(tree, Mapping):
    raise ValueError(f'Weights are a dict of modules, not {type(tree)}.')
  flat = {}
  for module, leaves in tree.items():
    if not isinstance(leaves, Mapping):
      raise ValueError(
        f'Under {module!r} there should be a dict of arrays, not '
        f'{type(leaves)}.'
      )
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
        raise ValueError(
          f'{name!r} of module {module!r} would not have the same names when '
          'it is read from a file again.'
        )
      flat[prefix + key] = _as_numpy(key, leaf)
  return flat


def _as_numpy(key: str, leaf: Any) -> np.ndarray:
  try:
    array = np.asarray(leaf)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{key} is not an array: {error}') from error
  if array.dtype == jnp.bfloat16:
    array = array.astype(np.float32)
  if array.dtype.str[1:] not in haiku_pickle.NUMERIC:
    raise ValueError(f'{key} is an array of {array.dtype}, not of numbers.')
  return array.astype(array.dtype.newbyteorder('='), order='C', copy=False)


def _unflatten(flat: dict[str, np.ndarray]) -> Weights:
  """Returns the trees of what `_flatten` made."""
  weights = Weights({}, {})
  for key, array in flat.items():
    module, _, name = key.rpartition('/')
    if not module or not name:
      raise ValueError(
        f'has a key {ascii(key)[:200]}, not of the form module/name; '
        "nfnets.weights.open_model reads timm's files"
      )
    is_state = module.startswith(_STATE)
    tree = weights.state if is_state else weights.params
    tree.setdefault(module.removeprefix(_STATE), {})[name] = array
  return weights
