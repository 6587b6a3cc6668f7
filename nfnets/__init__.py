"""Normalizer-free networks in JAX and Haiku."""

from nfnets.zoo import create_model
from nfnets.zoo import list_models
from nfnets.zoo import Model

__all__ = ['Model', 'create_model', 'list_models']
