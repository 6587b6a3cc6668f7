"""Where in an image a network found what speaks for a class."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets import network, zoo

_SMALLEST_SIDE = 7  # A map with less says little about where.


class Attention:
  """Maps of what speaks for a class, by gradients of its logit.

  Attributes:
    grad_cam: Takes an image (float32 [N, N, 3], normalized), the index of one
      of the five maps in `Model.features`, and a class. Returns Grad-CAM (arXiv
      1610.02391), float32 [h, w]: the map's channels are added up, each times
      the mean over all positions of the logit's derivative by it; negative sums
      become 0.
    input_gradient: Takes an image and a class. Returns how strongly the logit
      changes with each pixel, float32 [N, N]: the length of the derivative by
      the pixel's three values.
  """

  def __init__(self, model: zoo.Model, params: hk.Params, state: hk.State):
    weights = jax.tree.map(jnp.asarray, (params, state))

    def forward(weights, image):
      images = image[None]
      return model.apply(*weights, None, images, is_training=False)[0]

    def grad_cam(weights, image, stage, label):
      def logit_and_map(zeros):
        with network.tapped({stage: zeros}):
          out = forward(weights, image)
        return out['logits'][0, label], out['features'][stage]

      shapes = jax.eval_shape(forward, weights, image)['features']
      zeros = jnp.zeros(shapes[stage].shape)
      slopes, maps = jax.grad(logit_and_map, has_aux=True)(zeros)
      scale = slopes.mean(axis=(1, 2), keepdims=True)
      return jax.nn.relu((scale * maps).sum(axis=-1))[0]

    def input_gradient(weights, image, label):
      def logit(image):
        return forward(weights, image)['logits'][0, label]

      return jnp.linalg.norm(jax.grad(logit)(image), axis=-1)

    # Without the weights as arguments, XLA would fold them into the program.
    self.grad_cam = functools.partial(
      jax.jit(grad_cam, static_argnums=2), weights
    )
    self.input_gradient = functools.partial(jax.jit(input_gradient), weights)


def best_stage(image_size: int) -> int:
  """Return the deepest of the five maps that still says where something is."""
  sides = image_size // 2 ** np.arange(1, 6)
  return max((sides >= _SMALLEST_SIDE).sum() - 1, 0)
