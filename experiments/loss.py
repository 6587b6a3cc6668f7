"""What training minimizes on a batch, and what evaluation has in common."""

from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections

import nfnets
from nfnets import optim, utils

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

LOSSES = {
  'softmax_cross_entropy': utils.softmax_cross_entropy,
  'sigmoid_cross_entropy': utils.sigmoid_cross_entropy,
}


def compute_dtype(is_bfloat16: bool) -> jnp.dtype:
  return jnp.bfloat16 if is_bfloat16 else jnp.float32


def cast(tree: Any, dtype: jnp.dtype) -> Any:
  """Casts the floating-point leaves."""
  return jax.tree.map(
    lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    tree,
  )


def network_input(
  model: nfnets.Model, images: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  """Turns images of 0-255, uint8 or float32, into what the network takes."""
  return model.normalize(images.astype(jnp.float32)).astype(dtype)


def make_loss(
  model: nfnets.Model, config: ml_collections.ConfigDict
) -> Callable[..., tuple[jax.Array, tuple[hk.State, Metrics]]]:
  """Builds the loss of training.

  Args:
    model: the network.
    config: the experiment's.

  Returns:
    A function from (parameters, state, batch, key) to (loss, (state, metrics)),
    the loss and the metrics float32 scalars, means over the batch. The batch is
    that of `step.make_train_step`, with images [B, H, W, 3].
  """
  dtype = compute_dtype(config.bfloat16)
  loss_of = LOSSES[config.which_loss]
  is_trained = optim.choose(config.train_only)

  def loss_fn(params, state, batch, rng):
    if config.train_only:
      params = optim.stop_gradients(params, is_trained)
    # Cast here, so that the gradients come back as float32.
    out, new_state = model.apply(
      cast(params, dtype),
      state,
      rng,
      network_input(model, batch['images'], dtype),
      is_training=True,
    )
    logits = out['logits'].astype(jnp.float32)
    targets = _targets(batch, logits.shape[-1])
    targets = utils.smooth_labels(targets, config.label_smoothing)
    loss = jnp.mean(loss_of(logits, targets))
    metrics = {'train_loss': loss}
    for name, correct in utils.topk_correct(logits, batch['labels']).items():
      metrics[name] = jnp.mean(correct)
    new_state = jax.tree.map(
      lambda x, old: x.astype(old.dtype), new_state, state
    )
    return loss, (new_state, metrics)

  return loss_fn


def _targets(batch: Batch, num_classes: int) -> jax.Array:
  """Returns the distributions over classes, float32 [B, K], of mixed labels."""
  targets = jax.nn.one_hot(batch['labels'], num_classes)
  if 'ratio' not in batch:
    return targets
  others = jax.nn.one_hot(batch['mix_labels'], num_classes)
  ratio = batch['ratio'][:, None]
  return ratio * targets + (1 - ratio) * others
