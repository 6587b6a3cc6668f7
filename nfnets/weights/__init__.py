"""Weights: download, read, identify, convert and fold."""

from typing import TYPE_CHECKING

from nfnets import lazy

if TYPE_CHECKING:
  from nfnets.weights.fetching import find
  from nfnets.weights.files import (
    Weights,
    load_haiku_file,
    load_tensors,
    load_weights,
    save_weights,
  )
  from nfnets.weights.folding import fold_weights, freeze
  from nfnets.weights.matching import Match, check_fits, identify, last_layer
  from nfnets.weights.metadata import describe
  from nfnets.weights.opening import open_model, read_metadata, read_weights
  from nfnets.weights.timm import from_timm, to_timm

__all__ = [
  'Match',
  'Weights',
  'check_fits',
  'describe',
  'find',
  'fold_weights',
  'freeze',
  'from_timm',
  'identify',
  'last_layer',
  'load',
  'load_haiku_file',
  'load_tensors',
  'load_weights',
  'open_model',
  'read_metadata',
  'read_weights',
  'save_weights',
  'to_timm',
]

_HOMES = {
  'fetching': ('find',),
  'files': (
    'Weights',
    'load_haiku_file',
    'load_tensors',
    'load_weights',
    'save_weights',
  ),
  'folding': ('fold_weights', 'freeze'),
  'matching': ('Match', 'check_fits', 'identify', 'last_layer'),
  'metadata': ('describe',),
  'opening': ('open_model', 'read_metadata', 'read_weights'),
  'timm': ('from_timm', 'to_timm'),
}
__getattr__, __dir__ = lazy.attributes(
  __name__,
  {
    # It also chooses the runtime.
    'load': 'nfnets.inference.loading',
    **{
      name: f'nfnets.weights.{module}'
      for module, names in _HOMES.items()
      for name in names
    },
  },
)
