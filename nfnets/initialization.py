"""Initializes all parameters of a network with few random draws.

Compiling the random bits of hundreds of kernels would take most of the time
before the first step. So this traces the network for its initializers, draws
each kind of distribution once, and scales the parts.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets import conv

_DRAWS = {
  'normal': jax.random.normal,
  'truncated_normal': functools.partial(
    jax.random.truncated_normal, lower=-2.0, upper=2.0
  ),
  'uniform': functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0),
}
# The standard deviation of N(0, 1) truncated at -2 and 2.
_TRUNCATED_STDDEV = 0.87962566103423978


class Spec(NamedTuple):
  """Shape, dtype and initializer of a parameter."""

  shape: tuple[int, ...]
  dtype: Any
  init: hk.initializers.Initializer


def trace(
  transformed: hk.TransformedWithState,
) -> tuple[dict[str, dict[str, Spec]], hk.MutableState]:
  """Return the specs of a network's parameters, and the shapes of its state."""
  specs: dict[str, dict[str, Spec]] = {}

  def record(next_creator, shape, dtype, init, context):
    module, _, name = context.full_name.rpartition('/')
    specs.setdefault(module, {})[name] = Spec(tuple(shape), dtype, init)
    return jnp.zeros(shape, dtype)

  state = jax.eval_shape(_initial_state(transformed, record))
  return specs, state


def initialize(
  transformed: hk.TransformedWithState, rng: jax.Array
) -> tuple[hk.MutableParams, hk.MutableState]:
  """Return new parameters and state, deterministic in the key."""
  specs, state = trace(transformed)
  if state:
    # BatchNorm's initial averages do not depend on images.
    state = jax.jit(
      _initial_state(
        transformed, lambda _, shape, dtype, *__: jnp.zeros(shape, dtype)
      )
    )()
  return draw(specs, rng), state


def draw(
  specs: Mapping[str, Mapping[str, Spec]], rng: jax.Array
) -> hk.MutableParams:
  """Return new parameters.

  Args:
    specs: {module: {name: Spec}}.
    rng: a key of `jax.random`.
  """
  values, rest, kinds = {}, {}, {kind: {} for kind in _DRAWS}
  for key in ((m, k) for m in sorted(specs) for k in sorted(specs[m])):
    spec = specs[key[0]][key[1]]
    if spec.init in (jnp.zeros, jnp.ones):
      values[key] = np.full(spec.shape, spec.init is jnp.ones, spec.dtype)
    elif found := _distribution(spec):
      kinds[found[0]][key] = spec, *found[1:]
    else:
      rest[key] = spec
  for number, (kind, parts) in enumerate(kinds.items()):
    total = sum(math.prod(spec.shape) for spec, _, _ in parts.values())
    drawn = _draw(kind, total, jax.random.fold_in(rng, number)) if parts else ()
    if not isinstance(drawn, jax.core.Tracer):
      drawn = np.asarray(drawn)  # Slicing NumPy arrays compiles nothing.
    start = 0
    for key, (spec, scale, mean) in parts.items():
      part = drawn[start : start + math.prod(spec.shape)].reshape(spec.shape)
      values[key] = (part * scale + mean).astype(spec.dtype)
      start += part.size
  if rest:
    init = hk.transform(
      lambda: {key: x.init(x.shape, x.dtype) for key, x in rest.items()}
    )
    values |= jax.jit(init.apply)({}, jax.random.fold_in(rng, len(_DRAWS)))
  return {
    module: {name: jnp.asarray(values[module, name]) for name in leaves}
    for module, leaves in specs.items()
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(kind: str, size: int, rng: jax.Array) -> jax.Array:
  return _DRAWS[kind](rng, shape=(size,), dtype=jnp.float32)


def _distribution(spec: Spec) -> tuple[str, float, float] | None:
  """Return (kind, scale, mean) of a random initializer of Haiku, else None."""
  init, shape = spec.init, spec.shape
  if isinstance(init, hk.initializers.RandomNormal):
    return 'normal', init.stddev, init.mean
  if isinstance(init, hk.initializers.TruncatedNormal) and (
    (init.lower, init.upper) == (-2, 2)
  ):
    return 'truncated_normal', init.stddev, init.mean
  if not isinstance(init, hk.initializers.VarianceScaling) or init.fan_in_axes:
    return None
  fans = {'fan_in': math.prod(shape[:-1])}
  fans['fan_out'] = shape[-1] * math.prod(shape[:-2])
  fans['fan_avg'] = sum(fans.values()) / 2
  stddev = math.sqrt(init.scale / max(1.0, fans[init.mode]))
  scale = {'truncated_normal': 1 / _TRUNCATED_STDDEV, 'uniform': math.sqrt(3)}
  return init.distribution, stddev * scale.get(init.distribution, 1.0), 0.0


def _initial_state(transformed: hk.TransformedWithState, creator: Any) -> Any:
  """Return a function that returns the initial state of a network."""
  images = np.zeros((1, 32, 32, 3), np.float32)  # Any size works.

  def init():
    # The plain form has the same shapes and is the fastest to trace.
    with conv.lowering('plain'), hk.custom_creator(creator):
      return transformed.init(jax.random.key(0), images, is_training=True)[1]

  return lambda: hk.transform(init).apply({}, None)
