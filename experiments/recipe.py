"""A config becomes model, optimizer, schedule, data and seed, here and once.

Training, evaluation, the tools and the benchmarks all use the `Recipe` that
`build` returns; what is wrong with the settings is found out on the way.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments import derived, gradients, step_numbers
from experiments import loss as loss_lib
from experiments import privacy as privacy_lib
from experiments import step as step_lib
import nfnets
from nfnets import base, optim, zoo
from nfnets.data import augmentation, builders, dataset, preprocess
from nfnets.optim import layers
from nfnets.weights import shapes

# Images that an epoch of fake data counts.
_FAKE_EXAMPLES = 10_000
# Their classes, where num_classes is left open.
_FAKE_CLASSES = 10
# What a setting can call them by.
_INITIALIZERS = {'zeros': jnp.zeros, 'ones': jnp.ones}
# Batches of fake data that an evaluation takes.
_FAKE_EVAL_BATCHES = 2


class ConfigError(ValueError):
  """Settings that do not go together, with the devices or with the dataset."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What the settings of an experiment mean.

  Attributes:
    config: the settings, `experiment_kwargs.config` of JAXline's.
    model: the network.
    schedule: the learning rate by step, from 0.
    optimizer: follows the schedule; with `config.sam_rho` one of `optim.sam`.
    builder: TFDS's; None for fake data.
    num_examples: of an epoch of training.
    data_seed: decides on the order of the examples and on what happens to them.
    privacy: what private training tells of an example; None if it is not.
  """

  config: ml_collections.ConfigDict
  model: nfnets.Model
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation
  builder: Any
  num_examples: int
  data_seed: int
  privacy: privacy_lib.Privacy | None = None

  @property
  def num_steps(self) -> int:
    """How many updates `config.num_epochs` make; at least one."""
    images = self.config.num_epochs * self.num_examples
    # A whole number of steps need not be one of epochs.
    return max(1, int(images / self.config.train_batch_size + 1e-6))

  def num_eval_examples(self, split: str | None = None) -> int:
    """Returns how many examples an evaluation counts; see `eval_batches`."""
    if self.builder is None:
      return _FAKE_EVAL_BATCHES * self.eval_batch_size
    return dataset.num_examples(self.builder, split or self.config.eval_subset)

  @property
  def test_split(self) -> str:
    """What the test split is called where it comes from."""
    if self.builder is None:
      return 'random images'
    return builders.find_split(self.builder, 'test').tfds_split

  @property
  def eval_batch_size(self) -> int:
    """The setting, and as many more as make the devices' shares equal."""
    size = self.config.eval_batch_size
    return size + -size % jax.device_count()

  def num_eval_batches(self, split: str | None = None) -> int:
    """Returns how many batches it takes; what the last lacks is masked."""
    return -(-self.num_eval_examples(split) // self.eval_batch_size)

  def train_batches(self, first_step: int = 0, **processes: int):
    """Returns the batches of training, without end.

    Args:
      first_step: the step, from 0, that the first batch is for.
      **processes: `process_index` and `process_count`, if not JAX's own.

    Returns:
      An iterator; see `nfnets.data.dataset.train_batches`.

    Raises:
      nfnets.data.dataset.DatasetError: if the split cannot be used.
    """
    config = self.config
    kwargs = {
      'image_size': config.image_size,
      'global_batch_size': config.train_batch_size,
      'augment_name': config.augment_name,
      'augment_before_mix': config.augment_before_mix,
      'augmentation_multiplicity': config.augmentation_multiplicity,
      'transpose': config.transpose,
      **(processes or _processes()),
    }
    if self.builder is None:
      return dataset.fake_batches(num_classes=config.num_classes, **kwargs)
    return dataset.train_batches(
      self.builder,
      _train_split(config),
      preprocessing=config.train_preproc,
      augment_kwargs=config.augment_kwargs,
      skip_corrupt=config.skip_corrupt,
      seed=self.data_seed,
      first_step=first_step,
      **kwargs,
    )

  def eval_batches(self, split: str | None = None):
    """Returns the batches of one evaluation: every example once.

    Args:
      split: 'valid' or 'test'; `config.eval_subset` if None.

    Returns:
      An iterator; see `nfnets.data.dataset.eval_batches`.

    Raises:
      nfnets.data.dataset.DatasetError: if the split cannot be used.
    """
    config = self.config
    kwargs = {
      'image_size': config.eval_image_size,
      'global_batch_size': self.eval_batch_size,
      'transpose': config.transpose,
      **_processes(),
    }
    if self.builder is None:
      return dataset.fake_batches(
        num_classes=config.num_classes,
        num_batches=_FAKE_EVAL_BATCHES,
        **kwargs,
      )
    return dataset.eval_batches(
      self.builder,
      split or config.eval_subset,
      preprocessing=config.eval_preproc,
      skip_corrupt=config.skip_corrupt,
      **kwargs,
    )


def build(
  config: ml_collections.ConfigDict,
  init_rng: jax.Array,
  num_devices: int | None = None,
) -> Recipe:
  """Builds all that the settings name; nothing is compiled or written.

  Args:
    config: the experiment's settings; see `configs.get_base`. Those that are
      left open are set.
    init_rng: the key that JAXline gives to the experiment.
    num_devices: how many share a batch; None is those that there are.

  Raises:
    ConfigError: for settings that are wrong.
    derived.WeightsError: if weights that tell the model cannot be read.
    nfnets.data.dataset.DatasetError: if the dataset cannot be used.
  """
  try:
    derived.fill_in_model(config)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  num_devices = num_devices or jax.device_count()
  _check(config, num_devices)
  builder, num_examples = _open_dataset(config)
  model = create_model(config)
  _check_layers(config, model, num_devices)
  schedule = create_schedule(config, num_examples / config.train_batch_size)
  data_seed = int(jax.random.randint(init_rng, (), 0, 2**31 - 1))
  optimizer = create_optimizer(config, schedule)
  try:
    # Of random images, an epoch may be less than a batch.
    at_least = 0 if builder else config.train_batch_size
    private = privacy_lib.make(config, max(num_examples, at_least))
  except ValueError as error:
    raise ConfigError(str(error)) from error
  if private:
    optimizer = optax.chain(private.noise(data_seed), optimizer)
  return Recipe(
    config=config,
    model=model,
    schedule=schedule,
    optimizer=optimizer,
    builder=builder,
    num_examples=num_examples,
    data_seed=data_seed,
    privacy=private,
  )


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
  kwargs = dict(config.model_kwargs)
  if kwargs.get('skipinit_gain') in _INITIALIZERS:
    kwargs['skipinit_gain'] = _INITIALIZERS[kwargs['skipinit_gain']]
  try:
    return zoo.create_model(
      config.model,
      config.num_classes if num_classes is None else num_classes,
      remat=config.remat,
      **kwargs,
    )
  except (TypeError, ValueError) as error:
    raise ConfigError(f'model or model_kwargs: {error}') from error


def create_schedule(
  config: ml_collections.ConfigDict, steps_per_epoch: float
) -> optax.Schedule:
  """Builds the learning rate schedule that the settings describe.

  Returns:
    A function from the step, and from another peak where one is given.

  Raises:
    ConfigError: if there is no such schedule, or its times do not fit.
  """
  peak = step_numbers.peak_learning_rate(config)
  if config.lr_schedule.name == 'constant':
    return lambda _, peak=peak: peak
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
  """Builds the optimizer that the settings name, for the layers they name.

  Raises:
    ConfigError: if there is no such optimizer, or no such argument of it.
  """
  kwargs = dict(config.optimizer.kwargs)
  if config.clip_layers:
    kwargs['clipping_mask'] = _clipping_mask(config)

  def make(peak=None, clipping=None, weight_decay=None):
    given = {'clipping': clipping, 'weight_decay': weight_decay}
    return optim.make_optimizer(
      config.optimizer.name,
      schedule if peak is None else functools.partial(schedule, peak=peak),
      **{**kwargs, **{k: v for k, v in given.items() if v is not None}},
    )

  try:
    optimizer = make()
  except (TypeError, ValueError) as error:
    raise ConfigError(
      f'optimizer: {error} A config file can set other arguments, with '
      "optimizer = {'name': ..., 'kwargs': {...}}."
    ) from error
  if config.numbers_as_arguments:
    optimizer = optax.inject_hyperparams(make)(**step_numbers.of(config))
  if config.train_only:
    optimizer = optim.train_only(optimizer, optim.choose(config.train_only))
  if config.layer_decay != 1 or config.lr_head:
    last = (config.lr_head or config.lr) / config.lr
    scale = optim.scale_layers(config.layer_decay, last)
    optimizer = optax.chain(optimizer, scale)
  return optim.sam(optimizer, config.sam_rho) if config.sam_rho else optimizer


def _clipping_mask(config: ml_collections.ConfigDict) -> layers.Mask:
  """Returns which parameters are clipped, of `clip_layers`."""
  if config.optimizer.name != 'sgd_agc':
    raise ConfigError(
      f'clip_layers is {config.clip_layers!r}, but the optimizer '
      f'{config.optimizer.name!r} clips no layers; sgd_agc does.'
    )
  params, _ = shapes.of_model(create_model(config))
  try:
    return optim.clipped_layers(config.clip_layers, params)
  except ValueError as error:
    raise ConfigError(f'clip_layers: {error}') from error


def _check_layers(
  config: ml_collections.ConfigDict, model: nfnets.Model, num_devices: int
) -> None:
  """Raises ConfigError for what the network's layers do not allow."""
  if not config.train_only and not config.clip_per_example:
    return
  params, state = shapes.of_model(model)
  if config.train_only:
    try:
      optim.choose(config.train_only)(params)
    except ValueError as error:
      raise ConfigError(f'train_only: {error}') from error
  try:
    gradients.check(config, state, num_devices)
  except ValueError as error:
    raise ConfigError(str(error)) from error


def _processes() -> dict[str, int]:
  return {
    'process_index': jax.process_index(),
    'process_count': jax.process_count(),
  }


def _train_split(config: ml_collections.ConfigDict) -> str:
  """Returns the split to train on: all that evaluation does not need."""
  return 'train_and_valid' if config.eval_subset == 'test' else 'train'


def _open_dataset(config: ml_collections.ConfigDict) -> tuple[Any, int]:
  """Returns TFDS's builder, or None, and the number of training examples."""
  if config.fake_data:
    derived.fill_in_training(config, _FAKE_CLASSES, _FAKE_EXAMPLES)
    return None, _FAKE_EXAMPLES
  if not config.which_dataset:
    raise ConfigError(
      'No dataset is named: --data=DIR is a folder of images, with a folder '
      'for each class; --data=NAME is a dataset of TFDS.'
    )
  builder = dataset.load_builder(config.which_dataset, config.data_dir or None)
  num_classes = dataset.num_classes(builder)
  if config.num_classes not in (0, num_classes):
    raise ConfigError(
      f'{config.which_dataset} has {num_classes} classes, but num_classes is '
      f'{config.num_classes}; --num_classes=0 takes those of the dataset.'
    )
  num_examples = dataset.num_examples(builder, _train_split(config))
  derived.fill_in_training(config, num_classes, num_examples)
  return builder, num_examples


def _check(config: ml_collections.ConfigDict, num_devices: int) -> None:
  """Raises ConfigError for settings that are wrong by themselves."""
  for key, known in (
    ('which_loss', loss_lib.LOSSES),
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
  try:
    base.count_remat(config.remat)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  for key in (
    'train_batch_size',
    'eval_batch_size',
    'image_size',
    'eval_image_size',
    'accumulate_steps',
    'augmentation_multiplicity',
    'layer_decay',
  ):
    if config[key] <= 0:
      raise ConfigError(f'{key} is {config[key]}; it must be positive.')
  for key in ('num_classes', 'num_epochs', 'num_steps', 'lr', 'lr_head'):
    if config[key] < 0:
      raise ConfigError(f'{key} is {config[key]}; it must not be negative.')
  if config.train_batch_size % num_devices:
    raise ConfigError(
      f'train_batch_size is {config.train_batch_size}, which {num_devices} '
      'devices do not divide.'
    )
  share = config.train_batch_size // num_devices
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
