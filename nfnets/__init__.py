"""Normalizer-free networks in JAX and Haiku."""

from nfnets.weights import load
from nfnets.zoo import Model, create_model, list_models

__all__ = ['Model', 'create_model', 'list_models', 'load']
