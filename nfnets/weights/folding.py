"""Standardizing the kernels once, for inference."""

from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, zoo
from nfnets.weights import matching


def fold_weights(
  params: hk.Params, model: zoo.Model | None = None
) -> dict[str, dict[str, Any]]:
  """Standardizes the kernels of a network, so that inference need not.

  The standardized kernel of NF-ResNets (arXiv 2101.08692), equation 2, does not
  depend on the input.

  Args:
    params: parameters {module: {name: array}}.
    model: whose parameters they are; the model that they fit if None.

  Returns:
    Parameters for the same `model.logits`, `features` and `embed`, in which
    each WSConv2D has its standardized kernel, `base.FOLDED`, in place of `w`
    and `gain`. Other modules keep what they have; networks without WSConv2D,
    and folded weights, are returned as they are.

  Raises:
    ValueError: if no model is given and the parameters fit none.
  """
  if model is None:
    match = matching.identify(params)
    model = zoo.create_model(match.name, match.num_classes)
  folded = {module: dict(leaves) for module, leaves in params.items()}
  for module, kernel in _standardized_kernels(params, model).items():
    del folded[module]['w'], folded[module]['gain']
    folded[module][base.FOLDED] = kernel
  return folded


def freeze(
  model: zoo.Model,
  params: hk.Params,
  state: hk.State | None = None,
  output: str = 'logits',
) -> Callable[[jax.Array], Any]:
  """Makes a function of images alone, which runs as fast as this model can.

  Its weights are folded and become constants of the compiled program, so that
  the compiler lays out the kernels beforehand. That takes twice the memory of
  the weights, and they must be smaller than 2 GB.

  Args:
    model: the model.
    params: its parameters, folded or not.
    state: the state that belongs to them, for networks with BatchNorm.
    output: 'logits', 'pool' or 'features'.

  Returns:
    A jitted function of normalized images [B, H, W, 3] to that output.

  Raises:
    ValueError: if the model has no such output.
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


def _standardized_kernels(
  params: Mapping[str, Mapping[str, Any]], model: zoo.Model
) -> dict[str, jax.Array]:
  """Returns the kernel that each WSConv2D of the network computes."""
  if not any('gain' in leaves for leaves in params.values()):
    return {}
  kernels = {}

  def record(next_method, args, kwargs, context):
    out = next_method(*args, **kwargs)
    if context.method_name == 'standardize_weight' and isinstance(
      context.module, base.WSConv2D
    ):
      kernels[context.module.module_name] = out
    return out

  @jax.jit
  def standardize(params):
    with hk.intercept_methods(record):
      model.apply(params, {}, None, jnp.zeros((1, 32, 32, 3)), False)
    # The rest of the network is dropped as unused.
    return dict(kernels)

  return standardize(params)
