"""Select layers by name, and train, freeze or scale them."""

from collections.abc import Callable
import fnmatch
from typing import Any

import jax
import optax

from nfnets import module_names

Mask = Callable[[optax.Params], Any]


def path(keys) -> tuple[str, str]:
  """Return (module, name) of a parameter in a tree of any depth."""
  names = [str(getattr(k, 'key', getattr(k, 'name', k))) for k in keys]
  return '/'.join(names[:-1]), names[-1]


def choose(names: str) -> Mask:
  """Return a function from parameters to a tree of bools: the chosen ones.

  Args:
    names: patterns, separated by commas. A pattern is a part of a parameter's
      path, such as 'nf_block_3', 'conv1' or 'gain', with `*` and `?` as in file
      names; 'last' for the last linear layer; 'stem' for the layers before the
      first block; or 'stage1' to 'stage4' for the blocks of a stage. A
      parameter is chosen if a pattern matches it and no pattern with `!` in
      front does. If all patterns have `!`, all other parameters are chosen.

  Returns:
    The function. It raises ValueError if a pattern matches no parameter.

  Example:
    >>> mask = optim.choose('last,gain')(params)
  """
  patterns = [name.strip() for name in names.split(',')]

  def mask(params):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [path(keys) for keys, _ in leaves]
    stages = module_names.stages(module for module, _ in paths)
    chosen = [all(pattern.startswith('!') for pattern in patterns)] * len(paths)
    # Exclusions apply last, wherever they stand.
    for pattern in sorted(patterns, key=lambda p: p.startswith('!')):
      name = pattern.removeprefix('!')
      found = [_fits(name, *p, stages) for p in paths]
      if not any(found):
        layers = dict.fromkeys(
          module_names.layer(module) for module, _ in paths
        )
        raise ValueError(
          f'{name!r} matches no parameter. The layers are last, '
          f'{", ".join(layers)}, stem, '
          f'{", ".join(f"stage{n}" for n in sorted(set(stages.values())))}, '
          'and parts of these.'
        )
      taken = name == pattern
      chosen = [
        taken if fits else before
        for fits, before in zip(found, chosen, strict=True)
      ]
    return jax.tree.unflatten(treedef, chosen)

  return mask


def _fits(pattern: str, module: str, name: str, stages: dict[int, int]) -> bool:
  """Return whether a pattern of `choose` matches a parameter."""
  if pattern == 'last':
    return module_names.is_last_layer(module)
  if pattern == 'stem':
    return module_names.is_stem(module)
  if pattern == f'stage{stages.get(module_names.block(module))}':
    return True
  parts = [*module_names.parts(module), name]
  return any(fnmatch.fnmatchcase(part, pattern) for part in parts)


def train_only(
  optimizer: optax.GradientTransformation, mask: Mask
) -> optax.GradientTransformation:
  """Update the chosen parameters only.

  Args:
    optimizer: updates the chosen parameters, and keeps state for them only.
    mask: a function from parameters to a tree of bools, such as `choose`
      returns.

  Returns:
    An optax transformation. Its updates of the other parameters are zero.

  Example:
    >>> tx = optim.train_only(optax.sgd(0.1), optim.choose('last'))
  """
  return optax.partition(
    {True: optimizer, False: optax.set_to_zero()}, param_labels=mask
  )


def stop_gradients(params: optax.Params, mask: Mask) -> optax.Params:
  """Return the parameters with gradients stopped at all but the chosen ones.

  The gradient of the others is zero, and XLA does not compute it.

  Example:
    >>> frozen = optim.stop_gradients(params, optim.choose('last'))
  """
  return jax.tree.map(
    lambda x, chosen: x if chosen else jax.lax.stop_gradient(x),
    params,
    mask(params),
  )


def scale_layers(
  decay: float = 1.0, last: float = 1.0
) -> optax.GradientTransformation:
  """Scale the updates of each layer by its depth: layer-wise decay.

  Chain it after an optimizer, to give each layer its own learning rate (BEiT,
  arXiv 2106.08254, appendix).

  Args:
    decay: factor from each block to the block before it. The stem comes before
      the first block. Layers after the last block are scaled by 1.
    last: additional factor of the last linear layer.

  Returns:
    An optax transformation without state.

  Example:
    >>> tx = optax.chain(optax.adamw(1e-3), optim.scale_layers(decay=0.8))
  """

  def update_fn(updates, state, params=None):
    del params
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
    modules = [path(keys)[0] for keys, _ in leaves]
    blocks = [module_names.block(module) for module in modules]
    num_blocks = max((b for b in blocks if b is not None), default=-1) + 1
    scaled = []
    for module, block, (_, leaf) in zip(modules, blocks, leaves, strict=True):
      distance = 0 if block is None else num_blocks - block
      if block is None and module_names.is_stem(module):
        distance = num_blocks + 1
      factor = decay**distance * (
        last if module_names.is_last_layer(module) else 1
      )
      scaled.append(leaf * factor)
    return jax.tree.unflatten(treedef, scaled), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update_fn)
