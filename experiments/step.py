"""One step of training and one of evaluation, as pure functions.

`make_train_step` returns a function of (train state, batch, key). Under
`jax.pmap` it averages over the named axis; without a name it can be called as
it is, on one device or in a test.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import optax

import nfnets
from nfnets import utils

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

LOSSES = {
  'softmax_cross_entropy': utils.softmax_cross_entropy,
  'sigmoid_cross_entropy': utils.sigmoid_cross_entropy,
}
EMAS = {'tf1_ema': utils.ema_decay, 'ema': lambda step, decay: decay}


class TrainState(NamedTuple):
  """All that training changes.

  Attributes:
    step: int32 scalar, the number of updates made.
    params: float32 parameters.
    state: Haiku's state; that of BatchNorm.
    opt_state: the optimizer's state.
    ema_params: average of `params`; None without EMA.
    ema_state: average of `state`; None without EMA.
  """

  step: jax.Array
  params: hk.Params
  state: hk.State
  opt_state: optax.OptState
  ema_params: hk.Params | None
  ema_state: hk.State | None


def init_train_state(
  model: nfnets.Model,
  optimizer: optax.GradientTransformation,
  use_ema: bool,
  rng: jax.Array,
) -> TrainState:
  """Returns the state before the first step."""
  params, state = model.init(rng)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    state=state,
    opt_state=optimizer.init(params),
    # Copies: a buffer may be donated only once.
    ema_params=jax.tree.map(jnp.array, params) if use_ema else None,
    ema_state=jax.tree.map(jnp.array, state) if use_ema else None,
  )


def _cast(tree: Any, dtype: jnp.dtype) -> Any:
  """Casts the floating-point leaves."""
  return jax.tree.map(
    lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    tree,
  )


def _network_input(
  images: jax.Array, config: ml_collections.ConfigDict
) -> jax.Array:
  """Turns a batch's images into what the network takes.

  Args:
    images: 0-255, [B, H, W, 3], or [H, W, 3, B] if `config.transpose`: TPUs
      keep the batch last in memory, so that order spares them a copy.
    config: the experiment's.
  """
  if config.transpose:
    images = jnp.transpose(images, (3, 0, 1, 2))
  images = utils.normalize(images.astype(jnp.float32))
  return _cast(images, _compute_dtype(config))


def _compute_dtype(config: ml_collections.ConfigDict) -> jnp.dtype:
  return jnp.bfloat16 if config.bfloat16 else jnp.float32


def make_train_step(
  model: nfnets.Model,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: ml_collections.ConfigDict,
  axis_name: str | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Builds the function that makes one update.

  Args:
    model: the network.
    optimizer: takes gradients of the loss; where `config.sam_rho` is set, one
      of `nfnets.optim.sam`.
    schedule: the learning rate by step, to report it.
    config: the experiment's.
    axis_name: the pmapped axis to average over; None outside of pmap.

  Returns:
    A function from (train state, batch, key) to (train state, metrics). The
    batch holds `images` (see `_network_input`) and `labels`, int32 [B]. Metrics
    are float32 scalars, averaged over all devices.
  """
  dtype = _compute_dtype(config)
  loss_of = LOSSES[config.which_loss]
  decay_at = EMAS[config.which_ema]

  def mean(tree):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def loss_fn(params, state, images, labels, rng):
    # Cast here, so that the gradients come back as float32.
    out, state = model.apply(
      _cast(params, dtype), state, rng, images, is_training=True
    )
    logits = out['logits'].astype(jnp.float32)
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = utils.smooth_labels(targets, config.label_smoothing)
    return jnp.mean(loss_of(logits, targets)), (state, logits)

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def train_step(train_state, batch, rng):
    step, params = train_state.step, train_state.params
    images = _network_input(batch['images'], config)
    labels = batch['labels']
    descent = []

    def descent_gradient(params, _=0):
      value, grads = grad_fn(params, train_state.state, images, labels, rng)
      descent.append((value, mean(grads)))
      return descent[-1][1]

    if config.sam_rho:
      # Each device ascends by a part of its own batch; the average of their
      # descent gradients is the same everywhere.
      part = math.ceil(config.sam_fraction * labels.shape[0])
      _, ascent = grad_fn(
        params,
        train_state.state,
        images[:part],
        labels[:part],
        jax.random.fold_in(rng, 1),
      )
      updates, opt_state = optimizer.update(
        ascent, train_state.opt_state, params, grad_fn=descent_gradient
      )
    else:
      updates, opt_state = optimizer.update(
        descent_gradient(params), train_state.opt_state, params
      )
    ((loss, (state, logits)), grads) = descent[-1]
    params = optax.apply_updates(params, updates)

    ema_params, ema_state = train_state.ema_params, train_state.ema_state
    if config.use_ema:
      ema_params, ema_state = utils.ema_update(
        (ema_params, ema_state),
        (params, state),
        decay_at(step, config.ema_decay),
      )

    metrics = {'train_loss': loss}
    for name, correct in utils.topk_correct(logits, labels).items():
      metrics[name] = jnp.mean(correct)
    metrics = mean(metrics)
    metrics['learning_rate'] = jnp.asarray(schedule(step), jnp.float32)
    metrics['grad_norm'] = optax.tree.norm(grads)
    clipped = optax.tree.get(opt_state, 'fraction_clipped', None)
    if clipped is not None:
      metrics['fraction_clipped'] = clipped
    return (
      TrainState(step + 1, params, state, opt_state, ema_params, ema_state),
      metrics,
    )

  return train_step


def make_eval_step(
  model: nfnets.Model,
  config: ml_collections.ConfigDict,
  axis_name: str | None = None,
) -> Callable[[hk.Params, hk.State, Batch], Metrics]:
  """Builds the function that measures one batch.

  Args:
    model: the network.
    config: the experiment's.
    axis_name: the pmapped axis to sum over; None outside of pmap.

  Returns:
    A function from (parameters, state, batch) to the sums over the batch of
    `loss`, `top_1_acc`, `top_5_acc` and `num_examples`, float32 scalars. The
    batch's `mask` [B] is 0 for padding, which counts nothing.
  """
  dtype = _compute_dtype(config)

  def eval_step(params, state, batch):
    images = _network_input(batch['images'], config)
    out, _ = model.apply(
      _cast(params, dtype), state, None, images, is_training=False
    )
    logits = out['logits'].astype(jnp.float32)
    targets = jax.nn.one_hot(batch['labels'], logits.shape[-1])
    values = {
      'loss': LOSSES[config.which_loss](logits, targets),
      **utils.topk_correct(logits, batch['labels']),
      'num_examples': jnp.ones(logits.shape[:1]),
    }
    # Not a product: what padding gives may be infinite.
    sums = {
      k: jnp.sum(jnp.where(batch['mask'] > 0, v, 0)) for k, v in values.items()
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return eval_step
