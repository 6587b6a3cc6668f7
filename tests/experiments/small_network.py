"""A network with few of an NFNet's layers, to compile soon."""

import haiku as hk
import jax
import jax.numpy as jnp

from experiments.configs import digits
from nfnets import base, imagenet


def config(**settings):
  """Returns the experiment's settings for digits, with some changed."""
  found = digits.get_config().experiment_kwargs.config
  found.update(settings)
  return found


class Network:
  """As `nfnets.Model`: convolutions `conv0` ..., and the layer `linear`."""

  name = 'small'

  def __init__(self, channels=(4,), drop_rate=0.0, size=8):
    def forward(images, is_training):
      x = images
      for i, number in enumerate(channels):
        x = base.WSConv2D(number, 3, stride=2, name=f'conv{i}')(x)
        x = jax.nn.gelu(x)
      x = jnp.mean(x, axis=(1, 2))
      if drop_rate and is_training:
        x = hk.dropout(hk.next_rng_key(), drop_rate, x)
      return {'logits': hk.Linear(10, name='linear')(x)}

    network = hk.transform_with_state(forward)
    images = jnp.zeros((1, size, size, 3))
    self.init = lambda rng: network.init(rng, images, False)
    self.apply = network.apply
    self.normalize = imagenet.normalize

  def logits(self, params, images):
    out, _ = self.apply(params, {}, None, images, is_training=False)
    return out['logits']
