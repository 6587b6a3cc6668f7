"""The optimizers of the papers, built from optax's transformations."""

import inspect
from typing import Any

import jax
import optax

from nfnets import module_names
from nfnets.optim import agc, layers
from nfnets.optim.layers import Mask


def decay_mask(params: optax.Params) -> Any:
  """Return a tree of bools: the parameters with weight decay.

  These are all but gains, biases, scales and offsets, found by their names.

  Example:
    >>> decay = optax.add_decayed_weights(2e-5, optim.decay_mask)
  """

  def decays(keys, _):
    _, name = layers.path(keys)
    is_bias = 'gain' in name or 'bias' in name
    return not is_bias and name not in ('scale', 'offset', 'b')

  return jax.tree_util.tree_map_with_path(decays, params)


def clip_mask(params: optax.Params) -> Any:
  """Return a tree of bools: the parameters that AGC clips.

  These are all but the kernel of the last linear layer, `<network>/~/linear`
  (arXiv 2102.06171, section 4.1).

  Example:
    >>> clip = optax.masked(optim.adaptive_grad_clip(0.01), optim.clip_mask)
  """

  def clips(keys, _):
    module, name = layers.path(keys)
    return not (module_names.is_last_layer(module) and name == 'w')

  return jax.tree_util.tree_map_with_path(clips, params)


def clipped_layers(names: str | None, params: optax.Params) -> Mask:
  """Return a function from parameters to a tree of bools: those to clip.

  Args:
    names: patterns, as for `choose`. '' or None: the paper's, `clip_mask`.
    params: all parameters of the network, or their shapes. The function also
      accepts a part of them, as an optimizer of some layers sees it.

  Raises:
    ValueError: if a pattern matches no parameter.

  Example:
    >>> mask = optim.clipped_layers('final_conv', params)
  """
  if not names:
    return clip_mask
  chosen = jax.tree.leaves_with_path(layers.choose(names)(params))
  clipped = {layers.path(keys) for keys, clips in chosen if clips}
  return lambda tree: jax.tree.map_with_path(
    lambda keys, _: layers.path(keys) in clipped, tree
  )


def sgd_agc(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = True,
  weight_decay: float = 2e-5,
  clipping: float = 0.01,
  eps: float = 1e-3,
  mask: Mask = decay_mask,
  clipping_mask: Mask = clip_mask,
) -> optax.GradientTransformation:
  """Return SGD with adaptive gradient clipping, as the paper trains NFNets.

  It clips the gradient, adds weight_decay * parameter, applies momentum to the
  sum, and multiplies by minus the learning rate.

  Args:
    learning_rate: the rate, or a schedule.
    momentum: decay of the momentum trace.
    nesterov: whether to use Nesterov's momentum.
    weight_decay: coefficient of the (coupled) decay.
    clipping: see `adaptive_grad_clip`.
    eps: see `adaptive_grad_clip`.
    mask: a function from parameters to a tree of bools: those that decay.
    clipping_mask: the same, for the parameters to clip.

  Returns:
    An optax transformation whose `update` needs `params`.

  Example:
    >>> tx = optim.sgd_agc(0.1, clipping=0.04)
    >>> updates, tx_state = tx.update(grads, tx.init(layers), layers)
  """
  return optax.chain(
    optax.masked(agc.adaptive_grad_clip(clipping, eps), clipping_mask),
    optax.add_decayed_weights(weight_decay, mask),
    optax.trace(momentum, nesterov),
    optax.scale_by_learning_rate(learning_rate),
  )


def make_optimizer(
  name: str, learning_rate: optax.ScalarOrSchedule, **kwargs
) -> optax.GradientTransformation:
  """Build an optimizer by name, with the weight decay mask of the papers.

  Args:
    name: 'sgd_agc', or any optimizer of optax, such as 'sgd' or 'adamw'.
    learning_rate: the rate, or a schedule.
    **kwargs: other arguments of the optimizer. All accept `weight_decay`: if
      optax's optimizer has no such argument, it is added to the gradient
      before the optimizer, as for SGD in the papers.

  Returns:
    An optax transformation whose `update` needs `params`.

  Raises:
    ValueError: if there is no such optimizer, or it has no such argument.

  Example:
    >>> tx = optim.make_optimizer('adamw', 1e-3, weight_decay=0.05)
  """
  make = sgd_agc if name == 'sgd_agc' else getattr(optax, name, None)
  parameters = inspect.signature(make).parameters if callable(make) else {}
  if 'learning_rate' not in parameters:
    raise ValueError(
      f"There is no optimizer {name!r}: use 'sgd_agc' or one of optax's, such "
      "as 'sgd', 'adamw' or 'lamb'."
    )
  decay = None
  if 'weight_decay' not in parameters and 'weight_decay' in kwargs:
    decay = optax.add_decayed_weights(kwargs.pop('weight_decay'), decay_mask)
  for mask in ('mask', 'weight_decay_mask'):
    if mask in parameters:
      kwargs[mask] = decay_mask
  unknown = sorted(set(kwargs) - set(parameters))
  if unknown:
    raise ValueError(
      f'Optimizer {name!r} has no argument {", ".join(unknown)}; it accepts '
      f'{", ".join(parameters)}.'
    )
  optimizer = make(learning_rate, **kwargs)
  return optimizer if decay is None else optax.chain(decay, optimizer)
