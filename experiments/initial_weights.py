"""The file of weights that the settings name: to start from, or to evaluate."""

from absl import logging

from experiments import recipe
from experiments.derived import WeightsError
from nfnets import base, weights, zoo
from nfnets.data import builders


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
    head, num_classes = weights.last_layer(model, params)
    if num_classes != config.num_classes:
      model = zoo.with_num_classes(model, num_classes)
  try:
    weights.check_fits(params, model, state)
  except ValueError as error:
    raise recipe.ConfigError(f'weights: {path}: {error}') from error
  what = 'Starting from' if is_training else 'Evaluating'
  logging.info('%s the weights of %s', what, path)
  message = ''
  if not num_classes:
    message = (
      f'{path} has no last layer; it got a new one for {config.num_classes} '
      'classes.'
    )
  elif num_classes != config.num_classes:
    message = (
      f'The last layer of {path} is for {num_classes} classes; it was replaced '
      f'by a new one for {config.num_classes}.'
    )
  elif is_training and _has_other_classes(built, path):
    message = (
      f'The last layer of {path} is for other classes than those of '
      f'{config.which_dataset}; it was replaced by a new one.'
    )
  if message:
    logging.info('%s', message)
    params = {k: v for k, v in params.items() if k not in head}
  return weights.Weights(params, state)


def _has_other_classes(built: recipe.Recipe, path: str) -> bool:
  """Tells whether the weights' classes are known not to be the dataset's."""
  names = weights.read_metadata(path).get('class_names')
  if not names or built.builder is None:
    return False
  return names != builders.class_names(built.builder)


def _read_file(path: str) -> weights.Weights:
  try:
    return weights.read_weights(path)
  except (OSError, ValueError) as error:
    where = '' if path in str(error) else f'{path}: '
    raise WeightsError(f'weights: {where}{error}') from error
