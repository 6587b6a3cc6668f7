"""One step of training and one of evaluation, as pure functions.

`make_train_step` returns a function of (train state, batch, key). Under
`jax.pmap` it averages over the named axis; without a name it can be called as
it is, on one device or in a test. `make_compiled` compiles the steps of a run
for all devices, and `make_shared` has runs in one process share them.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments import gradients
from experiments.gradients import Batch, Metrics
import nfnets
from nfnets import optim, utils

AXIS = 'i'  # JAXline's name of the pmapped axis.
# Names the part of a batch by which hosts tell each other to end.
STOP = 'stop'
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
  """Return the state before the first step.

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
  return _first_state(optimizer, use_ema, params, state)


# Compiled by itself, as the parameters need no compilation.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _first_state(optimizer, use_ema, params, state) -> TrainState:
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


def _apply(
  model: nfnets.Model,
  params: hk.Params,
  state: hk.State,
  rng: jax.Array | None,
  batch: Batch,
  is_training: bool,
  is_bfloat16: bool,
) -> tuple[jax.Array, hk.State]:
  """Return the float32 logits [B, K] of a batch, and the new state."""
  dtype = jnp.bfloat16 if is_bfloat16 else jnp.float32
  # Cast here, so that the gradients come back as float32.
  params = jax.tree.map(
    lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    params,
  )
  images = model.normalize(batch['images'].astype(jnp.float32)).astype(dtype)
  out, state = model.apply(params, state, rng, images, is_training=is_training)
  return out['logits'].astype(jnp.float32), state


def _topk_correct(logits: jax.Array, labels: jax.Array) -> Metrics:
  """Return top-1 and top-5; top-5 only where it can be less than 1."""
  topk = (1, 5) if logits.shape[-1] > 5 else (1,)
  return utils.topk_correct(logits, labels, topk)


def make_loss(
  model: nfnets.Model,
  config: ml_collections.ConfigDict,
  class_weights: np.ndarray | None = None,
) -> Callable[..., tuple[jax.Array, tuple[hk.State, Metrics]]]:
  """Build the loss of training.

  Args:
    model: the network.
    config: the experiment's.
    class_weights: factors of the loss by label, float32 [K], whose mean over
      the examples is 1; None: equal ones. Their sum in a batch does not count,
      so that no example's gradient depends on the others of its batch, and
      devices and parts of a batch may be averaged.

  Returns:
    A function from (parameters, state, batch, key) to (loss, (state, metrics)),
    the loss and the metrics float32 scalars, means over the batch. The batch is
    that of `make_train_step`, with images [B, H, W, 3].
  """
  is_trained = optim.choose(config.train_only or '')

  def loss_fn(params, state, batch, rng):
    if config.train_only:
      params = optim.stop_gradients(params, is_trained)
    logits, new_state = _apply(
      model, params, state, rng, batch, True, config.bfloat16
    )
    labels, ratio = batch['labels'], batch.get('ratio')
    one_hot = functools.partial(jax.nn.one_hot, num_classes=logits.shape[-1])

    def loss_of(targets):
      targets = utils.smooth_labels(targets, config.label_smoothing)
      return LOSSES[config.which_loss](logits, targets)

    if class_weights is not None:
      factors, shares = jnp.asarray(class_weights), [(1, labels)]
      if ratio is not None:
        shares = [(ratio, labels), (1 - ratio, batch['mix_labels'])]
      loss = sum(s * factors[x] * loss_of(one_hot(x)) for s, x in shares)
    else:
      targets = one_hot(labels)
      if ratio is not None:
        others, ratio = one_hot(batch['mix_labels']), ratio[:, None]
        targets = ratio * targets + (1 - ratio) * others
      loss = loss_of(targets)
    values = {
      'train_loss': loss,
      **_topk_correct(logits, batch['labels']),
    }
    if 'mask' in batch:  # A Poisson sample.
      values = {k: batch['mask'] * v for k, v in values.items()}
      values['share'] = batch['mask']
    metrics = jax.tree.map(jnp.mean, values)
    new_state = jax.tree.map(
      lambda x, old: x.astype(old.dtype), new_state, state
    )
    return metrics['train_loss'], (new_state, metrics)

  return loss_fn


def _batch_first(batch: Batch, config: ml_collections.ConfigDict) -> Batch:
  """Return a batch with images [B, H, W, 3].

  With `config.transpose` they come as [H, W, 3, B]: TPUs keep the batch last in
  memory, so that order spares them a copy.
  """
  images = batch['images']
  if config.transpose:
    images = jnp.transpose(images, (3, 0, 1, 2))
  return {**batch, 'images': images}


def make_train_step(
  model: nfnets.Model,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: ml_collections.ConfigDict,
  axis_name: str | None = None,
  class_weights: np.ndarray | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Build the function that makes one update.

  Args:
    model: the network.
    optimizer: takes gradients of the loss.
    schedule: the learning rate by step, to report it.
    config: the experiment's.
    axis_name: the pmapped axis to average over; None outside of pmap.
    class_weights: see `make_loss`.

  Returns:
    A function from (train state, batch, key) to (train state, metrics). The
    batch holds `images` of 0-255, uint8 or float32 (see `_batch_first`), and
    `labels`, int32 [B]; where images are mixed also `mix_labels`, int32 [B],
    and `ratio`, float32 [B], the share of the first label; of a Poisson sample
    also `mask`, float32 [B], 1 for an example and 0 for filling. Metrics are
    float32 scalars, averaged over the examples of all devices; with
    `config.log_layers`, `layers` are `gradients.Layers`.
  """
  decay_at = EMAS[config.which_ema]
  loss_fn = make_loss(model, config, class_weights)
  gradient = gradients.make_gradient(loss_fn, config)

  def mean(tree):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def train_step(train_state, batch, rng):
    step, params = train_state.step, train_state.params
    batch = _batch_first(batch, config)
    point = params
    if config.sam_rho:
      # Each device ascends by a part of its own batch; the average of their
      # descent gradients is the same everywhere.
      parts = config.accumulate_steps
      share = config.sam_fraction * batch['labels'].shape[0]
      size = parts * math.ceil(share / parts)
      ascent, _ = gradient(
        params,
        train_state.state,
        jax.tree.map(lambda x: x[:size], batch),
        jax.random.fold_in(rng, 1),
      )
      point = optim.sam_ascent(params, ascent, config.sam_rho)
    grads, (state, metrics) = gradient(point, train_state.state, batch, rng)
    grads, metrics = mean((grads, metrics))
    if 'mask' in batch:
      # The analysis of privacy divides by the expected number of examples.
      devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
      expected = config.train_batch_size * config.augmentation_multiplicity
      factor = devices * batch['mask'].size / expected
      grads = jax.tree.map(lambda g: g * factor, grads)
      share = jnp.maximum(metrics.pop('share'), 1e-9)  # None may be drawn.
      metrics = {k: v / share for k, v in metrics.items()}
    updates, opt_state = optimizer.update(grads, train_state.opt_state, params)
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

    rate = schedule(step)
    if config.traced_hyperparams:
      rate = schedule(step, optax.tree.get(opt_state, 'peak'))
    metrics['learning_rate'] = jnp.asarray(rate, jnp.float32)
    metrics['grad_norm'] = optax.tree.norm(grads)
    clipped = optax.tree.get(opt_state, 'fraction_clipped', None)
    if clipped is not None:  # That of examples' gradients says more.
      metrics.setdefault('fraction_clipped', clipped)
    if config.log_layers:
      metrics[gradients.LAYERS] = gradients.measure_layers(
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
  """Build the function that measures one batch.

  Args:
    model: the network.
    config: the experiment's.
    axis_name: the pmapped axis to sum over; None outside of pmap.

  Returns:
    A function from (parameters, state, batch) to the sums over the batch of
    `loss`, `top_1_acc`, `top_5_acc` (with more than five classes) and
    `num_examples`, float32 scalars. The batch's `mask` [B] is 0 for padding,
    which counts nothing.
  """

  def eval_step(params, state, batch):
    batch = _batch_first(batch, config)
    logits, _ = _apply(
      model, params, state, None, batch, False, config.eval_bfloat16
    )
    targets = jax.nn.one_hot(batch['labels'], logits.shape[-1])
    values = {
      'loss': LOSSES[config.which_loss](logits, targets),
      **_topk_correct(logits, batch['labels']),
      'num_examples': jnp.ones(logits.shape[:1]),
    }
    # Not a product: what padding gives may be infinite.
    sums = {
      k: jnp.sum(jnp.where(batch['mask'] > 0, v, 0)) for k, v in values.items()
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return eval_step


class CompiledSteps(NamedTuple):
  """What an experiment runs on the devices.

  Attributes:
    init: from (key, weights) to the first train state; not compiled.
    train_step: `make_train_step`, pmapped.
    eval_step: `make_eval_step`, pmapped.
  """

  init: Callable[..., TrainState]
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]


def make_compiled(recipe: Any) -> CompiledSteps:
  """Return the steps of a `Recipe`, which are compiled when they are called."""
  model, optimizer, config = recipe.model, recipe.optimizer, recipe.config

  def train_step_with_stop(train_state, batch, rng):
    """Have the devices of all hosts agree on whether one of them shall end."""
    train_step = make_train_step(
      *(model, optimizer, recipe.schedule, config, AXIS),
      recipe.class_weights(),  # May read the dataset, so not for evaluation.
    )
    batch = dict(batch)
    stop = batch.pop(STOP, None)
    train_state, metrics = train_step(train_state, batch, rng)
    if stop is not None:
      metrics[STOP] = jax.lax.pmax(stop, AXIS)
    return train_state, metrics

  return CompiledSteps(
    functools.partial(init_train_state, model, optimizer, config.use_ema),
    jax.pmap(train_step_with_stop, AXIS, donate_argnums=0, out_axes=(0, None)),
    jax.pmap(make_eval_step(model, config, AXIS), AXIS, out_axes=None),
  )


def make_shared() -> Callable[[Any], CompiledSteps]:
  """Return a `make_compiled` that reuses the steps of earlier recipes that fit.

  A compiled step holds the settings as constants. With `traced_hyperparams`
  runs that differ in these values alone, or in their seed, share it.
  """
  known = {}

  def make_once(recipe: Any) -> CompiledSteps:
    key = recipe.program_key
    if key not in known:
      known[key] = make_compiled(recipe)
    return known[key]

  return make_once
