"""Optimizers as optax transformations: AGC, SAM, and the papers' recipe."""

from nfnets.optim.agc import (
  AdaptiveGradClipState,
  adaptive_grad_clip,
  unitwise_norm,
)
from nfnets.optim.recipe import clip_mask, decay_mask, make_optimizer, sgd_agc
from nfnets.optim.sam import sam, sam_ascent, sam_descent
from nfnets.optim.schedules import warmup_cosine

__all__ = [
  'AdaptiveGradClipState',
  'adaptive_grad_clip',
  'clip_mask',
  'decay_mask',
  'make_optimizer',
  'sam',
  'sam_ascent',
  'sam_descent',
  'sgd_agc',
  'unitwise_norm',
  'warmup_cosine',
]
