"""Means and variances of a network's signal, block by block.

A network is written as its name and, after colons, what is changed in it, such
as `nf_resnet50:weight_standardization=no:alpha=1`. The networks know nothing of
this: attributes of their modules are set, and calls of these intercepted.
"""

import collections
from collections.abc import Iterator, Mapping
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
  resnet,
  skipinit_resnet,
  timm_nets,
  zoo,
)
from nfnets.errors import UserError

_MOST_COMPILED = 60  # Blocks; see `measure`.
_SCALED = (nf_resnet.NF_ResNet, nfnet.NFNet, nf_regnet.NF_RegNet)
_RULED = (*_SCALED, timm_nets.NormFreeNet)  # These have alpha and beta.
_GATES = (base.SqueezeExcite, timm_nets.EfficientChannelAttention)
_YES_NO = {'yes': True, 'no': False}
# The variance of drawn kernels, times their fan-in.
_INITS = {'own': None, 'he': 2.0, 'fan_in': 1.0}
_ORDERS = {'norm_act_conv': True, 'act_norm_conv': False}
_NAMES = {name: name for name in sorted(base.unscaled_nonlinearities)}


def _number(text: str) -> float:
  value = float(text)
  if not 0 <= value < math.inf:
    raise ValueError
  return value


# What can be changed: its help, and a function from text to its value.
SWITCHES = {
  'activation': (f'one of {", ".join(_NAMES)}', _NAMES.__getitem__),
  'scaled_activations': (
    'yes, or no for activations without their gamma',
    _YES_NO.__getitem__,
  ),
  'weight_standardization': (
    'yes, or no for kernels as they are drawn',
    _YES_NO.__getitem__,
  ),
  'se_factor': (
    'yes, or no for squeeze and excite without its factor of 2',
    _YES_NO.__getitem__,
  ),
  'alpha': ('the scale of the residual branches, as a number (0.2)', _number),
  'skip_gain': (
    "SkipInit's gain of all branches, as a number (1, so that they take part; "
    "the networks start at 0. With --weights, the weights' own)",
    _number,
  ),
  'init': (
    'he or fan_in, for kernels from N(0, 2 / fan_in) or N(0, 1 / fan_in) where '
    'they are not standardized, or own, as the network draws them',
    _INITS.__getitem__,
  ),
  'order': (
    'norm_act_conv, or act_norm_conv for activations before BatchNorm',
    _ORDERS.__getitem__,
  ),
}


class Named(NamedTuple):
  """A network of the zoo, and what is changed in it, {switch: its text}."""

  name: str
  changes: Mapping[str, str]

  def __str__(self) -> str:
    """Returns the text that `parse` takes."""
    changes = (f'{key}={text}' for key, text in self.changes.items())
    return ':'.join([self.name, *changes])

  def get(self, key: str, default: Any = None) -> Any:
    """Returns the value of a switch, or the default where it is not set."""
    text = self.changes.get(key)
    return default if text is None else SWITCHES[key][1](text)


def parse(text: str, options: Mapping[str, str] | None = None) -> Named:
  """Returns the network that a text names.

  Args:
    text: a name of the zoo and, after colons, changes.
    options: more changes, which a network that has no such part ignores.

  Raises:
    UserError: for an unknown change, or one that this network cannot have.
    ValueError: if there is no such network.
  """
  name, *parts = text.split(':')
  zoo.get_entry(name)
  own = dict(part.partition('=')[::2] for part in parts)
  changes = {**(options or {}), **own}
  for key, value in changes.items():
    if key not in SWITCHES:
      known = ', '.join(SWITCHES)
      raise UserError(f'There is no change {key!r}; there are {known}.', 2)
    try:
      SWITCHES[key][1](value)
    except (KeyError, ValueError):
      message = f'{key} cannot be {value!r}: it is {SWITCHES[key][0]}.'
      raise UserError(message, 2) from None
  kept = {k: v for k, v in changes.items() if _has(name, changes, k)}
  for key in own:
    if key not in kept:
      raise UserError(f'{text}: this network has no {key} to change.', 2)
  return Named(name, kept)


def _has(name: str, changes: Mapping[str, str], key: str) -> bool:
  """Returns whether a network has the part that a switch changes."""
  entry = zoo.get_entry(name)
  module = entry.module
  unstandardized = changes.get('weight_standardization') == 'no'
  return {
    'activation': module is not timm_nets.NormFreeNet,
    'scaled_activations': module in _SCALED,
    'weight_standardization': module in _SCALED,
    'se_factor': module in _RULED and module is not nf_resnet.NF_ResNet,
    'alpha': module in _RULED,
    'skip_gain': module in (*_RULED, skipinit_resnet.SkipInit_ResNet),
    # Standardization would undo it.
    'init': module not in _RULED or (module in _SCALED and unstandardized),
    'order': module is resnet.ResNet and entry.kwargs.get('preactivation', 1),
  }[key]


# The signal after a block, or after the stem; `measure` explains the fields.
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
  """Sends images through a network; returns a row for the stem and each block.

  Deep networks are computed operation by operation instead of as one program:
  most blocks are alike, and to compile hundreds of them takes many times as
  long as to compute them. BatchNorm takes the statistics of these images, and
  nothing is dropped.

  Args:
    named: the network.
    model: the same.
    images: normalized, float32 [B, H, W, 3].
    weights: parameters and state; new ones if None, with skip gains of 1.
    seed: of new weights.

  Returns:
    Of each: the network, with what is changed in it; block and stage, which
    count from 1 and are 0 for the stem; transition, 1 if the block changes size
    or channels; the means over channels of the squared mean and of the variance
    (avg_sq_mean, avg_var); that variance at the end of the residual branch,
    before alpha and SkipInit's gain (res_avg_var), None for the stem; and what
    the analysis expects the variances to be, None if nothing.
  """
  rng, kernels = jax.random.split(jax.random.key(seed))
  params, state = weights or model.init(rng)
  params = _change_params(named, model, params, kernels, weights is None)

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
  rows = [Row(str(named), 0, 0, 0, means, variances, None, stem, None)]
  for block, stage, expected in _expect(named, model, stages, params):
    i = len(rows)
    measured = (found[f'{name}_{i}'] for name in ('avg_sq_mean', 'avg_var'))
    branch = found[f'res_avg_var_{i - 1}']
    transition = int(block.conv_shortcut is not None)
    rows.append(
      Row(str(named), i, stage, transition, *measured, branch, *expected)
    )
  return rows


def _build(named: Named, model: zoo.Model) -> tuple[network.Network, Any]:
  """Builds a network without its last layer, inside of `hk.transform`.

  Returns the network, and a function from images to its outputs.
  """
  kwargs = {**model.entry.kwargs, **model.overrides, 'num_classes': 0}
  net = model.entry.module(**kwargs)
  blocks = sum(net.stages, [])
  if (alpha := named.get('alpha')) is not None:
    depths = [len(stage) for stage in net.stages]
    variances = network.expected_variances(depths, alpha)
    for block, variance in zip(blocks, variances, strict=True):
      block.alpha, block.beta = alpha, variance**-0.5
  activation, norm_first = net.activation, named.get('order', True)
  if {'activation', 'scaled_activations'} & named.changes.keys():
    is_scaled = model.entry.module in _SCALED
    is_scaled &= named.get('scaled_activations', True)
    activation = base.get_nonlinearity(_activation(named, net), is_scaled)
  for part in (net, *blocks):
    part.activation = activation if norm_first else jax.nn.identity

  def intercept(next_fn, args, kwargs, context):
    module, method = context.module, context.method_name
    if method == 'standardize_weight':
      if not named.get('weight_standardization', True):
        return args[0] * hk.get_params()[module.module_name]['gain']
    elif method == '__call__':
      if isinstance(module, hk.BatchNorm) and not norm_first:
        args = (activation(args[0]), *args[1:])
      elif isinstance(module, _GATES) and not named.get('se_factor', True):
        return 0.5 * next_fn(*args, **kwargs)
    return next_fn(*args, **kwargs)

  def compute(images):
    is_training = model.entry.module is resnet.ResNet
    with hk.intercept_methods(intercept):
      return net(images, is_training=is_training, return_metrics=True)

  return net, compute


def _activation(named: Named, net: network.Network) -> str:
  """Returns the name of the activation."""
  tables = base.nonlinearities, base.unscaled_nonlinearities
  known = (
    name for table in tables for name in table if table[name] is net.activation
  )
  return named.get('activation') or next(known)


def _change_params(
  named: Named,
  model: zoo.Model,
  params: hk.Params,
  rng: jax.Array,
  is_new: bool,
) -> hk.MutableParams:
  """Returns parameters with kernels and skip gains as `named` has them."""
  params = {module: dict(leaves) for module, leaves in params.items()}
  variance, skip_gain = named.get('init'), named.get('skip_gain')
  if is_new and skip_gain is None:
    skip_gain = 1.0
  for i, (module, leaves) in enumerate(sorted(params.items())):
    if variance is not None and jnp.ndim(leaves.get('w', 0)) == 4:
      shape = leaves['w'].shape
      normal = jax.random.normal(jax.random.fold_in(rng, i), shape)
      leaves['w'] = normal * (variance / math.prod(shape[:-1])) ** 0.5
    gain = 'skip_gain'
    if model.entry.module is timm_nets.NormFreeNet:
      # The gains of a branch's last convolution start at 0 there.
      gain = 'gain' if module.endswith('/conv2') else ''
    if skip_gain is not None and gain in leaves:
      leaves[gain] = jnp.full_like(leaves[gain], skip_gain)
  return params


def _expect(
  named: Named,
  model: zoo.Model,
  stages: list[list[network.ResidualBlock]],
  params: hk.Params,
) -> Iterator[tuple[network.ResidualBlock, int, tuple[Any, Any]]]:
  """Yields each block, its stage, and the variances of its output and branch.

  The analysis takes weights as independent, pixels as normally distributed and
  images as endless (arXiv 2101.08692, sections 2 to 4). The variances are None
  for networks with neither alpha and beta nor normalization, and for trained
  normalizations. Of post-activation ResNets the branch alone is known.
  """
  module = model.entry.module
  in_branch = module is timm_nets.NormFreeNet  # The gain.
  # New normalizations neither scale nor shift.
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
        # h' = shortcut + alpha * gain * branch(beta * h), where activation and
        # branch keep the variance.
        branch = variance * block.beta**2
        gains = params.get(block.module_name, {}).get('skip_gain')
        if in_branch:
          gains = params[block.conv2.module_name]['gain']
        added = float(jnp.mean(gains**2)) * branch
        variance = variance if shortcut is None else branch
        variance += block.alpha**2 * added
        expected = variance, added if in_branch else branch
      elif normalizes and model.entry.kwargs.get('preactivation', True):
        # A convolution after BatchNorm has the same input at any depth: of
        # variance 1, or that of an activated normal distribution. A branch has
        # this times the variance of its last kernel, and so does a
        # transition's shortcut.
        last, joined = (
          convolution and math.prod(w.shape[:-1]) * float(jnp.mean(w**2))
          for convolution in (block.conv2, shortcut)
          for w in [params[(convolution or block.conv2).module_name]['w']]
        )
        before = 1.0
        if named.get('order', True):
          before = activations.GAMMAS[_activation(named, block)] ** -2
        variance = variance if joined is None else before * joined
        variance += before * last
        expected = variance, before * last
      elif normalizes:
        expected = None, 1.0
      yield block, stage, expected
