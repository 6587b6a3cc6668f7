"""Normalizer-free networks in JAX and Haiku."""

from typing import TYPE_CHECKING

from nfnets import lazy

if TYPE_CHECKING:
  from nfnets.weights.opening import load
  from nfnets.zoo import Model, create_model, list_models

__all__ = ['Model', 'create_model', 'list_models', 'load']

__getattr__, __dir__ = lazy.attributes(
  __name__,
  {
    'Model': 'nfnets.zoo',
    'create_model': 'nfnets.zoo',
    'list_models': 'nfnets.zoo',
    'load': 'nfnets.weights.opening',
  },
)
