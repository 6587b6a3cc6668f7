"""Converts weights of timm's normalizer-free networks, in both directions.

timm (PyTorch Image Models) has state dicts with keys such as
`stages.0.1.conv2.weight`, and this project has Haiku's {module: {name: array}}.
The conversion is exact: kernels [O, I, H, W] become [H, W, I, O], gains [O, 1,
1, 1] become [O], and 1x1 kernels [O, I, 1, 1] of squeeze and excite [I, O].
"""

from collections.abc import Mapping
import math
import re
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnets import module_names, variants
from nfnets.weights import matching

# {timm's name: name in `nfnets.create_model`}.
NETWORKS = {
  **{f'dm_nfnet_f{i}': f'nfnet_f{i}' for i in range(7)},
  **{name: f'timm/{name}' for name in variants.timm_params},
}
# {timm's module, relative to its block: module here}.
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
_TIMM_NAMES = {'w': 'weight', 'b': 'bias', 'skip_gain': 'skipinit_gain'}
_TIMM_BLOCK = re.compile(r'stages\.(\d+)\.(\d+)(?:\.(.*))?')


def from_timm(name: str, state_dict: Mapping[str, Any]) -> hk.MutableParams:
  """Convert a state dict of timm to parameters.

  Args:
    name: timm's name of the network, with or without a tag: 'dm_nfnet_f0',
      'eca_nfnet_l0.ra2_in1k'. `dm_nfnet_f0` to `f6` are `nfnet_f0` to `f6`
      here, and other networks are `timm/<name>`.
    state_dict: {key: array} of NumPy arrays or PyTorch tensors on the CPU. The
      last layer may be missing or have any number of classes.

  Returns:
    {module: {name: array}} with the same dtypes.

  Raises:
    ValueError: if the name is unknown or the state dict does not fit. The
      message has the first keys that differ.

  Example:
    >>> timm_params = weights.from_timm('test_nfnet', tensors)
  """
  arrays = {key: np.asarray(value) for key, value in state_dict.items()}
  actual = {key: array.shape for key, array in arrays.items()}
  num_classes = math.prod(actual.get('head.fc.weight', (0,))[:1])
  zeros = _to_state_dict(_zeros(name, num_classes))
  expected = {key: array.shape for key, array in zeros.items()}
  if found := matching.differences(actual, expected):
    raise ValueError(f"This is not the state dict of timm's {name}: {found}.")
  return guess_tree(arrays)


def to_timm(name: str, params: hk.Params) -> dict[str, np.ndarray]:
  """Convert parameters to a state dict of timm.

  Args:
    name: timm's name of the network, see `from_timm`.
    params: {module: {name: array}}, with any number of classes or none.

  Returns:
    {key: NumPy array} with the same dtypes.

  Raises:
    ValueError: if the name is unknown or the parameters do not fit. The message
      has the first names that differ.

  Example:
    >>> tensors = weights.to_timm('test_nfnet', timm_params)
  """
  params = jax.tree.map(np.asarray, {k: dict(v) for k, v in params.items()})
  expected = _zeros(name, module_names.num_classes(params))
  if found := matching.differences(
    *map(matching.flat_shapes, (params, expected))
  ):
    raise ValueError(f"These are not the parameters of timm's {name}: {found}.")
  state_dict = _to_state_dict(params)
  return {key: np.array(v, order='C') for key, v in state_dict.items()}


def guess_tree(state_dict: Mapping[str, Any]) -> hk.MutableParams:
  """Convert a state dict of any normalizer-free network of timm.

  Args:
    state_dict: {key: array}.

  Returns:
    {module: {name: array}} with the same dtypes.

  Raises:
    ValueError: if a key or a shape is unknown.
  """
  arrays = {key: np.asarray(value) for key, value in state_dict.items()}
  blocks = [m for m in map(_TIMM_BLOCK.match, arrays) if m]
  blocks = sorted({(int(m[1]), int(m[2])) for m in blocks})
  skipinit = any(key.endswith('.skipinit_gain') for key in arrays)
  params, strange = {}, {}
  for key, value in arrays.items():
    module, _, name = key.rpartition('.')
    path = ['NFNet' if skipinit else 'NormFreeNet']
    if match := _TIMM_BLOCK.fullmatch(module):
      number = blocks.index((int(match[1]), int(match[2])))
      path.append(f'nf_block_{number}' if number else 'nf_block')
      module = match[3]
    if name != 'skipinit_gain':
      path.append(_MODULES.get(module))
    leaf = None if None in path else _leaf(path[-1], name, value)
    if leaf is None:
      strange[key] = value.shape
    else:
      leaves = params.setdefault('/~/'.join(path), {})
      leaves[leaf[0]] = np.array(leaf[1], order='C')
  if strange or not blocks:
    strange = strange or {key: array.shape for key, array in arrays.items()}
    raise ValueError(
      "This is no state dict of a normalizer-free network of timm's. It holds "
      f'{matching.some(strange)}.'
    )
  return params


def _leaf(
  module: str, name: str, value: np.ndarray
) -> tuple[str, np.ndarray] | None:
  """Convert name and value of a parameter of timm; None if unknown."""
  is_linear = module.endswith(('linear', 'linear_1'))
  match name, value.shape:
    case 'weight', (_, _, 1, 1) if 'squeeze_excite' in module:
      return 'w', value[:, :, 0, 0].T
    case 'weight', (_, _) if module == 'linear':
      return 'w', value.T
    case 'weight', (_, _, _) if module == 'eca/~/conv':
      return 'w', value.transpose(2, 1, 0)
    case 'weight', (_, _, _, _) if not is_linear and module != 'eca/~/conv':
      return 'w', value.transpose(2, 3, 1, 0)
    case 'gain', (_, 1, 1, 1):
      return 'gain', value.reshape(-1)
    case 'bias', (_,):
      return 'b' if is_linear else 'bias', value
    case 'skipinit_gain', ():
      return 'skip_gain', value
  return None


def _to_state_dict(params: hk.Params) -> dict[str, np.ndarray]:
  """Return {timm's key: view of a parameter}."""
  blocks, first = {}, {}
  for number, stage in module_names.stages(params).items():
    start = first.setdefault(stage, number)
    blocks[number] = f'stages.{stage - 1}.{number - start}'

  state_dict = {}
  for module, leaves in params.items():
    path, part = [], module.partition('/~/')[2]
    number = module_names.block(module)
    if number is not None:
      path, part = [blocks[number]], part.partition('/~/')[2]
    if part:
      path.append(_TIMM_MODULES[part])
    for name, value in leaves.items():
      if name == 'w':
        value = np.moveaxis(value, (-1, -2), (0, 1))
      if name == 'gain' or (name == 'w' and 'squeeze_excite' in module):
        value = value.reshape(*value.shape, *(4 - value.ndim) * [1])
      name = _TIMM_NAMES.get(name, name)
      state_dict['.'.join([*path, name])] = value
  return state_dict


def _zeros(name: str, num_classes: int) -> hk.MutableParams:
  """Return zero parameters of a timm network that need no memory.

  Raises:
    ValueError: if the name is unknown.
  """
  plain = name.removeprefix('timm/').partition('.')[0]
  if plain not in NETWORKS:
    raise ValueError(
      f"{name!r} is no normalizer-free network of timm's that is known here; "
      f'there are {", ".join(NETWORKS)}.'
    )
  return jax.tree.map(
    lambda x: np.broadcast_to(x.dtype.type(), x.shape),
    matching.named_shapes(NETWORKS[plain], num_classes)[0],
  )
