"""Reading, recognizing, converting and folding weights."""

from nfnets.weights.files import (
  Weights,
  load_haiku_file,
  load_tensors,
  load_weights,
  read_metadata,
  save_weights,
)
from nfnets.weights.folding import fold_weights, freeze
from nfnets.weights.matching import (
  Match,
  check_fits,
  identify,
  open_model,
  read_weights,
)
from nfnets.weights.metadata import describe
from nfnets.weights.timm import from_timm, to_timm

__all__ = [
  'Match',
  'Weights',
  'check_fits',
  'describe',
  'fold_weights',
  'freeze',
  'from_timm',
  'identify',
  'load_haiku_file',
  'load_tensors',
  'load_weights',
  'open_model',
  'read_metadata',
  'read_weights',
  'save_weights',
  'to_timm',
]
