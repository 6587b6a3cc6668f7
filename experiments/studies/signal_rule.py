"""The variances that the analysis of residual networks expects, by block.

It takes weights as independent, pixels as normally distributed and images as
endless (arXiv 2101.08692, sections 2 to 4).
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import haiku as hk
import jax.numpy as jnp

from experiments.studies import signal_networks
from nfnets import resnet, timm_nets, zoo


class Block(NamedTuple):
  """What a residual block is.

  Attributes:
    module: the name of its module.
    stage: counts from 1.
    last: the module of the last convolution of its branch.
    shortcut: that of the convolution of its shortcut; None if it has none, and
      the block is no transition.
    alpha: scale of its branch.
    beta: scale of its activated input; None if there is no such rule.
  """

  module: str
  stage: int
  last: str
  shortcut: str | None
  alpha: float
  beta: float | None


class Expected(NamedTuple):
  """The variance after a block and that of its branch; None if not known."""

  output: float | None = None
  branch: float | None = None


def describe(net: hk.Module) -> list[Block]:
  """Returns what the blocks of a network are, in their order."""
  return [
    Block(
      module=block.module_name,
      stage=stage,
      last=block.conv2.module_name,
      shortcut=block.conv_shortcut and block.conv_shortcut.module_name,
      alpha=getattr(block, 'alpha', 1.0),
      beta=getattr(block, 'beta', None),
    )
    for stage, blocks in enumerate(net.stages, start=1)
    for block in blocks
  ]


def expect(
  named: signal_networks.Named,
  model: zoo.Model,
  blocks: Sequence[Block],
  params: hk.Params,
) -> list[Expected]:
  """Returns what is expected of each block.

  Of networks with neither alpha and beta nor normalization, and of trained
  normalizations, that is nothing; of post-activation ResNets, that branches end
  with a normalization.

  Args:
    named: the network. What is expected without a part of it, such as weight
      standardization, is what is expected with it.
    model: the same.
    blocks: of `describe`.
    params: of the network.
  """
  if signal_networks.has_rule(model):
    return _residual_rule(model, blocks, params)
  if model.entry.module is not resnet.ResNet or not _just_normalizes(params):
    return [Expected()] * len(blocks)
  if not signal_networks.takes(named, 'order'):
    return [Expected(None, 1.0)] * len(blocks)
  return _batch_norm(named, model, blocks, params)


def _just_normalizes(params: hk.Params) -> bool:
  """Returns whether normalizations neither scale nor shift, as new ones."""
  values = {'scale': 1, 'offset': 0}
  return all(
    jnp.all(leaves[name] == values[name])
    for leaves in params.values()
    for name in values.keys() & leaves.keys()
  )


def _residual_rule(
  model: zoo.Model, blocks: Sequence[Block], params: hk.Params
) -> list[Expected]:
  """Follows h' = shortcut + alpha * gain * branch(beta * h).

  Activation and branch keep the variance. With gains of 1 the variances are
  those that `base.expected_variances` makes beta of.
  """
  has_gain_in_branch = model.entry.module is timm_nets.NormFreeNet
  found, variance = [], 1.0
  for block in blocks:
    scaled = variance * block.beta**2
    if has_gain_in_branch:
      gain = float(jnp.mean(params[block.last]['gain'] ** 2))
    else:
      gain = float(params[block.module]['skip_gain'] ** 2)
    shortcut = variance if block.shortcut is None else scaled
    variance = shortcut + block.alpha**2 * gain * scaled
    branch = scaled * gain if has_gain_in_branch else scaled
    found.append(Expected(variance, branch))
  return found


def _batch_norm(
  named: signal_networks.Named,
  model: zoo.Model,
  blocks: Sequence[Block],
  params: hk.Params,
) -> list[Expected]:
  """Adds up what convolutions make of normalized activations.

  BatchNorm gives convolutions the same variance at any depth: 1 if it is last,
  or that of an activated normal distribution. So a branch has this times the
  variance of its last kernel, a transition's shortcut is of the same kind, and
  other shortcuts have what there is already.
  """
  before = 1.0
  if signal_networks.is_norm_first(named.changes):
    name = signal_networks.activation_name(model, named.changes)
    before = signal_networks.gamma(name) ** -2

  def after(module):
    w = params[module]['w']
    return before * math.prod(w.shape[:-1]) * float(jnp.mean(w**2))

  found, variance = [], 1.0
  for block in blocks:
    branch = after(block.last)
    if block.shortcut is not None:
      variance = after(block.shortcut)
    variance += branch
    found.append(Expected(variance, branch))
  return found
