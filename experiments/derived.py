"""Settings that are left open, and follow from the weights and the dataset."""

from typing import Any

import ml_collections

from nfnets import weights, zoo


class WeightsError(RuntimeError):
  """Weights cannot be read."""


# What a dataset of any size gets: an image is seen so often, but there are at
# least so many steps. Rates and clippings are measured: docs/finetuning.md.
_EPOCHS, _LEAST_STEPS, _LR, _CLIPPING = 20, 300, 0.4, 0.01
_FROM_SCRATCH = 60, 900, 0.1, 0.16


def fill_in_model(config: ml_collections.ConfigDict) -> None:
  """Sets the model, its sizes and preprocessing where they are left open.

  Args:
    config: the experiment's, which is changed.

  Raises:
    WeightsError: if the weights cannot be read, or are of no model.
    ValueError: if there is no such model, or neither weights nor a model.
  """
  metadata = {}
  if not config.model:
    if not config.weights:
      raise ValueError(
        'Neither weights nor a model is named: --weights=nfnet_f0 fine-tunes, '
        'and --model=nfnet_f0 trains from scratch.'
      )
    try:
      model = weights.open_model(config.weights)[0]
      metadata = weights.read_metadata(config.weights)
    except (OSError, ValueError) as error:
      raise WeightsError(f'weights: {error}') from error
    config.model, entry = model.name, model.entry
    given = config.model_kwargs.to_dict()
    config.model_kwargs = {**metadata.get('model_kwargs', {}), **given}
  else:
    entry = zoo.get_entry(config.model)
  for key, value in (
    ('image_size', entry.train_size),
    ('eval_image_size', entry.test_size),
    ('eval_preproc', entry.eval_preproc),
    ('train_preproc', metadata.get('train_preprocessing', 'crop_flip')),
  ):
    config[key] = config[key] or value


def fill_in_training(
  config: ml_collections.ConfigDict, num_classes: int, num_examples: int
) -> None:
  """Sets how long and how fast to train, where that is left open.

  Args:
    config: the experiment's, which is changed.
    num_classes: of the dataset.
    num_examples: of an epoch.
  """
  config.num_classes = config.num_classes or num_classes
  epochs, least_steps, lr, clipping = (
    (_EPOCHS, _LEAST_STEPS, _LR, _CLIPPING) if config.weights else _FROM_SCRATCH
  )
  epoch = num_examples / config.train_batch_size
  if config.num_steps:
    config.num_epochs = config.num_steps / epoch
  config.num_epochs = config.num_epochs or float(
    max(epochs, least_steps / epoch)
  )
  config.lr = config.lr or lr
  kwargs = config.optimizer.kwargs
  if kwargs.get('clipping') == 0:
    kwargs.clipping = clipping
  if config.lr_schedule.warmup_part:
    part = config.lr_schedule.warmup_part * config.num_epochs
    config.lr_schedule.warmup_epochs = part


def recall(config: ml_collections.ConfigDict, settings: dict[str, Any]) -> None:
  """Takes what is left open from a run that has begun.

  So that it goes on, and is evaluated, as it began, without its first weights.

  Args:
    config: the experiment's, which is changed.
    settings: of the run, by name.
  """
  if not config.model:
    prefix = 'model_kwargs.'
    config.model_kwargs = {
      **{
        key.removeprefix(prefix): value
        for key, value in settings.items()
        if key.startswith(prefix)
      },
      **config.model_kwargs.to_dict(),
    }
  for key in (
    *('model', 'image_size', 'eval_image_size', 'eval_preproc'),
    *('train_preproc', 'num_epochs', 'lr'),
  ):
    config[key] = config[key] or settings[key]
  kwargs = config.optimizer.kwargs
  if kwargs.get('clipping') == 0:
    kwargs.clipping = settings['optimizer.kwargs.clipping']
