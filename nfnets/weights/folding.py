"""Standardizes kernels once, for inference."""

from collections.abc import Callable
from concurrent import futures
import math
import os
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets import base, conv, zoo
from nfnets.weights import matching


def fold_weights(
  params: hk.Params, model: zoo.Model | None = None
) -> dict[str, dict[str, Any]]:
  """Standardize the kernels of a network before inference.

  The standardized kernel (NF-ResNets, arXiv 2101.08692, equation 2) does not
  depend on the input.

  Args:
    params: parameters {module: {name: array}}.
    model: the model of the parameters. None: the model that they fit.

  Returns:
    Parameters for the same `model.logits`, `features` and `embed`. Each
    WSConv2D has a standardized kernel, `base.FOLDED`, instead of `w` and
    `gain`. Other modules, and folded weights, do not change.

  Raises:
    ValueError: if no model is given and the parameters fit no model.

  Example:
    >>> folded = weights.fold_weights(params, model)
  """
  if model is None:
    match = matching.identify(params)
    model = zoo.create_model(match.name, match.num_classes)
  folded = {module: dict(leaves) for module, leaves in params.items()}
  gains = [leaves['gain'] for leaves in params.values() if 'gain' in leaves]
  if not gains:
    return folded
  # Pad all scales to one size, because compiling each size would take most of
  # the time.
  widest = max(map(len, gains))

  def fold(module: base.WSConv2D, eps: float) -> None:
    leaves = folded[module.module_name]
    weight, gain = (np.asarray(leaves.pop(key)) for key in ('w', 'gain'))
    fan_in = math.prod(weight.shape[:-1])
    centred = weight - weight.mean((0, 1, 2))
    var = np.einsum('hwio,hwio->o', centred, centred) / fan_in
    more = (0, widest - len(gain))
    scale = module._scale(
      np.pad(var, more)[None, None, None], np.pad(gain, more), fan_in, eps
    )
    centred *= np.asarray(scale)[..., : len(gain)]
    leaves[base.FOLDED] = centred

  def record(next_method, args, kwargs, context):
    if context.method_name == 'standardize_weight':
      layers.append(pool.submit(fold, context.module, args[1]))
    return next_method(*args, **kwargs)

  def forward(params):
    images = jnp.zeros((1, 32, 32, 3), jnp.float32)
    return model.apply(params, {}, None, images, False)

  # Standardize kernels while tracing continues.
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    layers: list[futures.Future] = []
    with hk.intercept_methods(record), conv.lowering('plain'):
      jax.eval_shape(forward, params)
  for layer in layers:
    layer.result()
  return folded


def freeze(
  model: zoo.Model,
  params: hk.Params,
  state: hk.State | None = None,
  output: str = 'logits',
) -> Callable[[jax.Array], Any]:
  """Compile a function of images with the folded weights as constants.

  This is the fastest form of inference in JAX: the compiler optimizes the
  layout of the kernels. It needs twice the memory of the weights, which must be
  smaller than 2 GB.

  Args:
    model: the model.
    params: its parameters, folded or not.
    state: the state of the weights, for networks with BatchNorm.
    output: 'logits', 'pool' or 'features'.

  Returns:
    A jitted function from normalized images [B, H, W, 3] to the output.

  Raises:
    ValueError: if the model has no such output.

  Example:
    >>> network = weights.freeze(model, params, state)
    >>> network(images).shape
    (2, 10)
  """
  outputs = ['logits'] * bool(model.num_classes) + ['pool', 'features']
  if output not in outputs:
    raise ValueError(
      f'{model.name} has no output {output!r}; it has {", ".join(outputs)}.'
    )
  params = fold_weights(params, model)

  @jax.jit
  def forward(images):
    return model.apply(params, state or {}, None, images, False)[0][output]

  return forward
