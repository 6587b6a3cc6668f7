"""Small functions on images, trees, losses and averages of weights."""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

# Mean and standard deviation of ImageNet's channels, red, green, blue, on the
# scale of 0 to 255.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


def normalize(images):
  """Normalizes images to what the networks take.

  Args:
    images: float32 [..., 3] in 0-255; of NumPy, JAX or TensorFlow.

  Returns:
    float32 [..., 3], of the same library.
  """
  return (images - IMAGENET_MEAN) / IMAGENET_STD


def load_haiku_file(path: str | os.PathLike[str]) -> hk.MutableParams:
  """Reads parameters, {module: {name: array}}, from a file.

  `nfnets.weights.load_weights` tells what files and what they can raise.
  """
  # Later, because the models use this module, and the weights know the models.
  from nfnets.weights import files  # pylint: disable=g-import-not-at-top

  return files.load_haiku_file(path)


def imagenet_classes() -> dict[str, str]:
  """Returns {WordNet id: name} of ImageNet's 1000 classes, in label order.

  Of several names it is the first: 'tench' for 'tench, Tinca tinca'.
  """
  path = pathlib.Path(__file__).with_name('imagenet_classes.json')
  classes = json.loads(path.read_text(encoding='utf-8'))
  return {wnid: names.split(',')[0] for wnid, names in classes}


def flatten_haiku_tree(
  tree: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """Flattens {module: {name: array}} to {'module.name': array}.

  The `/~/` and `/` of module names become `.`.
  """
  return {
    f'{module}/{name}'.replace('/~/', '.').replace('/', '.'): value
    for module, leaves in tree.items()
    for name, value in leaves.items()
  }


def smooth_labels(labels: jax.Array, smoothing: float) -> jax.Array:
  """Mixes labels [..., K] with the uniform distribution.

  Szegedy et al. (arXiv 1512.00567), section 7: y (1 - s) + s / K.
  """
  return labels * (1 - smoothing) + smoothing / labels.shape[-1]


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the cross-entropy of each example.

  Args:
    logits: [..., K].
    labels: distributions over classes, [..., K].

  Returns:
    float32 [...], in nats.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.sum(labels * log_probs, axis=-1)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the summed binary cross-entropy of each example.

  Args:
    logits: [..., K].
    labels: a probability for each class, [..., K].

  Returns:
    float32 [...], in nats.
  """
  logits = logits.astype(jnp.float32)
  losses = labels * jax.nn.log_sigmoid(logits)
  losses += (1 - labels) * jax.nn.log_sigmoid(-logits)
  return -jnp.sum(losses, axis=-1)


def topk_correct(
  logits: jax.Array, labels: jax.Array, topk: tuple[int, ...] = (1, 5)
) -> dict[str, jax.Array]:
  """Tells whose label is among the k highest logits.

  Args:
    logits: [B, K].
    labels: int [B].
    topk: values of k.

  Returns:
    {'top_{k}_acc': float32 [B] of zeros and ones} for each k. A class that ties
    with the label counts as higher, so equal or NaN logits are correct only
    where k covers all classes.
  """
  num_classes = logits.shape[-1]
  of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  lower = jnp.sum(logits < of_label, axis=-1)
  return {f'top_{k}_acc': jnp.float32(lower >= num_classes - k) for k in topk}


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """Returns the decay of an average at a step, from 0.

  min(decay, (1 + step) / (10 + step)), as TensorFlow 1's
  ExponentialMovingAverage with `num_updates`: early values are forgotten soon.
  """
  step = jnp.asarray(step, jnp.float32)
  return jnp.minimum(decay, (1 + step) / (10 + step))


def ema_update(average: Any, value: Any, decay: jax.typing.ArrayLike) -> Any:
  """Takes a tree of values into their exponential moving average.

  Args:
    average: tree of float32 arrays.
    value: the same tree, as it is now.
    decay: how much of the average stays, such as `ema_decay` gives.

  Returns:
    decay * average + (1 - decay) * value. Integers are copied from `value`.
  """

  def update(old, new):
    if not jnp.issubdtype(new.dtype, jnp.floating):
      return new
    return old - (1 - decay) * (old - new)

  return jax.tree.map(update, average, value)
