"""Normalizer-free networks in JAX and Haiku."""

import glob
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from nfnets import lazy

if TYPE_CHECKING:
  from nfnets.inference.loading import load
  from nfnets.zoo import Model, create_model, list_models


def _skip_absent_tpu() -> None:
  """Prevent JAX from starting libtpu on a machine without a TPU.

  Planning needs libtpu. Starting it without a TPU prints six lines of warnings.
  """
  if (
    importlib.util.find_spec('libtpu') is None
    or importlib.util.find_spec('jax_plugins')  # Another accelerator.
    or any(map(glob.glob, ('/dev/accel*', '/dev/vfio/[0-9]*')))
  ):
    return
  if jax := sys.modules.get('jax'):
    if jax.config.jax_platforms is None:
      jax.config.update('jax_platforms', 'cpu')
  else:
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


_skip_absent_tpu()

__all__ = ['Model', 'create_model', 'list_models', 'load']

__getattr__, __dir__ = lazy.attributes(
  __name__,
  {
    'Model': 'nfnets.zoo',
    'create_model': 'nfnets.zoo',
    'list_models': 'nfnets.zoo',
    'load': 'nfnets.inference.loading',
  },
)
