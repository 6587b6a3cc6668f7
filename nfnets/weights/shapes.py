"""The shapes of a network's weights, and how those of others differ."""

from collections.abc import Mapping

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import conv, zoo

Shapes = Mapping[str, tuple[int, ...]]

_NUM_SHOWN = 3


def of_model(model: zoo.Model) -> tuple[hk.MutableParams, hk.MutableState]:
  """Returns a model's parameters and state as shapes and dtypes."""

  def zeros(next_creator, shape, dtype, init, context):
    return jnp.zeros(shape, dtype)

  def make():
    # The same shapes, sooner: to trace the initializers takes half of the time.
    with conv.lowering('plain'), hk.custom_creator(zeros, state=True):
      return model.init(jax.random.key(0), 32)

  return jax.eval_shape(lambda: hk.transform(make).apply({}, None))


def describe(actual: Shapes, expected: Shapes) -> str:
  """Names the first weights that are missing, unexpected or mis-shaped.

  Args:
    actual: {name: shape} of the weights.
    expected: {name: shape} of the network, in its order.

  Returns:
    A part of a sentence; empty if there is no difference.
  """
  missing = {k: v for k, v in expected.items() if k not in actual}
  unexpected = {k: v for k, v in actual.items() if k not in expected}
  wrong = [
    f'{k} {list(actual[k])} instead of {list(v)}'
    for k, v in expected.items()
    if k in actual and actual[k] != v
  ]
  parts = {
    'missing': missing and some(missing),
    'unexpected': unexpected and some(unexpected),
    'of another shape': wrong and _first(wrong),
  }
  return '; '.join(f'{what}: {names}' for what, names in parts.items() if names)


def some(shapes: Shapes) -> str:
  """Returns the first names with their shapes, and how many more there are."""
  return _first([f'{name} {list(shape)}' for name, shape in shapes.items()])


def _first(names: list[str]) -> str:
  more = len(names) - _NUM_SHOWN
  shown = ', '.join(names[:_NUM_SHOWN]) or 'nothing'
  return shown + (f' and {more} more' if more > 0 else '')
