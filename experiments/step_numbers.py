"""The numbers that a compiled step can take as arguments.

With `numbers_as_arguments` they are in the optimizer's state, where
`optax.inject_hyperparams` keeps them, in place of constants in the program.
"""

import ml_collections
import numpy as np
import optax

# By their names there, the settings that they are of.
SETTINGS = {
  'peak': 'lr',
  'clipping': 'optimizer.kwargs.clipping',
  'weight_decay': 'optimizer.kwargs.weight_decay',
}


def peak_learning_rate(config: ml_collections.ConfigDict) -> float:
  """Returns the highest rate that the settings name, for their batch."""
  scale = config.train_batch_size / 256 if config.lr_scale_by_bs else 1
  return config.lr * scale


def of(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """Returns {name: float32 scalar} of those that the settings have.

  They are finite, as all that is in a checkpoint: no unit exceeds a clipping of
  the largest number.
  """
  kwargs = config.optimizer.kwargs
  values = {'peak': peak_learning_rate(config)}
  values |= {name: kwargs[name] for name in SETTINGS if name in kwargs}
  most = np.finfo(np.float32).max
  return {k: np.asarray(min(v, most), np.float32) for k, v in values.items()}


def set_in(
  opt_state: optax.OptState, config: ml_collections.ConfigDict
) -> optax.OptState:
  """Sets the numbers in an optimizer's state to those of the settings.

  Those in a checkpoint, or of the run that a program was made for, may be
  others.
  """
  if not config.numbers_as_arguments:
    return opt_state
  return optax.tree.set(opt_state, **of(config))
