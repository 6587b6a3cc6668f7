"""Trains and evaluates the networks of `nfnets` with JAXline.

python experiments/experiment.py --config=NAME [--config.key=value ...]
"""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import functools
import pathlib
import sys
import threading
import time
from typing import Any

from absl import logging
import jax
from jaxline import experiment
from jaxline import utils as jaxline_utils
import ml_collections
import numpy as np
import optax
import tqdm

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# pylint: disable=g-import-not-at-top
from experiments import jaxline_compat, progress
from experiments import step as step_lib
import nfnets
from nfnets import optim, zoo
from nfnets.data import dataset, preprocess

# pylint: enable=g-import-not-at-top

_AXIS = jaxline_compat.AXIS
# Steps that the host may be ahead of the devices: enough that these never wait,
# few enough that not many batches take up memory.
_STEPS_AHEAD = 3
# Images that an epoch of fake data counts.
_FAKE_EXAMPLES = 10_000

# Two programs of several devices must not be started in different orders.
_dispatch_lock = threading.Lock()


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
  if config.augment_name:
    raise ConfigError(
      f'augment_name is {config.augment_name!r}, but no augmentation beyond '
      "train_preproc is implemented yet; set it to ''."
    )
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
  ):
    if config[key] <= 0:
      raise ConfigError(f'{key} is {config[key]}; it must be positive.')
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
    return None, _FAKE_EXAMPLES
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


def create_model(config: ml_collections.ConfigDict) -> nfnets.Model:
  """Builds the network that the settings name.

  Raises:
    ConfigError: if there is no such network, or no such argument of it.
  """
  try:
    return zoo.create_model(
      config.model, config.num_classes, **config.model_kwargs
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


class Experiment(experiment.AbstractExperiment):
  """Image classification by one network on one dataset."""

  CHECKPOINT_ATTRS = {'_train_state': 'train_state'}

  def __init__(
    self,
    mode: str,
    init_rng: jax.Array,
    config: ml_collections.ConfigDict,
    reporter: progress.Reporter | None = None,
  ):
    """Checks the settings and opens the dataset; in training, starts.

    Args:
      mode: JAXline's mode.
      init_rng: key of the first parameters, and of the order of the data.
      config: the experiment's; see `configs.get_base`.
      reporter: shows a bar on a terminal; None shows none.

    Raises:
      ConfigError: for settings that are wrong.
      nfnets.data.dataset.DatasetError: if the dataset cannot be used.
    """
    super().__init__(mode=mode, init_rng=init_rng)
    check_config(config)
    self.config = config
    self._is_training = mode == 'train'
    self._builder, num_examples = open_dataset(config)
    self._steps_per_epoch = num_examples / config.train_batch_size
    self._reporter = reporter
    self._model = create_model(config)
    self._schedule = create_schedule(config, self._steps_per_epoch)
    self._optimizer = create_optimizer(config, self._schedule)

    self._data_seed = int(jax.random.randint(init_rng, (), 0, 2**31 - 1))
    self._init = functools.partial(
      step_lib.init_train_state,
      self._model,
      self._optimizer,
      config.use_ema,
    )
    if self._is_training:
      self._train_state = jaxline_compat.bcast_local_devices(
        jax.jit(self._init)(init_rng)
      )
      self._train_step = jax.pmap(
        step_lib.make_train_step(
          self._model, self._optimizer, self._schedule, config, _AXIS
        ),
        axis_name=_AXIS,
        donate_argnums=0,
        out_axes=(0, None),
      )
    self._eval_step = jax.pmap(
      step_lib.make_eval_step(self._model, config, _AXIS),
      axis_name=_AXIS,
      out_axes=None,
    )
    self._batches = None
    self._next_batch = None
    self._in_flight = collections.deque()
    self._periodic_actions = ()

  def abstract_snapshot(self) -> dict[str, Any]:
    """Returns shapes and dtypes of what a checkpoint of this holds."""
    return {'train_state': jax.eval_shape(self._init, jax.random.PRNGKey(0))}

  # Training.

  def train_loop(self, config, state, periodic_actions, writer=None) -> None:
    """Trains from `state.global_step` to `config.training_steps`."""
    reporter = self._reporter
    with contextlib.ExitStack() as stack:
      if state.global_step >= config.training_steps:
        logging.info('Nothing to do: step %d was reached.', state.global_step)
        return
      self._start_batches(state.global_step)
      stack.callback(self._stop_batches)
      if reporter is not None and reporter.start_bar(state.global_step):
        stack.callback(reporter.close)
        bar = jaxline_utils.PeriodicAction(reporter.update_bar, 'secs', 1.0)
        stack.callback(bar.wait_to_finish)
        periodic_actions = (*periodic_actions, bar)
      self._periodic_actions = periodic_actions
      logging.info('Compiling the first step; this can take minutes.')
      super().train_loop(config, state, periodic_actions, writer)

  def step(
    self, *, global_step: jax.Array, rng: jax.Array, writer: Any
  ) -> dict[str, jax.Array]:
    """Makes one update; returns metrics that may still be computing."""
    del global_step, writer
    if len(self._in_flight) == _STEPS_AHEAD:
      jax.block_until_ready(self._in_flight.popleft())
    with _dispatch_lock:
      self._train_state, metrics = self._train_step(
        self._train_state, self._next_batch, rng
      )
    if not self._in_flight and self._periodic_actions:
      # The first step compiles, which the speed should not include.
      jax.block_until_ready(metrics)
      step = int(self._train_state.step.addressable_data(0)[0])
      for action in self._periodic_actions:
        action.update_time(time.time() - 1e-3, step)
      self._periodic_actions = ()
    self._in_flight.append(metrics)
    # While the devices work on this batch, the next one is sent.
    self._next_batch = self._send(next(self._batches))
    return metrics

  def _start_batches(self, first_step: int) -> None:
    config = self.config
    if config.fake_data:
      self._batches = dataset.fake_batches(
        image_size=config.image_size,
        num_classes=config.num_classes,
        **self._batch_kwargs(config.train_batch_size),
      )
    else:
      self._batches = dataset.train_batches(
        self._builder,
        train_split(config),
        image_size=config.image_size,
        preprocessing=config.train_preproc,
        seed=self._data_seed,
        first_step=first_step,
        **self._batch_kwargs(config.train_batch_size),
      )
    self._next_batch = self._send(next(self._batches))

  def _stop_batches(self) -> None:
    self._in_flight.clear()
    self._next_batch = None
    if hasattr(self._batches, 'close'):
      self._batches.close()

  # Evaluation.

  def evaluate(
    self, *, global_step: jax.Array, rng: jax.Array, writer: Any
  ) -> dict[str, float]:
    """Measures the raw weights, and the averaged ones if there are any.

    Returns:
      `eval_loss`, `eval_top_1_acc`, `eval_top_5_acc`, the same with `eval_ema_`
      in front for the averaged weights, and `eval_num_examples`.
    """
    del global_step, rng, writer
    weights = {'eval_': (self._train_state.params, self._train_state.state)}
    if self.config.use_ema:
      weights['eval_ema_'] = (
        self._train_state.ema_params,
        self._train_state.ema_state,
      )
    sums = collections.defaultdict(float)
    in_flight = collections.deque()

    def count_oldest():
      for key, value in in_flight.popleft().items():
        sums[key] += float(value)

    for batch in self._eval_batches():
      batch = self._send(batch)
      outputs = {}
      for prefix, (params, state) in weights.items():
        with _dispatch_lock:
          sums_of = self._eval_step(params, state, batch)
        outputs.update({prefix + k: v for k, v in sums_of.items()})
      in_flight.append(outputs)
      if len(in_flight) == _STEPS_AHEAD:
        count_oldest()
    while in_flight:
      count_oldest()

    num_examples = sums['eval_num_examples']
    metrics = {
      key: value / num_examples
      for key, value in sums.items()
      if not key.endswith('num_examples')
    }
    metrics['eval_num_examples'] = int(num_examples)
    logging.info(
      'evaluated %d examples: %s',
      num_examples,
      '  '.join(
        f'{key.removeprefix("eval_")} {value:.4f}'
        for key, value in metrics.items()
        if key != 'eval_num_examples'
      ),
    )
    return metrics

  def _eval_batches(self) -> Iterator[Mapping[str, np.ndarray]]:
    config = self.config
    # As many more as make the devices' shares equal; they are masked.
    batch_size = config.eval_batch_size
    batch_size += -batch_size % jax.device_count()
    if config.fake_data:
      total = 2
      batches = dataset.fake_batches(
        image_size=config.eval_image_size,
        num_classes=config.num_classes,
        num_batches=total,
        **self._batch_kwargs(batch_size),
      )
    else:
      total = -(
        -dataset.num_examples(self._builder, config.eval_subset) // batch_size
      )
      batches = dataset.eval_batches(
        self._builder,
        config.eval_subset,
        image_size=config.eval_image_size,
        preprocessing=config.eval_preproc,
        **self._batch_kwargs(batch_size),
      )
    return tqdm.tqdm(
      batches,
      desc='evaluating',
      total=total,
      leave=False,
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
    )

  # What both need.

  def _batch_kwargs(self, batch_size: int) -> dict[str, Any]:
    return {
      'global_batch_size': batch_size,
      'process_index': jax.process_index(),
      'process_count': jax.process_count(),
      'transpose': self.config.transpose,
    }

  def _send(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts a batch on the devices: [b, ...] becomes [devices, b', ...]."""
    n = jax.local_device_count()

    def split(name, x):
      if name == 'images' and self.config.transpose:  # [H, W, 3, b].
        return np.stack(np.split(x, n, axis=-1))
      return x.reshape(n, -1, *x.shape[1:])

    return jaxline_compat.shard_local_devices(
      {name: split(name, x) for name, x in batch.items()}
    )


if __name__ == '__main__':
  from experiments import command

  sys.exit(command.main(sys.argv))
