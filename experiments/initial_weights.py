"""The file of weights that the settings name: to start from, or to evaluate."""

import functools
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from experiments import recipe
from experiments.derived import WeightsError
import nfnets
from nfnets import base, weights


def read(built: recipe.Recipe, is_training: bool) -> weights.Weights:
  """Reads and checks the setting `weights`, and logs what it holds.

  In a run of several processes each calls this and reads the file.

  Args:
    built: the recipe.
    is_training: whether to start from the weights. Then a last layer of another
      size than `config.num_classes`, which is to be replaced by a new one, is
      left out.

  Returns:
    Parameters and model state, float32.

  Raises:
    WeightsError: if there is no such file, or not one of weights.
    recipe.ConfigError: if the weights are not those of the model, or cannot
      be trained.
  """
  config, model = built.config, built.model
  path = config.weights
  params, state = _read_file(path)
  head, num_classes = set(), config.num_classes
  if is_training:
    if any(base.FOLDED in leaves for leaves in params.values()):
      raise recipe.ConfigError(
        f'weights: {path} has its kernels standardized for inference, and '
        'cannot be trained any more; it can be evaluated.'
      )
    head, num_classes = _last_layer(config, params)
    if num_classes != config.num_classes:
      model = recipe.create_model(config, num_classes)
  try:
    weights.check_fits(params, model, state)
  except ValueError as error:
    raise recipe.ConfigError(f'weights: {path}: {error}') from error
  what = 'Starting from' if is_training else 'Evaluating'
  logging.info('%s the weights of %s', what, path)
  if num_classes != config.num_classes:
    message = (
      f'The last layer of {path} is for {num_classes} classes; it was replaced '
      f'by a new one for {config.num_classes}.'
    )
    if not num_classes:
      message = (
        f'{path} has no last layer; it got a new one for {config.num_classes} '
        'classes.'
      )
    logging.info('%s', message)
    params = {k: v for k, v in params.items() if k not in head}
  return weights.Weights(params, state)


def _read_file(path: str) -> weights.Weights:
  try:
    return weights.read_weights(path)
  except (OSError, ValueError) as error:
    where = '' if path in str(error) else f'{path}: '
    raise WeightsError(f'weights: {where}{error}') from error


def _last_layer(
  config: ml_collections.ConfigDict, params: Any
) -> tuple[set[str], int]:
  """Returns the last layer's modules, and for how many classes the file's is.

  Where the file's parameters are another model's, the number is the config's.
  """
  body = _modules(recipe.create_model(config, num_classes=0))
  head = _modules(recipe.create_model(config)) - body
  if params.keys() == body:
    return head, 0
  if params.keys() - head != body:
    return head, config.num_classes
  sizes = {
    np.shape(leaf)[-1]
    for module in head & params.keys()
    for leaf in params[module].values()
    if np.ndim(leaf)
  }
  return head, sizes.pop() if len(sizes) == 1 else config.num_classes


def _modules(model: nfnets.Model) -> set[str]:
  # No parameter's shape depends on the size of the image.
  init = functools.partial(model.init, image_size=32)
  return set(jax.eval_shape(init, jax.random.key(0))[0])
