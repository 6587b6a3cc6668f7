"""Which model a tree of weights belongs to, and where it differs from one."""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import haiku as hk
import numpy as np

from nfnets import base, zoo
from nfnets.weights import shapes

Names = dict[str, tuple[int | None, ...]]

# A number of classes that no other size is equal to.
_CLASSES = 7919


class Match(NamedTuple):
  """The model that weights fit."""

  name: str  # As in `nfnets.list_models()`.
  num_classes: int  # 0 without a last layer.
  folded: bool  # Whether the kernels are standardized already.


def identify(params: hk.Params) -> Match:
  """Finds the model whose parameters these are.

  Args:
    params: {module: {name: array}}; folded weights and those without a last
      layer are known, too.

  Returns:
    The model's name, its number of classes and whether the weights are folded.
    Where two models have the same parameters, the first of
    `nfnets.list_models()`.

  Raises:
    ValueError: if they are no model's; the message names the closest one and
      how they differ.
  """
  actual, folded = _shapes(params)
  closest, most_common = None, 0
  for name in _candidates(params):
    expected = _expected(name)
    num_classes = _num_classes(actual, expected)
    wanted = _with_classes(expected, num_classes)
    if actual == wanted:
      return Match(name, num_classes, folded)
    num_common = len(actual.items() & wanted.items())
    if num_common > most_common:
      closest, most_common = (name, wanted), num_common
  if closest is None:
    raise ValueError(
      f'These weights are of no model here. They hold {shapes.some(actual)}.'
    )
  name, wanted = closest
  raise ValueError(
    f'These weights are of no model here. {name} is closest: '
    f'{shapes.describe(actual, wanted)}.'
  )


def check_fits(
  params: hk.Params, model: zoo.Model, state: hk.State | None = None
) -> None:
  """Raises ValueError where weights are not those of a model.

  Args:
    params: {module: {name: array}}, folded or not.
    model: the model.
    state: the state that goes with the parameters, if there is any.

  Raises:
    ValueError: the message names the model that the weights do fit or, where
      they fit none, the first names that are missing, unexpected, or of
      another shape.
  """
  actual, _ = _shapes(params)
  expected_params, expected_state = shapes.of_model(model)
  wanted, _ = _shapes(expected_params)
  if actual != wanted:
    try:
      match = identify(params)
      what = _describe(match.name, match.num_classes)
    except ValueError:
      what = ''
    expected = _describe(model.name, model.num_classes)
    if what and what != expected:
      raise ValueError(f'These weights are of {what}, not of {expected}.')
    raise ValueError(
      f'These weights do not fit {expected} as it is configured: '
      f'{shapes.describe(actual, wanted)}.'
    )
  actual, _ = _shapes(state or {})
  wanted, _ = _shapes(expected_state)
  if actual != wanted:
    if not actual:
      raise ValueError(
        f'These are parameters of {model.name} alone; its moving averages '
        'belong to them and are missing.'
      )
    raise ValueError(
      f'The moving averages do not fit {model.name}: '
      f'{shapes.describe(actual, wanted)}.'
    )


def num_classes(params: hk.Params, name: str) -> int:
  """Returns how many classes the weights of a model are for.

  Args:
    params: {module: {name: array}}.
    name: the model that they are meant to be of.

  Returns:
    The size of the last layer; 0 if there is none.

  Raises:
    ValueError: if there is no model of that name.
  """
  # By its name, because tracing the network to find it takes a second.
  head = params.get(f'{zoo.get_entry(name).module.__name__}/~/linear', {})
  sizes = [np.shape(leaf)[-1] for leaf in head.values() if np.ndim(leaf)]
  return sizes[0] if sizes else 0


def last_layer(model: zoo.Model, params: hk.Params) -> tuple[set[str], int]:
  """Finds the last layer, which may be of any size in the weights.

  Args:
    model: the model, with any number of classes.
    params: the weights.

  Returns:
    The modules of the last layer, and for how many classes it is in the
    weights: 0 if they have none. If the weights are another model's, it is the
    model's own number.
  """
  body = _modules(zoo.with_num_classes(model, 0))
  head = _modules(zoo.with_num_classes(model, 1)) - body
  if params.keys() == body:
    return head, 0
  if params.keys() - head != body:
    return head, model.num_classes
  sizes = {
    np.shape(leaf)[-1]
    for module in head & params.keys()
    for leaf in params[module].values()
    if np.ndim(leaf)
  }
  return head, sizes.pop() if len(sizes) == 1 else model.num_classes


def _modules(model: zoo.Model) -> set[str]:
  return set(shapes.of_model(model)[0])


def _describe(name: str, num_classes: int) -> str:
  if num_classes:
    return f'{name} with {num_classes} classes'
  return f'{name} without a last layer'


def _candidates(params: hk.Params) -> list[str]:
  """Returns the models of the same class with about as many blocks."""
  paths = [module.split('/') for module in params]
  tops = {path[0] for path in paths}
  num_blocks = len({p[2] for p in paths if len(p) > 2 and 'block' in p[2]})
  distances = {}
  for name in zoo.list_models():
    entry = zoo.get_entry(name)
    if tops == {entry.module.__name__}:
      row = entry.module.variant_dict[entry.kwargs['variant']]
      distances[name] = abs(num_blocks - sum(row['depth']))
  nearest = min(distances.values(), default=0)
  return [name for name in distances if distances[name] == nearest]


@functools.cache
def _expected(name: str) -> Names:
  """Returns the shapes of a model; None is the number of classes."""
  params, _ = shapes.of_model(zoo.create_model(name, _CLASSES))
  return {
    key: tuple(None if n == _CLASSES else n for n in shape)
    for key, shape in _shapes(params)[0].items()
  }


def _num_classes(actual: Names, expected: Names) -> int:
  """Returns the classes of the last layer; 0 where there is none."""
  for key, shape in expected.items():
    if None in shape and actual.get(key):
      return actual[key][-1]
  return 0


def _with_classes(expected: Names, num_classes: int) -> Names:
  return {
    key: tuple(num_classes if n is None else n for n in shape)
    for key, shape in expected.items()
    if num_classes or None not in shape
  }


def _shapes(tree: Mapping[str, Mapping[str, Any]]) -> tuple[Names, bool]:
  """Returns {'module/name': shape}, unfolded, and whether it was folded."""
  found, folded = {}, False
  for module, leaves in tree.items():
    for name, leaf in leaves.items():
      shape = tuple(np.shape(leaf))
      if name == base.FOLDED:
        folded = True
        found[f'{module}/w'] = shape
        found[f'{module}/gain'] = shape[-1:]
      else:
        found[f'{module}/{name}'] = shape
  return found, folded
