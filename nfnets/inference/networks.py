"""A model together with its weights."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets import weights, zoo


@dataclasses.dataclass(frozen=True)
class Network:
  """A model with its weights."""

  model: zoo.Model
  params: hk.Params
  state: hk.State

  def logits(self, images: np.ndarray) -> jax.Array:
    """Returns [B, num_classes] for preprocessed images."""
    return self.model.logits(self.params, images, self.state)

  def embed(self, images: np.ndarray) -> jax.Array:
    """Returns pooled features [B, C] for preprocessed images."""
    return self.model.embed(self.params, images, self.state)


def open_network(
  path: str, name: str | None = None, image_size: int | None = None
) -> Network:
  """Reads weights of a known model, as `weights.open_model` does.

  Args:
    path: the file.
    name: the model's name; the one that the weights fit if None.
    image_size: side of the images, in pixels; the model's test size if None.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is no file of weights, or of no model, or of another one.
  """
  model, params, state = weights.open_model(path, name)
  if image_size:
    entry = dataclasses.replace(model.entry, test_size=image_size)
    model = dataclasses.replace(model, entry=entry)
  params, state = jax.tree.map(jnp.asarray, (params, state))
  return Network(model, params, state)
