"""What timm's networks compute, for the tests and the comparison with timm.

golden/golden_timm.npz is written by benchmarks/compare_timm.py; the other
golden_timm_*.npz hold the same of one network each, in full.
"""

import contextlib
import functools
import json
import lzma
import math
from typing import Any

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import reference_params

from nfnets import conv, zoo


@functools.cache
def golden() -> dict[str, Any]:
  """Returns what benchmarks/compare_timm.py has written.

  `shapes` and `settings` are {timm's name: {key: shape}} and {timm's name:
  numbers} of all its networks; the rest are arrays.
  """
  arrays = golden_lib.load('timm')
  for key in ('shapes', 'settings'):
    arrays[key] = json.loads(lzma.decompress(arrays[key].tobytes()))
  return arrays


def state_dict(name: str) -> dict[str, np.ndarray]:
  """Returns the reference weights of a network, by timm's name."""
  return reference_params.reference_state_dict(golden()['shapes'][name])


def outputs(
  model: zoo.Model, params: hk.Params, h: int, w: int
) -> dict[str, jax.Array]:
  """Returns the outputs for two images [h, w]."""

  def forward(params, images):
    return model.apply(params, {}, None, images, is_training=False)[0]

  images = reference_params.reference_images(2, h, w)
  with conv.lowering('plain'):  # Compiles sooner.
    return jax.jit(forward, compiler_options=golden_lib.QUICK)(params, images)


def kernels_as_in_timm() -> contextlib.AbstractContextManager[None]:
  """Has the published networks standardize their kernels as timm's copies do.

  timm's `dm_nfnet_*` add 1e-5 to the variance of a kernel where the published
  networks keep its product with the fan-in from falling below 1e-4. That moves
  the logits of F0, with these weights, by 1.8 %, and the two forms of GELU by
  0.02 %; all the rest is the same.
  """

  def standardize(next_method, args, kwargs, context):
    if context.method_name != 'standardize_weight':
      return next_method(*args, **kwargs)
    (weight, *_) = args
    gain = hk.get_parameter('gain', weight.shape[-1:])
    mean, var = weight.mean((0, 1, 2)), weight.var((0, 1, 2))
    fan_in = math.prod(weight.shape[:-1])
    return (weight - mean) / jnp.sqrt((var + 1e-5) * fan_in) * gain

  return hk.intercept_methods(standardize)
