"""JAX as a runtime."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.weights import folding


class Runner:
  """Runs a model by its own functions; see the package."""

  runtime = 'jax'

  def __init__(
    self, opened: Callable[[], tuple[Any, Any, Any]], precision: str
  ):
    """Prepares to run.

    Args:
      opened: returns the model, its parameters and its state.
      precision: 'float32'; or 'bfloat16', in which the kernels are, once they
        are standardized, and what is computed with them.
    """
    self._opened = opened
    self.precision = precision

  @functools.cached_property
  def _weights(self) -> tuple[Any, Any]:
    model, params, state = self._opened()
    if self.precision == 'float32':
      return jax.tree.map(jnp.asarray, (params, state))
    params = folding.fold_weights(params, model)
    return jax.tree.map(_as_bfloat16, (params, state))

  def run(self, output: str, images: np.ndarray) -> Any:
    """Returns logits, pooled features or maps for images [B, H, W, 3]."""
    model, _, _ = self._opened()
    params, state = self._weights
    function = {
      'logits': model.logits,
      'pool': model.embed,
      'features': model.features,
    }[output]
    if self.precision != 'float32':
      images = _as_bfloat16(images)
    result = function(params, images, state)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), result)


def _as_bfloat16(x: Any) -> jax.Array:
  x = jnp.asarray(x)
  is_float = jnp.issubdtype(x.dtype, jnp.floating)
  return x.astype(jnp.bfloat16) if is_float else x
