"""What the settings of an experiment mean, and which are wrong."""

from typing import Any

import jax
import ml_collections
import optax

from experiments import step as step_lib
import nfnets
from nfnets import optim, zoo
from nfnets.data import augmentation, dataset, preprocess

# Images that an epoch of fake data counts.
FAKE_EXAMPLES = 10_000


class ConfigError(ValueError):
  """Settings that do not go together, with the devices or with the dataset."""


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError for settings that are wrong by themselves."""
  for key, known in (
    ('which_loss', step_lib.LOSSES),
    ('which_ema', step_lib.EMAS),
    ('eval_subset', ('test', 'valid')),
  ):
    if config[key] not in known:
      raise ConfigError(
        f'{key} is {config[key]!r}; it must be one of {", ".join(known)}.'
      )
  try:
    size = (config.image_size, config.image_size)
    preprocess.train_preprocessing(config.train_preproc, size)
    preprocess.check_eval_mode(config.eval_preproc)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  try:
    plan = augmentation.parse(config.augment_name)
    augmentation.augmenter(plan, config.augment_kwargs)
  except ValueError as error:
    raise ConfigError(f'augment_name: {error}') from error
  if config.train_batch_size % jax.device_count():
    raise ConfigError(
      f'train_batch_size is {config.train_batch_size}, which '
      f'{jax.device_count()} devices do not divide.'
    )
  for key in (
    'train_batch_size',
    'eval_batch_size',
    'image_size',
    'eval_image_size',
    'num_epochs',
    'lr',
    'accumulate_steps',
  ):
    if config[key] <= 0:
      raise ConfigError(f'{key} is {config[key]}; it must be positive.')
  share = config.train_batch_size // jax.device_count()
  if share % config.accumulate_steps:
    raise ConfigError(
      f'accumulate_steps is {config.accumulate_steps}, which does not divide '
      f'the {share} images of each device.'
    )
  if config.sam_rho < 0 or not 0 < config.sam_fraction <= 1:
    raise ConfigError(
      f'sam_rho is {config.sam_rho} and sam_fraction {config.sam_fraction}; '
      'they must be at least 0, and in (0, 1].'
    )


def open_dataset(config: ml_collections.ConfigDict) -> tuple[Any, int]:
  """Opens the dataset that the settings name.

  Args:
    config: the experiment's.

  Returns:
    TFDS's builder, None for fake data, and the number of training examples.

  Raises:
    ConfigError: if the number of classes differs.
    nfnets.data.dataset.DatasetError: if the dataset cannot be used.
  """
  if config.fake_data:
    return None, FAKE_EXAMPLES
  builder = dataset.load_builder(config.which_dataset, config.data_dir or None)
  num_classes = dataset.num_classes(builder)
  if num_classes != config.num_classes:
    raise ConfigError(
      f'{config.which_dataset} has {num_classes} classes, but num_classes is '
      f'{config.num_classes}.'
    )
  return builder, dataset.num_examples(builder, train_split(config))


def train_split(config: ml_collections.ConfigDict) -> str:
  """Returns the split to train on: all that evaluation does not need."""
  return 'train_and_valid' if config.eval_subset == 'test' else 'train'


def create_model(
  config: ml_collections.ConfigDict, num_classes: int | None = None
) -> nfnets.Model:
  """Builds the network that the settings name.

  Args:
    config: the experiment's.
    num_classes: another number of classes than the config's, if not None.

  Raises:
    ConfigError: if there is no such network, or no such argument of it.
  """
  try:
    return zoo.create_model(
      config.model,
      config.num_classes if num_classes is None else num_classes,
      remat=config.remat,
      **config.model_kwargs,
    )
  except (TypeError, ValueError) as error:
    raise ConfigError(f'model or model_kwargs: {error}') from error


def create_schedule(
  config: ml_collections.ConfigDict, steps_per_epoch: float
) -> optax.Schedule:
  """Builds the learning rate schedule that the settings describe.

  Raises:
    ConfigError: if there is no such schedule, or its times do not fit.
  """
  peak = config.lr
  if config.lr_scale_by_bs:
    peak *= config.train_batch_size / 256
  if config.lr_schedule.name == 'constant':
    return optax.constant_schedule(peak)
  if config.lr_schedule.name != 'warmup_cosine':
    raise ConfigError(
      f'lr_schedule.name is {config.lr_schedule.name!r}; it must be '
      'warmup_cosine or constant.'
    )
  try:
    return optim.warmup_cosine(
      peak,
      config.lr_schedule.warmup_epochs * steps_per_epoch,
      config.num_epochs * steps_per_epoch,
      config.lr_schedule.end,
    )
  except ValueError as error:
    raise ConfigError(f'lr_schedule: {error}') from error


def create_optimizer(
  config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Builds the optimizer that the settings name.

  Raises:
    ConfigError: if there is no such optimizer, or no such argument of it.
  """
  try:
    optimizer = optim.make_optimizer(
      config.optimizer.name, schedule, **config.optimizer.kwargs
    )
  except (TypeError, ValueError) as error:
    raise ConfigError(
      f'optimizer: {error} A config file can set other arguments, with '
      "optimizer = {'name': ..., 'kwargs': {...}}."
    ) from error
  return optim.sam(optimizer, config.sam_rho) if config.sam_rho else optimizer


def check(config: ml_collections.ConfigDict) -> int:
  """Finds out all that is wrong, before anything is made or compiled.

  Args:
    config: the experiment's.

  Returns:
    The number of training examples.

  Raises:
    ConfigError: for settings that are wrong.
    nfnets.data.dataset.DatasetError: if the dataset cannot be used.
  """
  check_config(config)
  _, num_examples = open_dataset(config)
  create_model(config)
  steps_per_epoch = num_examples / config.train_batch_size
  create_optimizer(config, create_schedule(config, steps_per_epoch))
  return num_examples
