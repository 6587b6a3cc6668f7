"""Measures means and variances of a network's signal, block by block.

A network is written as its name and, after colons, its changes, such as
`nf_resnet50:weight_standardization=no:alpha=1`. The networks do not know the
changes: this module replaces activations and intercepts calls of their modules.
"""

import ast
import collections
from collections.abc import Iterator
import inspect
import math
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import (
  activations,
  base,
  network,
  nf_regnet,
  nf_resnet,
  nfnet,
  residual,
  resnet,
  timm_nets,
  zoo,
)
from nfnets.errors import UserError

_MOST_COMPILED = 60  # Blocks; see `measure`.
_SCALED = (nf_resnet.NF_ResNet, nfnet.NFNet, nf_regnet.NF_RegNet)
_RULED = (*_SCALED, timm_nets.NormFreeNet)  # Networks with alpha and beta.
# The changes that are not arguments of the network's class, and their values.
# `init` is the variance of the kernels times their fan-in.
_CHANGES = {
  'scaled_activations': {'yes': True, 'no': False},
  'weight_standardization': {'yes': True, 'no': False},
  'init': {'own': None, 'he': 2.0, 'fan_in': 1.0},
  'order': {'norm_act_conv': True, 'act_norm_conv': False},
}


class Named(NamedTuple):
  """A network and its changes.

  Attributes:
    text: the name and the changes, see `parse`.
    name: a name of `nfnets.list_models()`.
    arguments: arguments of the network's class.
    changes: values of `_CHANGES`.
  """

  text: str
  name: str
  arguments: dict[str, Any]
  changes: dict[str, Any]


def parse(text: str) -> Named:
  """Parse the name and the changes of a network.

  Args:
    text: a model name and, after colons, NAME=VALUE of changes or of arguments
      of the network's class.

  Raises:
    UserError: if a change is unknown, has a wrong value, or does not apply to
      this network.
    ValueError: if the model or an argument's value is unknown.
  """
  name, *parts = text.split(':')
  entry = zoo.get_entry(name)
  known = {*inspect.signature(entry.module).parameters} - {
    'name',
    'num_classes',
  }
  arguments, changes = {}, {}
  for part in parts:
    key, _, value = part.partition('=')
    if key in _CHANGES and value in _CHANGES[key]:
      changes[key] = _CHANGES[key][value]
    elif key in _CHANGES:
      values = ', '.join(_CHANGES[key])
      raise UserError(f'{text}: {key} must be one of {values}.', 2)
    elif key in known and value:
      try:
        arguments[key] = ast.literal_eval(value)
      except (SyntaxError, ValueError):
        arguments[key] = value
    else:
      names = ', '.join([*_CHANGES, *sorted(known)])
      raise UserError(
        f'{text}: no change {part!r}. Use NAME=VALUE with one of {names}.', 2
      )
  is_scaled = entry.module in _SCALED
  is_v2 = entry.module is resnet.ResNet and entry.kwargs.get('preactivation', 1)
  plain = is_scaled and not changes.get('weight_standardization', True)
  applies = {
    'scaled_activations': is_scaled,
    'weight_standardization': is_scaled,
    # Standardization would undo it.
    'init': entry.module not in _RULED or plain,
    'order': is_v2,
  }
  for key in changes:
    if not applies[key]:
      raise UserError(f'{text}: {key} does not apply to this network.', 2)
  zoo.create_model(name, 0, **arguments)
  return Named(text, name, arguments, changes)


# The signal after the stem or a block; `measure` explains the fields.
Row = collections.namedtuple(
  'Row',
  'network block stage transition avg_sq_mean avg_var res_avg_var '
  'expected_var expected_res_var',
)


def measure(
  named: Named,
  model: zoo.Model,
  images: jax.Array,
  weights: tuple[hk.Params, hk.State] | None = None,
  seed: int = 0,
) -> list[Row]:
  """Measure the signal after the stem and after each block.

  Networks of more than 60 blocks run operation by operation, because compiling
  hundreds of blocks takes longer than running them. BatchNorm uses the batch
  statistics. Dropout and stochastic depth are off.

  Args:
    named: the network.
    model: the same network, with `named.arguments`.
    images: normalized, float32 [B, H, W, 3].
    weights: parameters and state. None: new ones with skip gains of 1.
    seed: seed of new weights.

  Returns:
    A row for the stem and each block:
    network: name and changes.
    block, stage: numbers from 1; 0 for the stem.
    transition: 1 if the block changes size or channels.
    avg_sq_mean, avg_var: channel averages of the squared mean and the variance.
    res_avg_var: the same variance of the residual branch, before alpha and the
      skip gain; None for the stem.
    expected_var, expected_res_var: the expected variances, or None.
  """
  rng, kernels = jax.random.split(jax.random.key(seed))
  params, state = weights or model.init(rng)
  params = {module: dict(leaves) for module, leaves in params.items()}
  variance = named.changes.get('init')
  for i, (module, leaves) in enumerate(sorted(params.items())):
    if variance is not None and jnp.ndim(leaves.get('w', 0)) == 4:
      shape = leaves['w'].shape
      normal = jax.random.normal(jax.random.fold_in(kernels, i), shape)
      leaves['w'] = normal * (variance / math.prod(shape[:-1])) ** 0.5
    gain = 'skip_gain'
    if model.entry.module is timm_nets.NormFreeNet:
      # The gain of a branch's last convolution starts at 0.
      gain = 'gain' if module.endswith('/conv2') else ''
    if weights is None and gain in leaves:
      leaves[gain] = jnp.ones_like(leaves[gain])

  def forward(images):
    outputs = _build(named, model)[1](images)
    return {name: x for name, x in outputs.items() if 'avg_' in name}

  apply = hk.transform_with_state(forward).apply
  stages = hk.transform(lambda: _build(named, model)[0].stages).apply({}, None)
  if sum(map(len, stages)) <= _MOST_COMPILED:
    apply = jax.jit(apply)
  found, _ = apply(params, state, None, images)
  found = {name: float(x) for name, x in found.items()}
  stem = 1.0 if model.entry.module in _RULED else None
  means, variances = found['avg_sq_mean_0'], found['avg_var_0']
  rows = [Row(named.text, 0, 0, 0, means, variances, None, stem, None)]
  for block, stage, expected in _expect(named, model, stages, params):
    i = len(rows)
    measured = (found[f'{name}_{i}'] for name in ('avg_sq_mean', 'avg_var'))
    branch = found[f'res_avg_var_{i - 1}']
    transition = int(block.conv_shortcut is not None)
    rows.append(
      Row(named.text, i, stage, transition, *measured, branch, *expected)
    )
  return rows


def _build(named: Named, model: zoo.Model) -> tuple[network.Network, Any]:
  """Build a network without its last layer, inside of `hk.transform`.

  Returns:
    The network, and a function from images to its outputs.
  """
  kwargs = {**model.entry.kwargs, **model.overrides, 'num_classes': 0}
  net = model.entry.module(**kwargs)
  changes, activation = named.changes, net.activation
  if not changes.get('scaled_activations', True):
    activation = base.get_nonlinearity(_activation_name(model), scaled=False)
  norm_first = changes.get('order', True)
  for part in (net, *sum(net.stages, [])):
    part.activation = activation if norm_first else jax.nn.identity

  def intercept(next_fn, args, kwargs, context):
    module, method = context.module, context.method_name
    if method == 'standardize_weight':
      if not changes.get('weight_standardization', True):
        return args[0] * hk.get_params()[module.module_name]['gain']
    elif isinstance(module, hk.BatchNorm) and method == '__call__':
      if not norm_first:
        args = (activation(args[0]), *args[1:])
    return next_fn(*args, **kwargs)

  def compute(images):
    is_training = model.entry.module is resnet.ResNet
    with hk.intercept_methods(intercept):
      return net(images, is_training=is_training, return_metrics=True)

  return net, compute


def _activation_name(model: zoo.Model) -> str:
  parameters = inspect.signature(model.entry.module).parameters
  return model.overrides.get('activation', parameters['activation'].default)


def _expect(
  named: Named,
  model: zoo.Model,
  stages: list[list[residual.ResidualBlock]],
  params: hk.Params,
) -> Iterator[tuple[residual.ResidualBlock, int, tuple[Any, Any]]]:
  """Yield each block, its stage, and its expected output and branch variances.

  The analysis assumes independent weights, normally distributed pixels and
  infinite images (arXiv 2101.08692, sections 2 to 4). The variances are None
  for networks with neither alpha and beta nor normalization, and for trained
  normalizations. Post-activation ResNets have a branch variance only.
  """
  module = model.entry.module
  in_branch = module is timm_nets.NormFreeNet  # The gain is in the branch.
  # A new normalization has scale 1 and offset 0.
  normalizes = module is resnet.ResNet and all(
    jnp.all(leaves.get(name, value) == value)
    for leaves in params.values()
    for name, value in (('scale', 1), ('offset', 0))
  )
  variance = 1.0
  for stage, blocks in enumerate(stages, start=1):
    for block in blocks:
      expected, shortcut = (None, None), block.conv_shortcut
      if module in _RULED:
        # h' = shortcut + alpha * gain * branch(beta * h). Activation and branch
        # preserve the variance.
        branch = variance * block.beta**2
        gains = params.get(block.module_name, {}).get('skip_gain')
        if in_branch:
          gains = params[block.conv2.module_name]['gain']
        added = float(jnp.mean(gains**2)) * branch
        variance = variance if shortcut is None else branch
        variance += block.alpha**2 * added
        expected = variance, added if in_branch else branch
      elif normalizes and model.entry.kwargs.get('preactivation', True):
        # The input of a convolution after BatchNorm has variance 1, or that of
        # the activation of N(0, 1), at any depth. The variance of a branch or a
        # transition's shortcut is this times that of its last kernel.
        last, joined = (
          convolution and math.prod(w.shape[:-1]) * float(jnp.mean(w**2))
          for convolution in (block.conv2, shortcut)
          for w in [params[(convolution or block.conv2).module_name]['w']]
        )
        before = 1.0
        if named.changes.get('order', True):
          before = activations.GAMMAS[_activation_name(model)] ** -2
        variance = variance if joined is None else before * joined
        variance += before * last
        expected = variance, before * last
      elif normalizes:
        expected = None, 1.0
      yield block, stage, expected
