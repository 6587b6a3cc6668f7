"""Parses names of Haiku modules. Does not import JAX."""

from collections.abc import Iterable, Mapping
import re
from typing import Any

import numpy as np

# The modules of a block contain its number, except for the first block.
_BLOCK = re.compile(r'\w*block(?:_v\d)?(?:_(\d+))?')


def parts(module: str) -> list[str]:
  """Split the name of a module into the names of its parents and its own."""
  return [name for name in module.split('/') if name != '~']


def layer(module: str) -> str:
  """Return the part of a name below the network's name."""
  return module.split('/~/')[1] if '/~/' in module else module


def block(module: str) -> int | None:
  """Return the block number of a module, from 0; None outside of blocks."""
  found = _BLOCK.fullmatch(layer(module))
  return found and int(found[1] or 0)


def stages(modules: Iterable[str]) -> dict[int, int]:
  """Return {block number: stage, from 1}.

  A stage begins with a block that has a shortcut convolution.
  """
  begins = {}
  for module in modules:
    number = block(module)
    if number is not None:
      is_shortcut = module.endswith('conv_shortcut')
      begins[number] = begins.get(number, False) or is_shortcut
  stage, found = 0, {}
  for number in sorted(begins):
    stage += begins[number] or not stage
    found[number] = stage
  return found


def is_stem(module: str) -> bool:
  """Return whether a module belongs to the stem."""
  return layer(module).startswith(('stem', 'initial_conv'))


def depth(module: str) -> tuple[int, int]:
  """Return a key that sorts modules from input to output."""
  number = block(module)
  if number is not None:
    return 1, number
  return (0 if is_stem(module) else 2), 0


def is_last_layer(module: str) -> bool:
  """Return whether a module is the last linear layer."""
  return module.split('/~/')[1:] == ['linear'] or module == 'linear'


def last_layer(modules: Iterable[str]) -> str:
  """Return the name of the last layer of the network with these modules."""
  network = next(iter(modules)).partition('/')[0]
  return f'{network}/~/linear'


def num_classes(params: Mapping[str, Mapping[str, Any]]) -> int:
  """Return the size of the last layer; 0 if there is none."""
  leaves = params.get(last_layer(params), {}) if params else {}
  sizes = [np.shape(leaf)[-1] for leaf in leaves.values() if np.ndim(leaf)]
  return sizes[0] if sizes else 0
