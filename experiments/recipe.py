"""Builds model, optimizer, schedule and data from a config, and checks it.

Training, evaluation, tools and benchmarks use the `Recipe` that `build`
returns.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments import command_line, defaults, gradients
from experiments import privacy as privacy_lib
import nfnets
from nfnets import errors, optim, zoo
from nfnets.data import batches, builders, class_balance, dataset
from nfnets.weights import matching

# Fake data: images per epoch, and classes if num_classes is None.
_FAKE_EXAMPLES, _FAKE_CLASSES = 10_000, 10
# Batches of fake data in an evaluation.
_FAKE_EVAL_BATCHES = 2
# Pseudo-split of evaluation: a sample of the training examples, of at most this
# size. The epoch of its order is none of training's.
TRAIN_SAMPLE = 'train_sample'
_MAX_TRAIN_SAMPLE, _SAMPLE_EPOCH = 1000, 2**32
# Initializers that settings can name.
_INITIALIZERS = {'zeros': jnp.zeros, 'ones': jnp.ones}
# Settings that `traced_hyperparams` passes to the compiled step, by their names
# in the optimizer state of optax.inject_hyperparams.
TRACED = {
  'peak': 'lr',
  'clipping': 'optimizer.kwargs.clipping',
  'weight_decay': 'optimizer.kwargs.weight_decay',
}

_wrong = functools.partial(errors.UserError, status=2)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything that an experiment's settings define.

  Attributes:
    config: the settings, `experiment_kwargs.config` of JAXline's.
    model: the network.
    schedule: the learning rate by step, from 0.
    optimizer: the optimizer, with the schedule.
    builder: the TFDS builder; None for fake data.
    num_examples: number of examples in an epoch of training.
    data_seed: seed of the order of the examples and of their augmentation.
    privacy: the mechanism of private training; None if it is not private.
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
    """Number of updates in `config.num_epochs`; at least one."""
    images = self.config.num_epochs * self.num_examples
    # The tolerance: num_epochs may come from a whole number of steps.
    return max(1, int(images / self.config.train_batch_size + 1e-6))

  def num_eval_examples(self, split: str | None = None) -> int:
    """Return the number of examples in an evaluation; see `eval_batches`."""
    if self.builder is None:
      return _FAKE_EVAL_BATCHES * self.eval_batch_size
    if split == TRAIN_SAMPLE:
      return len(self.train_sample())
    return dataset.num_examples(self.builder, split or self.config.eval_subset)

  def train_sample(self) -> np.ndarray:
    """Return the indices of training examples to evaluate, int64 [N].

    There are as many as in an evaluation, at most 1,000. They depend only on
    the seed and the dataset.
    """
    count = min(
      *(self.num_eval_examples(), self.num_examples, _MAX_TRAIN_SAMPLE)
    )
    order = batches.EpochOrder(self.num_examples, self.data_seed)
    first = _SAMPLE_EPOCH * self.num_examples
    return np.sort(order(first + np.arange(count))[1])

  @property
  def test_split(self) -> str:
    """Name of the test split in its dataset."""
    if self.builder is None:
      return 'random images'
    return builders.find_split(self.builder, 'test').tfds_split

  @property
  def chooses_by_test(self) -> bool:
    """Whether evaluations during training use the test split."""
    return self.builder is None or builders.is_test_split(
      self.builder, self.config.eval_subset
    )

  @property
  def batch_size(self) -> int:
    """Examples per batch, including padding of Poisson samples."""
    if self.privacy is None:
      return self.config.train_batch_size
    parts = self.config.per_example.chunk or self.config.accumulate_steps
    return _round_up(self.privacy.largest_batch, parts * jax.device_count())

  @property
  def eval_batch_size(self) -> int:
    """The setting, rounded up to a multiple of the number of devices."""
    return _round_up(self.config.eval_batch_size, jax.device_count())

  @property
  def program_key(self) -> tuple[str, int]:
    """Key that is equal for recipes with the same compiled steps."""
    settings = dict(command_line.leaves(self.config))
    if self.config.traced_hyperparams:
      for name in traced_values(self.config):
        settings.pop(TRACED[name])
      # lr_head / lr is a constant of the program.
      if self.config.lr_head:
        settings['lr'] = self.config.lr
    # Values may be lists.
    return repr(sorted(settings.items())), self.num_examples

  def class_weights(self) -> np.ndarray | None:
    """Return the weights of the classes in the loss, float32 [K], or None."""
    if not self.config.class_weights:
      return None
    counts = class_balance.class_counts(self.builder, _train_split(self.config))
    return class_balance.class_weights(counts)

  def num_eval_batches(self, split: str | None = None) -> int:
    """Return the number of batches; padding of the last one is masked."""
    return -(-self.num_eval_examples(split) // self.eval_batch_size)

  def train_batches(
    self,
    first_step: int = 0,
    secret_key: np.ndarray | None = None,
    **processes: int,
  ):
    """Return endless training batches; see `dataset`.

    Args:
      first_step: the step, from 0, of the first batch.
      secret_key: that of `privacy.NoiseState`, in private training.
      **processes: `process_index` and `process_count`, if not JAX's.
    """
    options = self._data_options(**processes)
    if self.privacy:
      key = np.zeros(4, np.uint32) if secret_key is None else secret_key
      options = dataclasses.replace(options, poisson=self.privacy.sampling(key))
    if self.builder is None:
      return dataset.fake_batches(options, self.config.num_classes)
    return dataset.train_batches(
      self.builder, _train_split(self.config), options, first_step
    )

  def eval_batches(self, split: str | None = None):
    """Return batches that hold every example once; see `dataset`.

    Args:
      split: 'valid', 'test' or TRAIN_SAMPLE; `config.eval_subset` if None.
    """
    options = dataclasses.replace(
      self._data_options(),
      image_size=self.config.eval_image_size,
      batch_size=self.eval_batch_size,
      preprocessing=self.config.eval_preproc,
      augmentation_multiplicity=1,
    )
    if self.builder is None:
      return dataset.fake_batches(
        options, self.config.num_classes, _FAKE_EVAL_BATCHES
      )
    split, indices = split or self.config.eval_subset, None
    if split == TRAIN_SAMPLE:
      split, indices = _train_split(self.config), self.train_sample()
    return dataset.eval_batches(self.builder, split, options, indices)

  def _data_options(self, **processes: int) -> dataset.Options:
    config = self.config
    index, count = jax.process_index(), jax.process_count()
    same = (
      *('image_size', 'augment_before_mix', 'augment_kwargs', 'skip_corrupt'),
      *('augmentation_multiplicity', 'balance_classes', 'transpose'),
    )
    return dataset.Options(
      batch_size=self.batch_size,
      preprocessing=config.train_preproc,
      seed=self.data_seed,
      augment_name=config.augment_name or '',
      **{'process_index': index, 'process_count': count, **processes},
      **{key: config[key] for key in same},
    )


def build(
  config: ml_collections.ConfigDict,
  init_rng: jax.Array,
  num_devices: int | None = None,
  training_steps: int | None = None,
) -> Recipe:
  """Build the recipe; compile and write nothing.

  Args:
    config: the experiment's settings; see `configs.get_base`. Unset settings
      get their values.
    init_rng: the key that JAXline gives to the experiment.
    num_devices: the number of devices that share a batch. None: all devices.
    training_steps: JAXline's; defines num_epochs if that is None.

  Raises:
    UserError: if settings are wrong, or the dataset or weights cannot be read.
  """
  defaults.set_model_defaults(config)
  num_devices = num_devices or jax.device_count()
  defaults.check(config, num_devices)
  builder, num_examples = _open_dataset(config, training_steps)
  model = create_model(config)
  if config.train_only or config.clip_per_example:
    params, state = matching.model_shapes(model)
    if config.train_only:
      with errors.prefix('train_only', status=2):
        optim.choose(config.train_only)(params)
    if config.clip_per_example:
      gradients.check(config, state, num_devices)
  schedule = create_schedule(config, num_examples / config.train_batch_size)
  data_seed = int(jax.random.randint(init_rng, (), 0, 2**31 - 1))
  optimizer = create_optimizer(config, schedule)
  private = None
  if config.private.noise_multiplier or config.private.epsilon:
    # An epoch of fake data may be smaller than a batch.
    at_least = 0 if builder else config.train_batch_size
    private = privacy_lib.make(config, max(num_examples, at_least))
    optimizer = optax.chain(private.noise(), optimizer)
  return Recipe(
    config,
    model,
    schedule,
    optimizer,
    builder,
    num_examples,
    data_seed,
    private,
  )


def create_model(config: ml_collections.ConfigDict) -> nfnets.Model:
  """Build the network that the experiment's settings name."""
  kwargs = dict(config.model_kwargs)
  if kwargs.get('skipinit_gain') in _INITIALIZERS:
    kwargs['skipinit_gain'] = _INITIALIZERS[kwargs['skipinit_gain']]
  try:
    return zoo.create_model(
      config.model, config.num_classes, remat=config.remat, **kwargs
    )
  except (TypeError, ValueError) as error:
    raise _wrong(f'model or model_kwargs: {error}') from error


def create_schedule(
  config: ml_collections.ConfigDict, steps_per_epoch: float
) -> optax.Schedule:
  """Build the learning rate schedule.

  Returns:
    A function from the step and, optionally, another peak.
  """
  peak = _peak_learning_rate(config)
  if config.lr_schedule.name == 'constant':
    return lambda _, peak=peak: peak
  if config.lr_schedule.name != 'warmup_cosine':
    raise _wrong(
      f'lr_schedule.name is {config.lr_schedule.name!r}; it must be '
      'warmup_cosine or constant.'
    )
  with errors.prefix('lr_schedule', status=2):
    return optim.warmup_cosine(
      peak,
      config.lr_schedule.warmup_epochs * steps_per_epoch,
      config.num_epochs * steps_per_epoch,
      config.lr_schedule.end,
    )


def _peak_learning_rate(config: ml_collections.ConfigDict) -> float:
  scale = config.train_batch_size / 256 if config.lr_scale_by_bs else 1
  return config.lr * scale


def traced_values(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """Return {name: float32 scalar} of the `TRACED` settings in a config."""
  kwargs = config.optimizer.kwargs
  values = {'peak': _peak_learning_rate(config)}
  values |= {name: kwargs[name] for name in TRACED if name in kwargs}
  # Checkpoints must be finite; a clipping this large clips nothing.
  most = np.finfo(np.float32).max
  return {k: np.asarray(min(v, most), np.float32) for k, v in values.items()}


def create_optimizer(
  config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Build the optimizer, restricted to `train_only` and scaled per layer."""
  kwargs = dict(config.optimizer.kwargs)
  if config.clip_layers:
    if config.optimizer.name != 'sgd_agc':
      raise _wrong(
        f'clip_layers is {config.clip_layers!r}, but the optimizer '
        f'{config.optimizer.name!r} does not clip; use sgd_agc.'
      )
    params, _ = matching.model_shapes(create_model(config))
    with errors.prefix('clip_layers', status=2):
      kwargs['clipping_mask'] = optim.clipped_layers(config.clip_layers, params)

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
    raise _wrong(
      f'optimizer: {error} A config file can set other arguments, with '
      "optimizer = {'name': ..., 'kwargs': {...}}."
    ) from error
  if config.traced_hyperparams:
    optimizer = optax.inject_hyperparams(make)(**traced_values(config))
  if config.train_only:
    optimizer = optim.train_only(optimizer, optim.choose(config.train_only))
  if config.layer_decay != 1 or config.lr_head:
    last = (config.lr_head or config.lr) / config.lr
    scale = optim.scale_layers(config.layer_decay, last)
    optimizer = optax.chain(optimizer, scale)
  return optim.sam_descent(optimizer) if config.sam_rho else optimizer


def _round_up(number: int, factor: int) -> int:
  return number + -number % factor


def _train_split(config: ml_collections.ConfigDict) -> str:
  # All examples that evaluation does not use.
  return 'train_and_valid' if config.eval_subset == 'test' else 'train'


def _open_dataset(
  config: ml_collections.ConfigDict, training_steps: int | None
) -> tuple[Any, int]:
  """Return the TFDS builder, or None, and the number of training examples."""
  if config.fake_data:
    defaults.set_training_defaults(
      config, _FAKE_CLASSES, _FAKE_EXAMPLES, training_steps
    )
    return None, _FAKE_EXAMPLES
  if not config.which_dataset:
    raise _wrong(
      'There is no dataset: use --data=DIR for a folder of images with a '
      'subfolder per class, or --data=NAME for a TFDS dataset.'
    )
  builder = dataset.load_builder(config.which_dataset, config.data_dir)
  num_classes = dataset.num_classes(builder)
  if config.num_classes not in (None, num_classes):
    raise _wrong(
      f'{config.which_dataset} has {num_classes} classes, but num_classes is '
      f'{config.num_classes}; use --num_classes=None.'
    )
  num_examples = dataset.num_examples(builder, _train_split(config))
  defaults.set_training_defaults(
    config, num_classes, num_examples, training_steps
  )
  return builder, num_examples
