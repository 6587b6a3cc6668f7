"""Which model a tree of weights belongs to, and where it differs from one."""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np

from nfnets import base, initialization, module_names, zoo

Shapes = Mapping[str, tuple[int, ...]]

_NUM_SHOWN = 3


class Match(NamedTuple):
  """The model that weights fit.

  Example:
    >>> weights.identify(params)
    Match(name='nfnet_digits', num_classes=10, folded=False)
  """

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

  Example:
    >>> weights.identify(params).name
    'nfnet_digits'
  """
  actual, num_classes = flat_shapes(params), module_names.num_classes(params)
  reason, most_common = f'They hold {some(actual)}', 0
  for name in _candidates(params):
    expected = flat_shapes(named_shapes(name, num_classes)[0])
    if actual == expected:
      folded = any(base.FOLDED in leaves for leaves in params.values())
      return Match(name, num_classes, folded)
    num_common = len(actual.items() & expected.items())
    if num_common > most_common:
      most_common = num_common
      reason = f'{name} is closest: {differences(actual, expected)}'
  raise ValueError(f'These weights are of no model here. {reason}.')


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

  Example:
    >>> weights.check_fits(params, model)
  """
  expected, expected_state = map(flat_shapes, model_shapes(model))
  if difference := differences(flat_shapes(params), expected):
    named = _describe(model.name, model.num_classes)
    try:
      found = _describe(*identify(params)[:2])
    except ValueError:
      found = named
    if found != named:
      raise ValueError(f'These weights are of {found}, not of {named}.')
    raise ValueError(
      f'These weights do not fit {named} as it is configured: {difference}.'
    )
  if difference := differences(flat_shapes(state or {}), expected_state):
    raise ValueError(
      f'The moving averages do not fit {model.name}: {difference}.'
    )


def last_layer(model: zoo.Model, params: hk.Params) -> tuple[set[str], int]:
  """Finds the last layer, which may be of any size in the weights.

  Args:
    model: the model, with any number of classes.
    params: the weights.

  Returns:
    The modules of the last layer, and for how many classes it is in the
    weights: 0 if they have none. If the weights are another model's, it is the
    model's own number.

  Example:
    >>> weights.last_layer(model, params)
    ({'NFNet/~/linear'}, 10)
  """
  wanted = model_shapes(model)[0]
  body = {name for name in wanted if not module_names.is_last_layer(name)}
  head = {module_names.last_layer(wanted)}
  if params.keys() - head != body:
    return head, model.num_classes
  return head, module_names.num_classes(params)


def model_shapes(model: zoo.Model) -> tuple[hk.MutableParams, hk.MutableState]:
  """Returns a model's parameters and state as shapes and dtypes."""
  if model.overrides:
    return _trace(model)
  # A copy, because what is cached must stay as it is.
  return jax.tree.map(lambda x: x, named_shapes(model.name, model.num_classes))


@functools.cache
def named_shapes(
  name: str, num_classes: int
) -> tuple[hk.MutableParams, hk.MutableState]:
  """Returns `model_shapes` of a name; a large network takes half a second."""
  return _trace(zoo.create_model(name, num_classes))


def _trace(model: zoo.Model) -> tuple[hk.MutableParams, hk.MutableState]:
  specs, state = initialization.trace(model.transformed)
  params = {
    module: {
      name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
      for name, spec in leaves.items()
    }
    for module, leaves in specs.items()
  }
  return params, state


def flat_shapes(tree: Mapping[str, Mapping[str, Any]]) -> Shapes:
  """Returns {'module/name': shape}, those of folded kernels unfolded."""
  found = {}
  for module, leaves in tree.items():
    for name, leaf in leaves.items():
      shape = tuple(np.shape(leaf))
      if name == base.FOLDED:
        found |= {f'{module}/w': shape, f'{module}/gain': shape[-1:]}
      else:
        found[f'{module}/{name}'] = shape
  return found


def differences(actual: Shapes, expected: Shapes) -> str:
  """Names the first weights that are missing, unexpected or mis-shaped.

  Args:
    actual: {name: shape} of the weights.
    expected: {name: shape} of the network, in its order.

  Returns:
    A part of a sentence; empty if there is no difference.
  """
  missing = {k: v for k, v in expected.items() if k not in actual}
  unexpected = {k: v for k, v in actual.items() if k not in expected}
  changed = {
    k: f'{list(actual[k])} instead of {list(v)}'
    for k, v in expected.items()
    if actual.get(k, v) != v
  }
  parts = {
    'missing': missing,
    'unexpected': unexpected,
    'of another shape': changed,
  }
  return '; '.join(f'{what}: {some(x)}' for what, x in parts.items() if x)


def some(shapes: Mapping[str, Any]) -> str:
  """Returns the first names with their shapes, and how many more there are."""
  first = [
    f'{name} {list(shape) if isinstance(shape, tuple) else shape}'
    for name, shape in [*shapes.items()][:_NUM_SHOWN]
  ]
  more = len(shapes) - _NUM_SHOWN
  return ', '.join(first or ['nothing']) + f' and {more} more' * (more > 0)


def _describe(name: str, num_classes: int) -> str:
  if num_classes:
    return f'{name} with {num_classes} classes'
  return f'{name} without a last layer'


def _candidates(params: hk.Params) -> list[str]:
  """Returns the models of the same class with about as many blocks."""
  tops = {module.partition('/')[0] for module in params}
  num_blocks = len({*map(module_names.block, params)} - {None})
  distances = {}
  for name in zoo.list_models():
    entry = zoo.get_entry(name)
    if tops == {entry.module.__name__}:
      row = entry.module.variant_dict[entry.kwargs['variant']]
      distances[name] = abs(num_blocks - sum(row['depth']))
  nearest = min(distances.values(), default=0)
  return [name for name in distances if distances[name] == nearest]
