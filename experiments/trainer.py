"""The JAXline experiment: training and evaluation under pmap.

`experiment.py` is the command that runs it.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
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
import tqdm

from experiments import (
  jaxline_compat,
  layer_log,
  preemption,
  progress,
  step_numbers,
)
from experiments import programs as programs_lib
from experiments import recipe as recipe_lib
from experiments import step as step_lib
from nfnets import weights as weights_lib

# Steps that the host may be ahead of the devices: enough that these never wait,
# few enough that not many batches take up memory.
_STEPS_AHEAD = 3

# Two programs of several devices must not be started in different orders.
_dispatch_lock = threading.Lock()


class NonFiniteError(RuntimeError):
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
    reporter: progress.Reporter | None = None,
    notice: preemption.Notice | None = None,
    weights: weights_lib.Weights | None = None,
    validate: Callable[['Experiment', int], None] | None = None,
    make_programs: Callable[
      [recipe_lib.Recipe], programs_lib.Programs
    ] = programs_lib.make,
  ):
    """Compiles nothing yet; in training, makes the first parameters.

    Args:
      mode: JAXline's mode.
      init_rng: key of the first parameters, and of the order of the data.
      config: the experiment's; see `configs.get_base`.
      recipe: what was built from these two; None builds it.
      reporter: shows a bar on a terminal; None shows none.
      notice: tells that training should save and end; None if it never should.
      weights: parameters and state to start from, of all modules or of some, or
        in evaluation to evaluate, unless a checkpoint is restored. What reads
        `config.weights` is the command.
      validate: is called in training with this and the number of steps made,
        before the next step and after the last; None never stops for that.
      make_programs: `programs.make`, or a `programs.Shared`.

    Raises:
      recipe.ConfigError: for settings that are wrong.
      nfnets.data.dataset.DatasetError: if the dataset cannot be used.
    """
    super().__init__(mode=mode, init_rng=init_rng)
    self.config = config
    self._recipe = recipe or recipe_lib.build(config, init_rng)
    self._is_training = mode == 'train'
    self._reporter = reporter
    self._programs = make_programs(self._recipe)
    if self._is_training:
      self._train_state = jaxline_compat.bcast_local_devices(
        self._with_numbers(self._programs.init(init_rng, weights))
      )
    elif weights is not None:
      self._train_state = jaxline_compat.bcast_local_devices(
        step_lib.TrainState(
          step=0,
          params=weights.params,
          state=weights.state,
          opt_state=None,
          ema_params=None,
          ema_state=None,
          skipped=0,
        )
      )
    self._source = self._batches = None
    self._next_batch = None
    # The numbers of the steps that the devices are at, with their metrics.
    self._in_flight = collections.deque()
    self._periodic_actions = ()
    self._notice = notice
    self._validate = validate
    self._last_step = math.inf
    self._loop_began = 0.0
    self._started = None
    self._seconds_waited = 0.0

  def _can_end_alone(self) -> bool:
    """Tells whether SIGTERM matters and no other process must agree."""
    return self._notice is not None and jax.process_count() == 1

  def _asked_to_end(self) -> bool:
    """Tells whether SIGTERM has come, where no other process must agree."""
    return self._can_end_alone() and self._notice.is_set()

  def _until_asked_to_end(self, batches: Iterator) -> Iterator:
    """Yields batches; raises StoppedError when the program shall end."""
    return self._notice.until_set(batches) if self._can_end_alone() else batches

  def abstract_snapshot(self) -> dict[str, Any]:
    """Returns shapes and dtypes of what a checkpoint of this holds."""
    init = programs_lib.init_function(self._recipe)
    return {'train_state': jax.eval_shape(init, jax.random.PRNGKey(0))}

  # Training.

  def should_run_step(self, global_step: int, config) -> bool:
    """Tells whether to go on: not after the last step, nor after SIGTERM."""
    if self._asked_to_end():
      return False
    if self._validate is not None:
      try:
        self._validate(self, global_step)
      except preemption.StoppedError:
        return False
    return global_step < min(config.training_steps, self._last_step)

  def train_loop(self, config, state, periodic_actions, writer=None) -> None:
    """Trains from `state.global_step` to `config.training_steps`.

    Raises:
      NonFiniteError: if the loss or its gradient is not finite, unless such
        updates are left out.
      nfnets.data.dataset.DatasetError: if an image cannot be read.
    """
    reporter = self._reporter
    with contextlib.ExitStack() as stack:
      if state.global_step >= config.training_steps:
        logging.info('Nothing to do: step %d was reached.', state.global_step)
        # But what comes after the last step may have been cut short.
        self.should_run_step(state.global_step, config)
        return
      self._global_step = state.global_step
      self._source = self._recipe.train_batches(state.global_step)
      stack.callback(self._stop_batches)
      self._batches = self._until_asked_to_end(self._source)
      try:
        self._next_batch = self._send(next(self._batches))
      except preemption.StoppedError:
        return
      if reporter is not None and reporter.start_bar(state.global_step):
        stack.callback(lambda: reporter.close(self._global_step))
        bar = jaxline_utils.PeriodicAction(reporter.update_bar, 'secs', 1.0)
        stack.callback(bar.wait_to_finish)
        periodic_actions = (*periodic_actions, bar)
      self._periodic_actions = periodic_actions
      logging.info('Compiling the first step; this can take minutes.')
      self._loop_began = time.monotonic()
      super().train_loop(config, state, periodic_actions, writer)
      while self._in_flight:
        self._finish_oldest_step()

  def step(
    self, *, global_step: jax.Array, rng: jax.Array, writer: Any
  ) -> dict[str, Any]:
    """Makes one update; returns metrics that may still be computing."""
    del global_step, writer
    if len(self._in_flight) == _STEPS_AHEAD:
      self._finish_oldest_step()
    with _dispatch_lock:
      self._train_state, metrics = self._programs.train_step(
        self._train_state, self._next_batch, rng
      )
    self._global_step += 1
    self._in_flight.append((self._global_step, metrics))
    if self._started is None:
      # The first step compiles, which the speed should not include.
      jax.block_until_ready(metrics)
      for action in self._periodic_actions:
        action.update_time(time.time() - 1e-3, self._global_step)
      self._started = time.monotonic()
      seconds = self._started - self._loop_began
      logging.info('The first step took %.1f s, with compiling.', seconds)
    # While the devices work on this batch, the next one is sent.
    start = time.monotonic()
    try:
      batch = next(self._batches)
    except preemption.StoppedError:  # No step will need one.
      batch = None
    now = time.monotonic()
    if metrics['train_loss'].is_ready():  # The devices wait, too.
      self._seconds_waited += now - start
    self._next_batch = batch and self._send(batch)
    # What is known on the host.
    metrics = {
      **metrics,
      'data_wait': self._seconds_waited / (now - self._started),
    }
    metrics.pop(programs_lib.STOP, None)
    if self.config.skip_corrupt and not self.config.fake_data:
      metrics['images_skipped'] = self._source.num_skipped
    return metrics

  def snapshot_state(self) -> Mapping[str, Any]:
    """Returns what a checkpoint holds.

    Raises:
      NonFiniteError: if that would not be worth keeping.
    """
    while self._in_flight:
      self._finish_oldest_step()
    snapshot = super().snapshot_state()
    for x in jax.tree.leaves(snapshot['train_state']):
      if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise NonFiniteError(
          f'The parameters or what goes with them are not finite after step '
          f'{int(snapshot["train_state"].step)}.'
        )
    return snapshot

  def restore_from_snapshot(self, snapshot_state: Mapping[str, Any]) -> None:
    """Takes what a checkpoint holds, with the numbers of the settings."""
    state = self._with_numbers(snapshot_state['train_state'])
    super().restore_from_snapshot({**snapshot_state, 'train_state': state})

  def _with_numbers(self, state: step_lib.TrainState) -> step_lib.TrainState:
    """Sets the numbers in a state on the host to those of the settings."""
    opt_state = step_numbers.set_in(state.opt_state, self.config)
    return state._replace(opt_state=opt_state)

  def _finish_oldest_step(self) -> None:
    """Waits for the oldest step under way and looks at what it gave."""
    step, metrics = self._in_flight.popleft()
    metrics = {k: float(v) for k, v in metrics.items() if k != layer_log.NAME}
    if metrics.get(programs_lib.STOP):
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

  def _stop_batches(self) -> None:
    self._batches = self._next_batch = None
    if hasattr(self._source, 'close'):
      self._source.close()

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
    state = self._train_state
    weights = {'eval_': (state.params, state.state)}
    if state.ema_params is not None:
      weights['eval_ema_'] = (state.ema_params, state.ema_state)
    return self._measure(weights, self.config.eval_subset)

  def test(self, weights: weights_lib.Weights) -> dict[str, Any]:
    """Measures weights on the test split.

    Args:
      weights: parameters and state, on the host.

    Returns:
      `test_loss`, `test_top_1_acc` and `test_num_examples`.
    """
    weights = jaxline_compat.bcast_local_devices(tuple(weights))
    metrics = self._measure({'eval_': weights}, 'test')
    keys = ('loss', 'top_1_acc', 'num_examples')
    return {f'test_{key}': metrics[f'eval_{key}'] for key in keys}

  def weights(self) -> weights_lib.Weights:
    """Copies the present weights, averaged if there is an average."""
    state = self._train_state
    pair = (state.params, state.state)
    if state.ema_params is not None:
      pair = (state.ema_params, state.ema_state)
    return weights_lib.Weights(*jaxline_compat.get_first(pair))

  def _measure(
    self, weights: dict[str, tuple[Any, Any]], split: str
  ) -> dict[str, float]:
    """Measures {prefix of the metrics: (parameters, state) on the devices}."""
    sums = collections.defaultdict(float)
    in_flight = collections.deque()

    def count_oldest():
      for key, value in in_flight.popleft().items():
        sums[key] += float(value)

    batches = tqdm.tqdm(
      self._until_asked_to_end(self._recipe.eval_batches(split)),
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
          sums_of = self._programs.eval_step(params, state, batch)
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

  # What both need.

  def _send(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts a batch on the devices: [b, ...] becomes [devices, b', ...]."""
    n = jax.local_device_count()

    def split(name, x):
      if name == 'images' and self.config.transpose:  # [H, W, 3, b].
        return np.stack(np.split(x, n, axis=-1))
      return x.reshape(n, -1, *x.shape[1:])

    parts = {name: split(name, x) for name, x in batch.items()}
    if self._is_training and jax.process_count() > 1:
      stop = self._notice is not None and self._notice.is_set()
      parts[programs_lib.STOP] = np.full(n, stop, np.float32)
    return jaxline_compat.shard_local_devices(parts)
