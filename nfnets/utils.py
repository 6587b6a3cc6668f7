"""Utilities of the published code: trees, losses and weight averages."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nfnets.weights import load_haiku_file

__all__ = [
  'ema_decay',
  'ema_update',
  'flatten_haiku_tree',
  'load_haiku_file',
  'sigmoid_cross_entropy',
  'smooth_labels',
  'softmax_cross_entropy',
  'topk_correct',
]


def flatten_haiku_tree(
  tree: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """Flatten {module: {name: array}} to {'module.name': array}.

  `/~/` and `/` in module names become `.`.

  Example:
    >>> sorted(utils.flatten_haiku_tree({'a/~/b': {'w': 1}}))
    ['a.b.w']
  """
  return {
    f'{module}/{name}'.replace('/~/', '.').replace('/', '.'): value
    for module, leaves in tree.items()
    for name, value in leaves.items()
  }


def smooth_labels(labels: jax.Array, smoothing: float) -> jax.Array:
  """Mix labels, float [..., K], with the uniform distribution.

  Szegedy et al. (arXiv 1512.00567), section 7: y (1 - s) + s / K.

  Example:
    >>> smoothed = utils.smooth_labels(labels, smoothing=0.1)
  """
  return optax.smooth_labels(labels, smoothing)


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Return the softmax cross-entropy of each example, in float32.

  Args:
    logits: [..., K].
    labels: distributions over classes, [..., K].

  Returns:
    float32 [...], in nats.

  Example:
    >>> utils.softmax_cross_entropy(jnp.zeros((2, 10)), labels).shape
    (2,)
  """
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Return the binary cross-entropy of each example, summed over classes.

  Args:
    logits: [..., K].
    labels: a probability for each class, [..., K].

  Returns:
    float32 [...], in nats.

  Example:
    >>> utils.sigmoid_cross_entropy(jnp.zeros((2, 10)), labels).shape
    (2,)
  """
  losses = optax.sigmoid_binary_cross_entropy(
    logits.astype(jnp.float32), labels
  )
  return jnp.sum(losses, axis=-1)


def topk_correct(
  logits: jax.Array, labels: jax.Array, topk: tuple[int, ...] = (1, 5)
) -> dict[str, jax.Array]:
  """Return whether the label is among the k highest logits.

  Args:
    logits: [B, K].
    labels: int [B].
    topk: values of k.

  Returns:
    {'top_{k}_acc': float32 [B] of zeros and ones} for each k. A class that ties
    with the label counts as higher, so equal or NaN logits are correct only if
    k covers all classes.

  Example:
    >>> utils.topk_correct(labels, jnp.array([3, 7]))['top_1_acc']
    Array([1., 1.], dtype=float32)
  """
  num_classes = logits.shape[-1]
  of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  lower = jnp.sum(logits < of_label, axis=-1)
  return {f'top_{k}_acc': jnp.float32(lower >= num_classes - k) for k in topk}


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """Return the decay of a moving average at a step (from 0).

  min(decay, (1 + step) / (10 + step)), as in TensorFlow 1's
  ExponentialMovingAverage with `num_updates`. Early values get a low weight.

  Example:
    >>> round(float(utils.ema_decay(jnp.asarray(0), 0.9)), 3)
    0.1
  """
  step = jnp.asarray(step, jnp.float32)
  return jnp.minimum(decay, (1 + step) / (10 + step))


def ema_update(average: Any, value: Any, decay: jax.typing.ArrayLike) -> Any:
  """Update an exponential moving average.

  Args:
    average: tree of float32 arrays.
    value: tree of the new values.
    decay: weight of the old average, see `ema_decay`.

  Returns:
    decay * average + (1 - decay) * value. Integers are copied from `value`.

  Example:
    >>> average = utils.ema_update(params, params, decay=0.99)
  """

  def update(old, new):
    if not jnp.issubdtype(new.dtype, jnp.floating):
      return new
    return old - (1 - decay) * (old - new)

  return jax.tree.map(update, average, value)
