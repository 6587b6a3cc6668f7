"""One step of training and one of evaluation, as pure functions.

`make_train_step` returns a function of (train state, batch, key). Under
`jax.pmap` it averages over the named axis; without a name it can be called as
it is, on one device or in a test.
"""

from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments import gradients, layer_log
from experiments import loss as loss_lib
from experiments.loss import Batch, Metrics
import nfnets
from nfnets import optim, utils

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
    skipped: int32 scalar, the number of updates left out because something was
      not finite.
  """

  step: jax.Array
  params: hk.Params
  state: hk.State
  opt_state: optax.OptState
  ema_params: hk.Params | None
  ema_state: hk.State | None
  skipped: jax.Array


def init_train_state(
  model: nfnets.Model,
  optimizer: optax.GradientTransformation,
  use_ema: bool,
  rng: jax.Array,
  weights: tuple[hk.Params, hk.State] | None = None,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    model: the network.
    optimizer: starts anew.
    use_ema: whether to keep averages; they start as the parameters do.
    rng: key of the parameters.
    weights: modules' parameters and state to have in place of new ones.
  """
  params, state = model.init(rng)
  if weights is not None:
    params, state = {**params, **weights[0]}, {**state, **weights[1]}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    state=state,
    opt_state=optimizer.init(params),
    # Copies: a buffer may be donated only once.
    ema_params=jax.tree.map(jnp.array, params) if use_ema else None,
    ema_state=jax.tree.map(jnp.array, state) if use_ema else None,
    skipped=jnp.zeros((), jnp.int32),
  )


def _batch_first(
  images: jax.Array, config: ml_collections.ConfigDict
) -> jax.Array:
  """Returns images as [B, H, W, 3].

  Args:
    images: [B, H, W, 3], or [H, W, 3, B] if `config.transpose`: TPUs keep the
      batch last in memory, so that order spares them a copy.
    config: the experiment's.
  """
  return jnp.transpose(images, (3, 0, 1, 2)) if config.transpose else images


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
    batch holds `images` of 0-255, uint8 or float32 (see `_batch_first`), and
    `labels`, int32 [B]; where images are mixed also `mix_labels`, int32 [B],
    and `ratio`, float32 [B], the share of the first label. Metrics are float32
    scalars, averaged over all devices; with `config.log_layers`, `layers` are
    `layer_log.Layers`.
  """
  decay_at = EMAS[config.which_ema]
  loss_fn = loss_lib.make_loss(model, config)
  gradient = gradients.make_gradient(loss_fn, config)

  def mean(tree):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def train_step(train_state, batch, rng):
    step, params = train_state.step, train_state.params
    batch = {**batch, 'images': _batch_first(batch['images'], config)}
    point = params
    if config.sam_rho:
      # Each device ascends by a part of its own batch; the average of their
      # descent gradients is the same everywhere.
      ascent, _ = gradient(
        params,
        train_state.state,
        gradients.ascent_part(batch, config),
        jax.random.fold_in(rng, 1),
      )
      point = optim.sam_ascent(params, ascent, config.sam_rho)
    grads, (state, metrics) = gradient(point, train_state.state, batch, rng)
    grads = mean(grads)
    if config.sam_rho:
      updates, opt_state = optimizer.update(
        ascent, train_state.opt_state, params, grad_fn=lambda *_: grads
      )
    else:
      updates, opt_state = optimizer.update(
        grads, train_state.opt_state, params
      )
    params = optax.apply_updates(params, updates)
    # Moving averages of each device's statistics: their average is what all
    # devices go on with, so that a checkpoint holds all there is.
    state = jax.tree.map(
      lambda x: mean(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )

    ema_params, ema_state = train_state.ema_params, train_state.ema_state
    if config.use_ema:
      ema_params, ema_state = utils.ema_update(
        (ema_params, ema_state),
        (params, state),
        decay_at(step, config.ema_decay),
      )

    metrics = mean(metrics)
    rate = schedule(step)
    if config.numbers_as_arguments:
      rate = schedule(step, optax.tree.get(opt_state, 'peak'))
    metrics['learning_rate'] = jnp.asarray(rate, jnp.float32)
    metrics['grad_norm'] = optax.tree.norm(grads)
    clipped = optax.tree.get(opt_state, 'fraction_clipped', None)
    if clipped is not None:  # That of examples' gradients says more.
      metrics.setdefault('fraction_clipped', clipped)
    if config.log_layers:
      metrics[layer_log.NAME] = layer_log.measure(
        train_state.params, grads, opt_state, config
      )
    new = TrainState(
      step + 1,
      params,
      state,
      opt_state,
      ema_params,
      ema_state,
      train_state.skipped,
    )
    if config.skip_nonfinite:
      finite = jnp.isfinite(metrics['train_loss'] + metrics['grad_norm'])
      old = train_state._replace(skipped=train_state.skipped + 1)
      new = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
      metrics['updates_skipped'] = new.skipped.astype(jnp.float32)
    return new, metrics

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
  dtype = loss_lib.compute_dtype(config.eval_bfloat16)

  def eval_step(params, state, batch):
    images = _batch_first(batch['images'], config)
    images = loss_lib.network_input(model, images, dtype)
    out, _ = model.apply(
      loss_lib.cast(params, dtype), state, None, images, is_training=False
    )
    logits = out['logits'].astype(jnp.float32)
    targets = jax.nn.one_hot(batch['labels'], logits.shape[-1])
    values = {
      'loss': loss_lib.LOSSES[config.which_loss](logits, targets),
      **utils.topk_correct(logits, batch['labels']),
      'num_examples': jnp.ones(logits.shape[:1]),
    }
    # Not a product: what padding gives may be infinite.
    sums = {
      k: jnp.sum(jnp.where(batch['mask'] > 0, v, 0)) for k, v in values.items()
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return eval_step
