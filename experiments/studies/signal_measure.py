"""Means and variances of a network's signal, block by block."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import haiku as hk
import jax

from experiments.studies import signal_networks, signal_rule
from nfnets import resnet, zoo

_MOST_COMPILED = 60  # Blocks; for more, see `measure`.


class Weights(NamedTuple):
  """Parameters and state, {module: {name: array}}."""

  params: hk.Params
  state: hk.State


class Row(NamedTuple):
  """The signal after a block, or after the stem.

  Attributes:
    network: its name, and what is changed in it.
    block: counts from 1; 0 is the stem.
    stage: counts from 1; 0 is the stem.
    transition: 1 if the block changes size or channels, else 0.
    avg_sq_mean: mean over channels of the squared mean.
    avg_var: mean over channels of the variance.
    res_avg_var: that at the end of the residual branch, before alpha and
      SkipInit's gain; None for the stem, which has no branch.
    expected_var: what the analysis expects avg_var to be; None if nothing.
    expected_res_var: what it expects res_avg_var to be; None if nothing.
  """

  network: str
  block: int
  stage: int
  transition: int
  avg_sq_mean: float
  avg_var: float
  res_avg_var: float | None
  expected_var: float | None
  expected_res_var: float | None


def measure(
  named: signal_networks.Named,
  model: zoo.Model,
  images: jax.Array,
  weights: Weights | None = None,
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
    weights: of the network; new ones if None, with skip gains of 1.
    seed: of new weights.
  """
  changes = named.changes
  has_norm = model.entry.module is resnet.ResNet

  def forward(images):
    net = signal_networks.build(model, changes)
    outputs = net(images, is_training=has_norm, return_metrics=True)
    return {name: x for name, x in outputs.items() if 'avg_' in name}

  def describe():
    return signal_rule.describe(signal_networks.build(model, changes))

  blocks, _ = hk.transform_with_state(describe).apply({}, {}, None)
  apply = hk.transform_with_state(forward).apply
  if len(blocks) <= _MOST_COMPILED:
    apply = jax.jit(apply)
  rng, kernels = jax.random.split(jax.random.key(seed))
  with signal_networks.intercepting(model, changes):
    params, state = weights or (new_params(forward, images, rng), {})
    params = signal_networks.set_params(
      model, changes, params, kernels, is_new=weights is None
    )
    found, _ = apply(params, state, None, images)
  expected = [
    signal_rule.Expected(1.0 if signal_networks.has_rule(model) else None),
    *signal_rule.expect(named, model, blocks, params),
  ]

  def row(i):
    block = blocks[i - 1] if i else None
    return Row(
      network=str(named),
      block=i,
      stage=block.stage if block else 0,
      transition=int(bool(block and block.shortcut)),
      avg_sq_mean=float(found[f'avg_sq_mean_{i}']),
      avg_var=float(found[f'avg_var_{i}']),
      res_avg_var=float(found[f'res_avg_var_{i - 1}']) if block else None,
      expected_var=expected[i].output,
      expected_res_var=expected[i].branch,
    )

  return [row(i) for i in range(len(blocks) + 1)]


def new_params(
  forward: Callable[[jax.Array], Any], images: jax.Array, rng: jax.Array
) -> hk.MutableParams:
  """Returns new parameters, without computing the network as `init` does.

  The network tells their shapes and initializers when it is traced.
  """
  made = {}

  def look(next_creator, shape, dtype, init, context):
    module, _, name = context.full_name.rpartition('/')
    made.setdefault(module, {})[name] = functools.partial(init, shape, dtype)
    return next_creator(shape, dtype, init)

  def trace(images):
    with hk.custom_creator(look):
      forward(images)

  jax.eval_shape(hk.transform_with_state(trace).init, rng, images)

  def new():
    return {m: {k: f() for k, f in x.items()} for m, x in made.items()}

  return hk.transform(new).apply({}, rng)
