"""The JAXline experiment: the loops of training and evaluation under pmap."""

import collections
from collections.abc import Callable, Mapping
import contextlib
import math
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

from experiments import gradients, hosts, jaxline_compat, screen
from experiments import recipe as recipe_lib
from experiments import step as step_lib
from nfnets import weights as weights_lib
from nfnets.errors import UserError

# Steps that the host may be ahead of the devices: enough that these never wait,
# few enough that not many batches take up memory.
_STEPS_AHEAD = 3

# Two programs of several devices must not be started in different orders.
_dispatch_lock = threading.Lock()


class NonFiniteError(UserError):
  """Training has come to numbers that are not finite."""


class Experiment(experiment.AbstractExperiment):
  """Image classification by one network on one dataset."""

  CHECKPOINT_ATTRS = {'_train_state': 'train_state'}

  def __init__(
    self,
    mode: str,
    init_rng: jax.Array,
    config: ml_collections.ConfigDict,
    recipe: recipe_lib.Recipe | None = None,
    reporter: screen.Reporter | None = None,
    notice: hosts.Notice | None = None,
    weights: weights_lib.Weights | None = None,
    validate: Callable[['Experiment', int], bool] | None = None,
    make_steps: Callable[
      [recipe_lib.Recipe], step_lib.CompiledSteps
    ] = step_lib.make_compiled,
  ):
    """Compile nothing yet; in training, make the first parameters.

    Args:
      mode: JAXline's mode.
      init_rng: key of the first parameters, and of the order of the data.
      config: the experiment's; see `configs.get_base`.
      recipe: the recipe of these two. None: build it.
      reporter: shows a bar on a terminal; None shows none.
      notice: tells that training should save and end; None if it never should.
      weights: parameters and state to start from, of all modules or of some, or
        in evaluation to evaluate, unless a checkpoint is restored. What reads
        `config.weights` is the command.
      validate: is called in training with this and the number of steps made,
        before the next step and after the last, and returns whether training
        should end; None never stops for that.
      make_steps: `step.make_compiled`, or a `step.make_shared()`.

    Raises:
      UserError: for wrong settings, or if the dataset cannot be used.
    """
    super().__init__(mode=mode, init_rng=init_rng)
    self.config = config
    self._recipe = recipe or recipe_lib.build(config, init_rng)
    self._is_training = mode == 'train'
    self._reporter = reporter
    self._steps = make_steps(self._recipe)
    state = None
    if self._is_training:
      state = self._set_traced(self._steps.init(init_rng, weights))
      if self._recipe.privacy:
        key = self._recipe.privacy.new_key()
        opt_state = optax.tree.set(state.opt_state, secret_key=key)
        state = state._replace(opt_state=opt_state)
    elif weights is not None:
      state = step_lib.TrainState(0, *weights, None, None, None, 0)
    if state is not None:
      self._train_state = jaxline_compat.bcast_local_devices(state)
    self._source = self._next_batch = None
    # The numbers of the steps that the devices are at, with their metrics.
    self._in_flight = collections.deque()
    self._notice = notice or hosts.Notice()
    # One that counts without the agreement of other processes.
    is_alone = jax.process_count() == 1
    self._own_notice = self._notice if is_alone else hosts.Notice()
    self._validate = validate
    self._last_step = math.inf
    self._loop_began, self._started = 0.0, None
    self._seconds_waited = 0.0

  def abstract_snapshot(self) -> dict[str, Any]:
    """Return shapes and dtypes of what a checkpoint of this holds."""
    key = jax.random.PRNGKey(0)
    return {'train_state': jax.eval_shape(self._steps.init, key)}

  # Training.

  def should_run_step(self, global_step: int, config) -> bool:
    """Return whether to go on: not after the last step or a signal."""
    if self._own_notice.is_set():
      return False
    if self._validate is not None:
      try:
        if self._validate(self, global_step):
          return False
      except hosts.StoppedError:
        return False
    return global_step < min(config.training_steps, self._last_step)

  def train_loop(self, config, state, periodic_actions, writer=None) -> None:
    """Train from `state.global_step` to `config.training_steps`.

    Raises:
      NonFiniteError: if the loss or its gradient is not finite, unless such
        updates are left out.
      UserError: if an image cannot be read.
    """
    if state.global_step >= config.training_steps:
      logging.info('Nothing to do: step %d was reached.', state.global_step)
      # The work after the last step may have been cut short.
      self.should_run_step(state.global_step, config)
      return
    self._global_step = state.global_step
    key = optax.tree.get(self._train_state.opt_state, 'secret_key', None)
    self._source = self._recipe.train_batches(
      state.global_step, jaxline_compat.get_first(key)
    )
    reporter = self._reporter
    with contextlib.ExitStack() as stack:
      stack.enter_context(contextlib.closing(self._source))
      self._batches = self._own_notice.until_set(self._source)
      logging.info('Reading the first batch.')
      try:
        self._next_batch = self._send(next(self._batches))
      except hosts.StoppedError:
        return
      if reporter is not None and reporter.start_bar(state.global_step):
        stack.callback(lambda: reporter.close(self._global_step))
        bar = jaxline_utils.PeriodicAction(reporter.update_bar, 'secs', 1.0)
        stack.callback(bar.wait_to_finish)
        periodic_actions = (*periodic_actions, bar)
      logging.info('Compiling the first step; this can take minutes.')
      self._loop_began = time.monotonic()
      super().train_loop(config, state, periodic_actions, writer)
      while self._in_flight:
        self._finish_oldest_step()
      self._next_batch = None

  def step(
    self, *, global_step: jax.Array, rng: jax.Array, writer: Any
  ) -> dict[str, Any]:
    """Make one update; return metrics that may still be computing."""
    if len(self._in_flight) == _STEPS_AHEAD:
      self._finish_oldest_step()
    with _dispatch_lock:
      self._train_state, metrics = self._steps.train_step(
        self._train_state, self._next_batch, rng
      )
    self._global_step += 1
    self._in_flight.append((self._global_step, metrics))
    if self._started is None:
      # The first step compiles, which the speed should not include.
      jax.block_until_ready(metrics)
      self._started = time.monotonic()
      if self._reporter is not None:
        self._reporter.start_clock(self._global_step)
      seconds = self._started - self._loop_began
      logging.info('The first step took %.1f s, with compiling.', seconds)
    # While the devices work on this batch, the next one is sent.
    start = time.monotonic()
    try:
      batch = next(self._batches)
    except hosts.StoppedError:  # No step will need one.
      batch = None
    now = time.monotonic()
    if metrics['train_loss'].is_ready():  # The devices wait, too.
      self._seconds_waited += now - start
    self._next_batch = batch and self._send(batch)
    # These numbers come from the host and not from the devices.
    wait = self._seconds_waited / (now - self._started)
    metrics = {**metrics, 'data_wait': wait}
    metrics.pop(step_lib.STOP, None)
    if self.config.skip_corrupt and not self.config.fake_data:
      metrics['images_skipped'] = self._source.num_skipped
    return metrics

  def snapshot_state(self) -> Mapping[str, Any]:
    """Return what a checkpoint holds.

    Raises:
      NonFiniteError: if that would not be worth keeping.
    """
    while self._in_flight:
      self._finish_oldest_step()
    snapshot = super().snapshot_state()
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(snapshot)):
      raise NonFiniteError(
        'The parameters or what goes with them are not finite after step '
        f'{int(snapshot["train_state"].step)}.'
      )
    return snapshot

  def restore_from_snapshot(self, snapshot_state: Mapping[str, Any]) -> None:
    """Take what a checkpoint holds, with the settings' hyperparameters."""
    state = self._set_traced(snapshot_state['train_state'])
    super().restore_from_snapshot({**snapshot_state, 'train_state': state})

  def _set_traced(self, state: step_lib.TrainState) -> step_lib.TrainState:
    """Set the traced hyperparameters, which another run may have written."""
    if not self.config.traced_hyperparams:
      return state
    values = recipe_lib.traced_values(self.config)
    return state._replace(opt_state=optax.tree.set(state.opt_state, **values))

  def _finish_oldest_step(self) -> None:
    """Wait for the oldest step under way and look at what it gave."""
    step, metrics = self._in_flight.popleft()
    metrics = {k: float(v) for k, v in metrics.items() if k != gradients.LAYERS}
    if metrics.get(step_lib.STOP):
      # All hosts have seen this step by the time they come to that one, but
      # one that has just written a checkpoint has seen it sooner.
      self._last_step = min(self._last_step, step + _STEPS_AHEAD)
    loss, norm = metrics['train_loss'], metrics['grad_norm']
    if math.isfinite(loss + norm):
      return
    what = f'the loss is {loss:g} and the norm of its gradient {norm:g}'
    if not self.config.skip_nonfinite:
      raise NonFiniteError(
        f'At step {step} {what}, at a learning rate of '
        f'{metrics["learning_rate"]:.3g}. A lower rate or more warm-up may '
        'help; --skip_nonfinite=True leaves such updates out and counts them.'
      )
    logging.warning(
      'At step %d %s: left out, as %d update(s) so far.',
      step,
      what,
      metrics['updates_skipped'],
    )

  # Evaluation.

  def evaluate(
    self, *, global_step: jax.Array, rng: jax.Array, writer: Any
  ) -> dict[str, float]:
    """Do what `measure` does, and log it."""
    metrics = self.measure()
    log_evaluation(metrics)
    return metrics

  def measure(self) -> dict[str, float]:
    """Measure the raw weights, and the averaged ones if there are any.

    Returns:
      `eval_loss`, `eval_top_1_acc`, with more than five classes
      `eval_top_5_acc`, the same with `eval_ema_`
      in front for the averaged weights, and `eval_num_examples`.
    """
    return self._measure(self._pairs(), self.config.eval_subset)

  def measure_train_sample(self) -> dict[str, float]:
    """Measure the weights that are kept on some of the training images.

    Returns:
      `train_sample_loss` and so on, computed as `measure` does.
    """
    *_, last = self._pairs().values()
    return self._measure({'train_sample_': last}, recipe_lib.TRAIN_SAMPLE)

  def test(self, weights: weights_lib.Weights) -> dict[str, Any]:
    """Measure weights on the test split.

    Args:
      weights: parameters and state, on the host.

    Returns:
      `test_loss`, `test_top_1_acc` and `test_num_examples`.
    """
    weights = jaxline_compat.bcast_local_devices(tuple(weights))
    metrics = self._measure({'eval_': weights}, 'test')
    log_evaluation(metrics)
    keys = ('loss', 'top_1_acc', 'num_examples')
    return {f'test_{key}': metrics[f'eval_{key}'] for key in keys}

  def weights(self) -> weights_lib.Weights:
    """Copy the present weights, averaged if there is an average."""
    *_, last = self._pairs().values()
    return weights_lib.Weights(*jaxline_compat.get_first(last))

  def _pairs(self) -> dict[str, tuple[Any, Any]]:
    """Return {prefix of the metrics: (parameters, state)}, averages last."""
    state = self._train_state
    pairs = {'eval_': (state.params, state.state)}
    if state.ema_params is not None:
      pairs['eval_ema_'] = (state.ema_params, state.ema_state)
    return pairs

  def _measure(
    self, weights: dict[str, tuple[Any, Any]], split: str
  ) -> dict[str, float]:
    """Measure {prefix of the metrics: (parameters, state) on the devices}."""
    sums = collections.defaultdict(float)
    in_flight = collections.deque()

    def count(most_in_flight):
      while len(in_flight) > most_in_flight:
        for key, value in in_flight.popleft().items():
          sums[key] += float(value)

    batches = tqdm.tqdm(
      self._own_notice.until_set(self._recipe.eval_batches(split)),
      desc='evaluating',
      total=self._recipe.num_eval_batches(split),
      leave=False,
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
    )
    for batch in batches:
      batch = self._send(batch)
      outputs = {}
      for prefix, (params, state) in weights.items():
        with _dispatch_lock:
          sums_of = self._steps.eval_step(params, state, batch)
        outputs |= {prefix + k: v for k, v in sums_of.items()}
      in_flight.append(outputs)
      count(_STEPS_AHEAD - 1)
    count(0)
    num_examples = int(sums[f'{next(iter(weights))}num_examples'])
    metrics = {}
    for key, value in sums.items():
      if not key.endswith('num_examples'):
        prefix = max((p for p in weights if key.startswith(p)), key=len)
        # An accuracy says nothing where the loss is not finite.
        metrics[key] = (value + 0 * sums[f'{prefix}loss']) / num_examples
    return {**metrics, f'{next(iter(weights))}num_examples': num_examples}

  # Training and evaluation.

  def _send(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Put a batch on the devices: [b, ...] becomes [devices, b', ...]."""
    n = jax.local_device_count()

    def split(name, x):
      if name == 'images' and self.config.transpose:  # [H, W, 3, b].
        return np.stack(np.split(x, n, axis=-1))
      return x.reshape(n, -1, *x.shape[1:])

    parts = {name: split(name, x) for name, x in batch.items()}
    if self._is_training and jax.process_count() > 1:
      parts[step_lib.STOP] = np.full(n, self._notice.is_set(), np.float32)
    return jaxline_compat.shard_local_devices(parts)


def log_evaluation(metrics: Mapping[str, float]) -> None:
  """Log the metrics of `Experiment.evaluate` on one line."""
  shown = [
    f'{key.removeprefix("eval_")} {value:.4f}'
    for key, value in metrics.items()
    if key != 'eval_num_examples'
  ]
  logging.info(
    'evaluated %d examples: %s',
    metrics['eval_num_examples'],
    '  '.join(shown),
  )
