"""JAX as a runtime."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Runner:
  """Runs a model by its own functions; see the package."""

  runtime = 'jax'
  precision = 'float32'

  def __init__(self, opened: Callable[[], tuple[Any, Any, Any]]):
    """Prepares to run.

    Args:
      opened: returns the model, its parameters and its state.
    """
    self._opened = opened

  @functools.cached_property
  def _weights(self) -> tuple[Any, Any]:
    _, params, state = self._opened()
    return jax.tree.map(jnp.asarray, (params, state))

  def run(self, output: str, images: np.ndarray) -> Any:
    """Returns logits, pooled features or maps for images [B, H, W, 3]."""
    model, _, _ = self._opened()
    params, state = self._weights
    function = {
      'logits': model.logits,
      'pool': model.embed,
      'features': model.features,
    }[output]
    return jax.device_get(function(params, images, state))
