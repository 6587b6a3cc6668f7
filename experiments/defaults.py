"""Fills unset settings from the weights and the dataset, and checks them all.

Also reads the weights that a run starts from, or evaluates.
"""

import functools
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from experiments import step as step_lib
from nfnets import base, errors, network, weights, zoo
from nfnets.data import augmentation, builders, preprocess
from nfnets.inference import classes

# Epochs, smallest number of steps, learning rate and clipping, for datasets of
# any size. Rates and clippings are measured: docs/finetuning.md.
_EPOCHS, _LEAST_STEPS, _LR, _CLIPPING = 20, 300, 0.4, 0.01
_FROM_SCRATCH = 60, 900, 0.1, 0.16

_wrong = functools.partial(errors.UserError, status=2)


def set_model_defaults(config: ml_collections.ConfigDict) -> None:
  """Set the model, its sizes and preprocessing where they are unset.

  Args:
    config: the experiment's, which is changed.

  Raises:
    UserError: if there is no such model, neither weights nor a model, or the
      weights cannot be read.
  """
  metadata = {}
  if not config.model:
    if not config.weights:
      raise _wrong(
        'Neither weights nor a model is named: --weights=nfnet_f0 fine-tunes, '
        'and --model=nfnet_f0 trains from scratch.'
      )
    with errors.prefix(f'weights: {config.weights}'):
      model = weights.open_model(config.weights)[0]
      metadata = weights.read_metadata(config.weights)
    config.model, entry = model.name, model.entry
    given = config.model_kwargs.to_dict()
    config.model_kwargs = {**metadata.get('model_kwargs', {}), **given}
  else:
    with errors.prefix('model', status=2):
      entry = zoo.get_entry(config.model)
  for key, value in (
    ('image_size', entry.train_size),
    ('eval_preproc', entry.eval_preproc),
    ('train_preproc', metadata.get('train_preprocessing', 'crop_flip')),
  ):
    config[key] = config[key] or value
  if not config.eval_image_size:
    ratio = entry.test_size / entry.train_size
    config.eval_image_size = round(config.image_size * ratio)
  elif config.eval_image_size < config.image_size:
    logging.warning(
      'eval_image_size=%d is smaller than image_size=%d, which costs accuracy; '
      '--eval_image_size=None follows image_size.',
      config.eval_image_size,
      config.image_size,
    )


def set_training_defaults(
  config: ml_collections.ConfigDict,
  num_classes: int,
  num_examples: int,
  training_steps: int | None = None,
) -> None:
  """Set the classes, length and rate of training where they are unset.

  Args:
    config: the experiment's, which is changed.
    num_classes: number of classes of the dataset.
    num_examples: number of examples per epoch.
    training_steps: number of updates, if set.
  """
  config.num_classes = config.num_classes or num_classes
  epochs, least_steps, lr, clipping = (
    (_EPOCHS, _LEAST_STEPS, _LR, _CLIPPING) if config.weights else _FROM_SCRATCH
  )
  epoch = num_examples / config.train_batch_size
  config.num_epochs = config.num_epochs or float(
    training_steps / epoch
    if training_steps
    else max(epochs, least_steps / epoch)
  )
  config.lr = config.lr or lr
  kwargs = config.optimizer.kwargs
  if 'clipping' in kwargs and kwargs.clipping is None:
    kwargs.clipping = clipping
  if config.lr_schedule.warmup_part:
    part = config.lr_schedule.warmup_part * config.num_epochs
    config.lr_schedule.warmup_epochs = part


def restore_settings(
  config: ml_collections.ConfigDict, settings: dict[str, Any]
) -> None:
  """Set what is unset to the settings of a run that is continued or evaluated.

  Its initial weights are then not needed any more.

  Args:
    config: the experiment's, which is changed.
    settings: the settings of the run, by name.
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
  keys = ['model', 'image_size', 'eval_preproc', 'train_preproc']
  # The evaluation size follows from the training size.
  if config.image_size in (None, settings['image_size']):
    keys.append('eval_image_size')
  for key in (*keys, 'num_epochs', 'lr'):
    config[key] = config[key] or settings[key]
  kwargs = config.optimizer.kwargs
  if 'clipping' in kwargs and kwargs.clipping is None:
    kwargs.clipping = settings['optimizer.kwargs.clipping']


def check(config: ml_collections.ConfigDict, num_devices: int) -> None:
  """Raise UserError for settings that are wrong by themselves."""
  for key, known in (
    ('which_loss', step_lib.LOSSES),
    ('which_ema', step_lib.EMAS),
    ('eval_subset', ('test', 'valid')),
    ('class_weights', (None, 'balanced')),
  ):
    if config[key] not in known:
      raise _wrong(
        f'{key} is {config[key]!r}; it must be one of '
        f'{", ".join(map(str, known))}.'
      )
  for key in (
    *('train_batch_size', 'eval_batch_size', 'image_size', 'eval_image_size'),
    *('accumulate_steps', 'augmentation_multiplicity', 'layer_decay'),
    *('num_classes', 'num_epochs', 'lr', 'lr_head'),
  ):
    if config[key] is not None and config[key] <= 0:
      raise _wrong(f'{key} is {config[key]}; it must be positive.')
  with errors.prefix('train_preproc', status=2):
    size = (config.image_size, config.image_size)
    preprocess.train_preprocessing(config.train_preproc, size)
  with errors.prefix('eval_preproc', status=2):
    preprocess.check_eval_mode(config.eval_preproc)
  with errors.prefix('augment_name', status=2):
    plan = augmentation.parse(config.augment_name or '')
    augmentation.augmenter(plan, config.augment_kwargs)
  with errors.prefix('remat', status=2):
    network.count_remat(config.remat)
  batch, parts = config.train_batch_size, config.accumulate_steps
  share = batch // num_devices
  for is_wrong, message in (
    (
      batch % num_devices,
      f'train_batch_size is {batch}, which {num_devices} devices do not '
      'divide.',
    ),
    (
      share % parts,
      f'accumulate_steps is {parts}, which does not divide the {share} images '
      'of each device.',
    ),
    (
      config.class_weights and config.balance_classes,
      'class_weights and balance_classes both make up for unequal classes, and '
      'together would do so twice; set one of them.',
    ),
    (
      config.fake_data and (config.class_weights or config.balance_classes),
      'class_weights and balance_classes need a dataset, but fake_data is '
      'True: random images have equal classes.',
    ),
    (
      config.sam_rho < 0 or not 0 < config.sam_fraction <= 1,
      f'sam_rho is {config.sam_rho} and sam_fraction {config.sam_fraction}; '
      'they must be at least 0, and in (0, 1].',
    ),
  ):
    if is_wrong:
      raise _wrong(message)


def read_weights(built: Any, is_training: bool) -> weights.Weights:
  """Read and check the setting `weights`, and log what it holds.

  In a run of several processes each calls this and reads the file.

  Args:
    built: the recipe.
    is_training: whether to start from the weights. Then a last layer for other
      classes than the dataset's, which is to be replaced by a new one, is left
      out. In evaluation the dataset may have some of the classes of the
      weights, and `config.num_classes` becomes that of the weights.

  Returns:
    Parameters and model state, float32. The last layer has the classes of the
    dataset first, in its order.

  Raises:
    UserError: if there is no such file of weights, or they are not those of the
      model, cannot be trained, or are evaluated on a dataset that has other
      classes.
  """
  config, path = built.config, built.config.weights
  with errors.prefix(f'weights: {path}'):
    params, state = weights.read_weights(path)
  if is_training and any(base.FOLDED in leaves for leaves in params.values()):
    raise _wrong(
      f'weights: {path} has its kernels standardized for inference, and '
      'cannot be trained any more; it can be evaluated.'
    )
  head, num_classes = weights.last_layer(built.model, params)
  with errors.prefix(f'weights: {path}', status=2):
    model = zoo.with_num_classes(built.model, num_classes)
    weights.check_fits(params, model, state)
  what = 'Starting from' if is_training else 'Evaluating'
  logging.info('%s the weights of %s', what, path)
  # Numbers of the dataset's classes among those of the weights.
  logits, message = [*range(num_classes)], ''
  replaced = 'it was replaced by a new one'
  if not num_classes and is_training:
    message = (
      f'{path} has no last layer; it got a new one for {config.num_classes} '
      'classes.'
    )
  elif is_training and num_classes != config.num_classes:
    logits = []
    message = (
      f'The last layer of {path} is for {num_classes} classes; {replaced} for '
      f'{config.num_classes}.'
    )
  elif built.builder is not None:  # Not random images.
    try:
      logits, message = classes.match(
        builders.label_names(built.builder),
        weights.read_metadata(path).get('class_names'),
        num_classes,
        config.which_dataset,
      )
    except errors.UserError as error:
      if not is_training:
        raise _wrong(f'weights: {path}: {error}') from error
      logits = []
      message = (
        f'The last layer of {path} is for other classes than those of '
        f'{config.which_dataset}; {replaced}.'
      )
  if not is_training:
    config.num_classes = num_classes
  if message:
    logging.info('%s', message)
  last = {k: v for k, v in params.items() if k in head and logits}
  last = jax.tree.map(lambda x: x[..., logits] if np.ndim(x) else x, last)
  body = {k: v for k, v in params.items() if k not in head}
  return weights.Weights(body | last, state)
