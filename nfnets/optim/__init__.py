"""Optimizers as optax transformations: AGC, SAM, and the papers' recipe."""

from nfnets.optim.agc import (
  AdaptiveGradClipState,
  adaptive_grad_clip,
  unitwise_norm,
)
from nfnets.optim.layers import choose, scale_layers, stop_gradients, train_only
from nfnets.optim.per_example import per_example_adaptive_grad_clip
from nfnets.optim.recipe import (
  clip_mask,
  clipped_layers,
  decay_mask,
  make_optimizer,
  sgd_agc,
)
from nfnets.optim.sam import sam, sam_ascent, sam_descent
from nfnets.optim.schedules import warmup_cosine

__all__ = [
  'AdaptiveGradClipState',
  'adaptive_grad_clip',
  'choose',
  'clip_mask',
  'clipped_layers',
  'decay_mask',
  'make_optimizer',
  'per_example_adaptive_grad_clip',
  'sam',
  'sam_ascent',
  'sam_descent',
  'scale_layers',
  'sgd_agc',
  'stop_gradients',
  'train_only',
  'unitwise_norm',
  'warmup_cosine',
]
