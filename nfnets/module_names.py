"""Names of Haiku modules: which layer of a network each one is.

Without JAX or optax, because inference and weights use it, too.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any

import numpy as np

# The modules of a block hold its number; that of the first is left out.
_BLOCK = re.compile(r'\w*block(?:_v\d)?(?:_(\d+))?')


def parts(module: str) -> list[str]:
  """Returns the names of a module and those it is in, the network's first."""
  return [name for name in module.split('/') if name != '~']


def layer(module: str) -> str:
  """Returns the first part of a name below the network's own."""
  return module.split('/~/')[1] if '/~/' in module else module


def block(module: str) -> int | None:
  """Returns the number of the block that a module is in, from 0."""
  found = _BLOCK.fullmatch(layer(module))
  return found and int(found[1] or 0)


def stages(modules: Iterable[str]) -> dict[int, int]:
  """Returns {number of a block: its stage, from 1}.

  A stage begins where the shortcut has a convolution.
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
  """Returns whether a module comes before the blocks."""
  return layer(module).startswith(('stem', 'initial_conv'))


def depth(module: str) -> tuple[int, int]:
  """Returns a key that sorts modules from the input to the output."""
  number = block(module)
  if number is not None:
    return 1, number
  return (0 if is_stem(module) else 2), 0


def is_last_layer(module: str) -> bool:
  """Returns whether this is the module of the last linear layer."""
  return module.split('/~/')[1:] == ['linear'] or module == 'linear'


def last_layer(modules: Iterable[str]) -> str:
  """Returns the last layer of the network of these modules, if it has one."""
  network = next(iter(modules)).partition('/')[0]
  return f'{network}/~/linear'


def num_classes(params: Mapping[str, Mapping[str, Any]]) -> int:
  """Returns the size of the last layer of a network; 0 if it has none."""
  leaves = params.get(last_layer(params), {}) if params else {}
  sizes = [np.shape(leaf)[-1] for leaf in leaves.values() if np.ndim(leaf)]
  return sizes[0] if sizes else 0
