"""Weights of timm's normalizer-free networks, in both directions.

timm (PyTorch Image Models) keeps them in a state dict with keys such as
`stages.0.1.conv2.weight`; here they are Haiku's {module: {name: array}}. The
numbers are the same: kernels [O, I, H, W] become [H, W, I, O], gains [O, 1, 1,
1] become [O], and 1x1 kernels [O, I, 1, 1] of squeeze and excite [I, O].
"""

from collections.abc import Mapping
import functools
import math
import re
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnets import timm_variants, zoo
from nfnets.weights import shapes

# timm's networks, and what `nfnets.create_model` calls them.
NETWORKS = {
  **{f'dm_nfnet_f{i}': f'nfnet_f{i}' for i in range(7)},
  **{name: f'timm/{name}' for name in timm_variants.timm_params},
}
# timm's modules, those of a block without its name, and what they are here.
_MODULES = {
  'stem.conv': 'initial_conv',
  **{f'stem.conv{i + 1}': f'stem_conv{i}' for i in range(4)},
  'final_conv': 'final_conv',
  'head.fc': 'linear',
  'conv1': 'conv0',
  'conv2': 'conv1',
  'conv2b': 'conv1b',
  'conv3': 'conv2',
  'downsample.conv': 'conv_shortcut',
  'attn.fc1': 'inner_squeeze_excite/~/linear',
  'attn.fc2': 'inner_squeeze_excite/~/linear_1',
  'attn_last.fc1': 'squeeze_excite/~/linear',
  'attn_last.fc2': 'squeeze_excite/~/linear_1',
  'attn_last.conv': 'eca/~/conv',
}
_TIMM_MODULES = {ours: theirs for theirs, ours in _MODULES.items()}
_BLOCK = re.compile(r'(?:\w+/~/)?nf_block(?:_(\d+))?(?:/~/(.*))?')
_TIMM_BLOCK = re.compile(r'stages\.(\d+)\.(\d+)(?:\.(.*))?')


def from_timm(name: str, state_dict: Mapping[str, Any]) -> hk.MutableParams:
  """Turns a state dict of timm's into parameters.

  Args:
    name: timm's name of the network, with or without a tag: 'dm_nfnet_f0',
      'eca_nfnet_l0.ra2_in1k'. `dm_nfnet_f0` to `f6` are `nfnet_f0` to `f6`
      here; each other network is `timm/<name>`.
    state_dict: {key: array}; of NumPy, or of what it reads, such as PyTorch's
      tensors on the CPU. The last layer may be missing, or have any number of
      classes.

  Returns:
    {module: {name: array}}, of the same dtypes.

  Raises:
    ValueError: for an unknown name, or a state dict that is not that network's;
      the message has the first keys that differ.
  """
  arrays = {key: np.asarray(value) for key, value in state_dict.items()}
  actual = _shapes(arrays)
  num_classes = math.prod(actual.get('head.fc.weight', (0,))[:1])
  _compare(
    f"This is not the state dict of timm's {name}",
    actual,
    _shapes(_to_state_dict(_zeros(name, num_classes))),
  )
  return guess_tree(arrays)


def to_timm(name: str, params: hk.Params) -> dict[str, np.ndarray]:
  """Turns parameters into a state dict of timm's.

  Args:
    name: timm's name of the network, as `from_timm` takes it.
    params: {module: {name: array}}, with any number of classes or none.

  Returns:
    {key: array} of NumPy and the same dtypes.

  Raises:
    ValueError: for an unknown name, or parameters that are not that network's;
      the message has the first names that differ.
  """
  params = jax.tree.map(np.asarray, {k: dict(v) for k, v in params.items()})
  actual = _shapes(_flat(params))
  root = zoo.get_entry(_model(name)).module.__name__
  num_classes = math.prod(actual.get(f'{root}/~/linear/w', (0,))[-1:])
  _compare(
    f"These are not the parameters of timm's {name}",
    actual,
    _shapes(_flat(_zeros(name, num_classes))),
  )
  state_dict = _to_state_dict(params)
  return {key: np.array(v, order='C') for key, v in state_dict.items()}


def guess_tree(state_dict: Mapping[str, Any]) -> hk.MutableParams:
  """Turns a state dict of timm's into parameters, whatever network it is of.

  Args:
    state_dict: {key: array}, of a normalizer-free network of timm's.

  Returns:
    {module: {name: array}}, of the same dtypes.

  Raises:
    ValueError: if it has a key, or a shape, that no such network has.
  """
  blocks = [m for m in map(_TIMM_BLOCK.match, state_dict) if m]
  blocks = sorted({(int(m[1]), int(m[2])) for m in blocks})
  numbers = {block: i for i, block in enumerate(blocks)}
  skipinit = any(key.endswith('.skipinit_gain') for key in state_dict)
  root = 'NFNet' if skipinit else 'NormFreeNet'
  params, strange = {}, {}
  for key, value in state_dict.items():
    value = np.asarray(value)
    module, _, name = key.rpartition('.')
    path = [root]
    if match := _TIMM_BLOCK.fullmatch(module):
      number = numbers[int(match[1]), int(match[2])]
      path.append(f'nf_block_{number}' if number else 'nf_block')
      module = match[3]
    if name != 'skipinit_gain':
      path.append(_MODULES.get(module))
    if None in path or not _is_known(module, name, value.shape):
      strange[key] = value.shape
      continue
    name, value = _leaf(path[-1], name, value)
    leaves = params.setdefault('/~/'.join(path), {})
    leaves[name] = np.array(value, order='C')
  if strange or not blocks:
    raise ValueError(
      "This is no state dict of a normalizer-free network of timm's. It holds "
      f'{shapes.some(strange or _shapes(state_dict))}.'
    )
  return params


def _is_known(module: str, name: str, shape: tuple[int, ...]) -> bool:
  """Returns whether a parameter of timm's can have this name and shape."""
  match name:
    case 'weight':
      if module.startswith('attn') and 'fc' in module:
        return shape[2:] == (1, 1)
      return len(shape) == {'head.fc': 2, 'attn_last.conv': 3}.get(module, 4)
    case 'gain':
      return shape[1:] == (1, 1, 1)
    case 'bias':
      return len(shape) == 1
  return name == 'skipinit_gain' and shape == ()


def _leaf(module: str, name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  """Returns the name and value here of a parameter of timm's."""
  is_linear = module.endswith(('linear', 'linear_1'))
  match name:
    case 'weight':
      value = value.transpose(*range(2, value.ndim), 1, 0)
      return 'w', value.reshape(value.shape[-2:]) if is_linear else value
    case 'gain':
      return 'gain', value.reshape(-1)
    case 'bias':
      return 'b' if is_linear else 'bias', value
  return 'skip_gain', value


def _timm_leaf(
  module: str, name: str, value: np.ndarray
) -> tuple[str, np.ndarray]:
  """Returns timm's name and value of a parameter here."""
  match name:
    case 'w':
      value = np.moveaxis(value, (-1, -2), (0, 1))
      if 'squeeze_excite' in module:
        value = value[:, :, None, None]
      return 'weight', value
    case 'gain':
      return 'gain', value[:, None, None, None]
    case 'b' | 'bias':
      return 'bias', value
  return 'skipinit_gain', value


def _to_state_dict(params: hk.Params) -> dict[str, np.ndarray]:
  """Returns timm's keys with views of the parameters."""
  # Each stage begins with a block that has a convolution in its shortcut.
  numbers, stages = set(), set()
  for match in filter(None, map(_BLOCK.fullmatch, params)):
    numbers.add(int(match[1] or 0))
    if match[2] == 'conv_shortcut':
      stages.add(int(match[1] or 0))
  blocks, stage, first = {}, -1, 0
  for number in sorted(numbers):
    if number in stages:
      stage, first = stage + 1, number
    blocks[number] = f'stages.{stage}.{number - first}'

  state_dict = {}
  for module, leaves in params.items():
    path = []
    if match := _BLOCK.fullmatch(module):
      path, part = [blocks[int(match[1] or 0)]], match[2]
    else:
      part = module.partition('/~/')[2]
    if part:
      path.append(_TIMM_MODULES[part])
    for name, value in leaves.items():
      name, value = _timm_leaf(module, name, value)
      state_dict['.'.join([*path, name])] = value
  return state_dict


def _model(name: str) -> str:
  """Returns what `nfnets.create_model` calls a network of timm's.

  Raises:
    ValueError: for an unknown name.
  """
  plain = name.removeprefix('timm/').partition('.')[0]
  if plain not in NETWORKS:
    raise ValueError(
      f"{name!r} is no normalizer-free network of timm's that is known here; "
      f'there are {", ".join(NETWORKS)}.'
    )
  return NETWORKS[plain]


def _zeros(name: str, num_classes: int) -> hk.MutableParams:
  """Returns the parameters of a network, as zeros that take no memory."""
  return jax.tree.map(
    lambda x: np.broadcast_to(x.dtype.type(), x.shape),
    _param_shapes(_model(name), num_classes),
  )


@functools.cache
def _param_shapes(model: str, num_classes: int) -> hk.MutableParams:
  return shapes.of_model(zoo.create_model(model, num_classes))[0]


def _flat(params: hk.Params) -> dict[str, np.ndarray]:
  return {
    f'{m}/{n}': x for m, leaves in params.items() for n, x in leaves.items()
  }


def _shapes(arrays: Mapping[str, Any]) -> shapes.Shapes:
  return {key: np.shape(array) for key, array in arrays.items()}


def _compare(
  complaint: str, actual: shapes.Shapes, expected: shapes.Shapes
) -> None:
  """Raises ValueError, with the first names that differ, if there are any."""
  if found := shapes.describe(actual, expected):
    raise ValueError(f'{complaint}: {found}.')
