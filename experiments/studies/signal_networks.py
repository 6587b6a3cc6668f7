"""Networks of the zoo with single parts changed, to see what each part is for.

A network is written as its name and, after colons, what differs, such as
`nf_resnet50:weight_standardization=no:activation=silu`. The networks know
nothing of this: attributes of what they are built of are set, and calls of
their modules intercepted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import inspect
import math
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import (
  base,
  nf_regnet,
  nf_resnet,
  nfnet,
  resnet,
  skipinit_resnet,
  timm_nets,
  zoo,
)

_GATED = (nfnet.NFNet, nf_regnet.NF_RegNet, timm_nets.NormFreeNet)
_RULED = (nf_resnet.NF_ResNet, *_GATED)
_GATES = (base.SqueezeExcite, timm_nets.EfficientChannelAttention)
_ACTIVATIONS = sorted(base.unscaled_nonlinearities)
# The variance of drawn kernels, times their fan-in.
_INITS = {'own': None, 'he': 2.0, 'fan_in': 1.0}
_ORDERS = ('norm_act_conv', 'act_norm_conv')


class ChangeError(ValueError):
  """A change is not one, or not one of this network; the message says why."""


@dataclasses.dataclass(frozen=True)
class Changes:
  """What differs from a network of the zoo.

  Attributes:
    activation: one of `base.unscaled_nonlinearities`; None is the network's.
    scaled_activations: whether activations are multiplied by their gamma.
    weight_standardization: whether kernels are standardized, instead of taken
      as they are drawn, times their gain.
    se_factor: whether gates, such as squeeze and excite, are multiplied by 2.
    alpha: scale of the residual branches, which the rule's beta then fits; None
      is the network's.
    skip_gain: SkipInit's gain of all branches; None is 1, or the weights' own.
    init: 'he' and 'fan_in' draw kernels from N(0, 2 / fan_in) and N(0, 1 /
      fan_in), 'own' as the network does.
    order: of BatchNorm and activation in a pre-activation ResNet.
  """

  activation: str | None = None
  scaled_activations: bool = True
  weight_standardization: bool = True
  se_factor: bool = True
  alpha: float | None = None
  skip_gain: float | None = None
  init: str = 'own'
  order: str = _ORDERS[0]


_DEFAULTS = dataclasses.asdict(Changes())
HELP = {
  'activation': f'one of {", ".join(_ACTIVATIONS)}',
  'scaled_activations': 'yes, or no for activations without their gamma',
  'weight_standardization': 'yes, or no for kernels as they are drawn',
  'se_factor': 'yes, or no for squeeze and excite without its factor of 2',
  'alpha': 'the scale of the residual branches, as a number (0.2)',
  'skip_gain': "SkipInit's gain of all branches, as a number (1, so that they "
  "take part; the networks start at 0. With --weights, the weights' own)",
  'init': 'he or fan_in, for kernels from N(0, 2 / fan_in) or N(0, 1 / fan_in) '
  'where they are not standardized, or own, as the network draws them',
  'order': f'{_ORDERS[0]}, or {_ORDERS[1]} for activations before BatchNorm',
}


class Named(NamedTuple):
  """A network of the zoo by its name, and what is changed in it."""

  name: str
  changes: Changes = Changes()

  def __str__(self) -> str:
    """Returns the text that `parse` takes."""
    parts = [self.name]
    for key, default in _DEFAULTS.items():
      value = getattr(self.changes, key)
      if value != default:
        text = f'{value:g}' if isinstance(value, float) else str(value)
        parts.append(f'{key}={"no" if value is False else text}')
    return ':'.join(parts)


def parse(text: str, options: Mapping[str, str] | None = None) -> Named:
  """Returns the network that a text names.

  Args:
    text: a name of the zoo and, after colons, changes.
    options: more changes, which come first and are left out where a network
      does not take them.

  Raises:
    ChangeError: for what is no change, or not one of this network.
    ValueError: if there is no such network.
  """
  name, *parts = text.split(':')
  zoo.get_entry(name)
  named = Named(name)
  for key, value in (options or {}).items():
    named = _change(named, key, value)
  own = [part.partition('=') for part in parts]
  for key, _, value in own:
    named = _change(named, key, value)
  for key, _, _ in own:
    if not takes(named, key):
      raise ChangeError(f'{text}: this network has no {key} to change.')
  others = {key: _DEFAULTS[key] for key in _DEFAULTS if not takes(named, key)}
  return named._replace(changes=dataclasses.replace(named.changes, **others))


def _change(named: Named, key: str, value: str) -> Named:
  """Returns a network with one more change, whether it takes that or not."""
  if key not in HELP:
    known = ', '.join(HELP)
    raise ChangeError(f'There is no change {key!r}; there are {known}.')
  try:
    parsed = _PARSERS[key](value)
  except (KeyError, ValueError):
    raise ChangeError(
      f'{key} cannot be {value!r}: it is {HELP[key]}.'
    ) from None
  changes = dataclasses.replace(named.changes, **{key: parsed})
  return named._replace(changes=changes)


def _number(text: str) -> float:
  value = float(text)
  if not 0 <= value < math.inf:
    raise ValueError
  return value


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
  return {name: name for name in names}.__getitem__


_yes_or_no = {'yes': True, 'no': False}.__getitem__
_PARSERS: dict[str, Callable[[str], Any]] = {
  'activation': _one_of(_ACTIVATIONS),
  'scaled_activations': _yes_or_no,
  'weight_standardization': _yes_or_no,
  'se_factor': _yes_or_no,
  'alpha': _number,
  'skip_gain': _number,
  'init': _one_of(_INITS),
  'order': _one_of(_ORDERS),
}


def takes(named: Named, key: str) -> bool:
  """Returns whether a network has what a change is of."""
  entry = zoo.get_entry(named.name)
  if key == 'activation':
    return True
  if key == 'se_factor':
    return entry.module in _GATED
  if key == 'skip_gain':
    return entry.module in (*_RULED, skipinit_resnet.SkipInit_ResNet)
  if key == 'init':  # Standardization would undo it.
    is_standardized = named.changes.weight_standardization
    return entry.module not in _RULED or not is_standardized
  if key == 'order':
    has_norm = entry.module is resnet.ResNet
    return has_norm and entry.kwargs.get('preactivation', True)
  return entry.module in _RULED


def is_norm_first(changes: Changes) -> bool:
  """Returns whether BatchNorm comes before the activation."""
  return changes.order == _ORDERS[0]


def has_rule(model: zoo.Model) -> bool:
  """Returns whether the network scales by alpha and beta."""
  return model.entry.module in _RULED


def activation_name(model: zoo.Model, changes: Changes) -> str:
  """Returns the name of the activation, in `base.nonlinearities`."""
  if changes.activation:
    return changes.activation
  module = model.entry.module
  kwargs = {**model.entry.kwargs, **model.overrides}
  if module is timm_nets.NormFreeNet:
    name = module.variant_dict[kwargs['variant']]['activation']
    return 'gelu_erf' if name == 'gelu' else name
  default = inspect.signature(module.__init__).parameters['activation'].default
  return kwargs.get('activation', default)


@functools.cache
def gamma(name: str) -> float:
  """Returns by how much `base.nonlinearities` scales an activation."""
  if name == 'gelu_erf':
    name = 'gelu'
  with jax.ensure_compile_time_eval():  # Also where a network is traced.
    x = jnp.linspace(-3.0, 3.0, 64)
    scaled, plain = (
      jnp.linalg.norm(base.get_nonlinearity(name, is_scaled)(x))
      for is_scaled in (True, False)
    )
    return float(scaled / plain)


def build(model: zoo.Model, changes: Changes) -> hk.Module:
  """Builds a network without its last layer, inside of `hk.transform`.

  What it computes is changed where `intercepting` holds, too.
  """
  kwargs = {**model.entry.kwargs, **model.overrides, 'num_classes': 0}
  net = model.entry.module(**kwargs)
  blocks = [block for stage in net.stages for block in stage]
  if changes.alpha is not None:
    depths = [len(stage) for stage in net.stages]
    variances = base.expected_variances(depths, changes.alpha)
    for block, variance in zip(blocks, variances, strict=True):
      block.alpha, block.beta = changes.alpha, variance**-0.5
  activation = _activation(model, changes)
  if not is_norm_first(changes):
    activation = base.nonlinearities['identity']
  for part in (net, *blocks):
    part.activation = activation
  return net


def _activation(model: zoo.Model, changes: Changes) -> base.Activation:
  name = activation_name(model, changes)
  module = model.entry.module
  if module is not timm_nets.NormFreeNet:
    is_scaled = module in _RULED and changes.scaled_activations
    return base.get_nonlinearity(name, is_scaled)
  if name == 'gelu_erf':
    return functools.partial(jax.nn.gelu, approximate=False)
  return base.get_nonlinearity(name, scaled=False)


@contextlib.contextmanager
def intercepting(model: zoo.Model, changes: Changes) -> Iterator[None]:
  """Changes what the modules of a network compute, inside of this context."""
  activation = _activation(model, changes)
  halves = not changes.se_factor and model.entry.module in _GATED

  def intercept(next_fn, args, kwargs, context):
    module = context.module
    if context.method_name == 'standardize_weight':
      return _kernel(next_fn, args[0], module, model, changes)
    if context.method_name != '__call__':
      return next_fn(*args, **kwargs)
    if isinstance(module, hk.BatchNorm) and not is_norm_first(changes):
      return next_fn(activation(args[0]), *args[1:], **kwargs)
    out = next_fn(*args, **kwargs)
    return 0.5 * out if halves and isinstance(module, _GATES) else out

  with hk.intercept_methods(intercept):
    yield


def _kernel(
  standardize: Callable[[jax.Array], jax.Array],
  weight: jax.Array,
  module: base.WSConv2D,
  model: zoo.Model,
  changes: Changes,
) -> jax.Array:
  """Returns what a convolution takes in place of its standardized kernel."""
  kernel = standardize(weight)  # This makes the gain, too.
  own_gamma = getattr(module, 'gamma', None)
  if not changes.weight_standardization:
    kernel = weight * hk.get_params()[module.module_name]['gain']
  elif own_gamma:
    kernel /= own_gamma
  if own_gamma and changes.scaled_activations:
    # timm's kernels have in them what is the activation's elsewhere.
    kernel *= gamma(activation_name(model, changes))
  return kernel


def set_params(
  model: zoo.Model,
  changes: Changes,
  params: hk.Params,
  rng: jax.Array,
  is_new: bool,
) -> hk.MutableParams:
  """Returns parameters with what is changed in their values.

  Args:
    model: what they are of.
    changes: of these, `init` and `skip_gain`.
    params: {module: {name: array}}.
    rng: for kernels that are drawn again.
    is_new: whether the skip gains, which then are 0, become 1 otherwise.
  """
  params = {module: dict(leaves) for module, leaves in params.items()}
  variance, skip_gain = _INITS[changes.init], changes.skip_gain
  if is_new and skip_gain is None:
    skip_gain = 1.0
  for i, (module, leaves) in enumerate(sorted(params.items())):
    if variance is not None and jnp.ndim(leaves.get('w', 0)) == 4:
      shape = leaves['w'].shape
      stddev = (variance / math.prod(shape[:-1])) ** 0.5
      normal = jax.random.normal(jax.random.fold_in(rng, i), shape)
      leaves['w'] = stddev * normal
    gain = _skip_gain(model, module)
    if skip_gain is not None and gain in leaves:
      leaves[gain] = jnp.full_like(leaves[gain], skip_gain)
  return params


def _skip_gain(model: zoo.Model, module: str) -> str:
  """Returns how SkipInit's gain is called, if this module is to have it."""
  if model.entry.module is not timm_nets.NormFreeNet:
    return 'skip_gain'
  # The gains of a branch's last convolution, which start at 0.
  return 'gain' if module.endswith('/conv2') else ''
