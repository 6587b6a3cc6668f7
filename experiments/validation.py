"""Evaluation during training: a table, the best weights, and early stopping."""

import datetime
import math
from typing import Any

from absl import logging
from jax.experimental import multihost_utils
import numpy as np

from experiments import loop, recipe, run_folder, screen
from nfnets import weights
from nfnets.errors import UserError
from nfnets.inference import curves

# The columns match the rows; with the time of the log they fit 80 columns.
_HEADER = (
  f'{"epoch":>6}{"step":>7}{"train loss":>12}{"valid loss":>12}'
  f'{"accuracy":>10}{"lr":>9}{"time left":>11}{"":3}'
)
# Metadata of the best weights: the step that first reached their value of the
# metric. The weights are those of the last step that reached it.
_IMPROVED = 'improved_step'


class Validation:
  """Evaluates training at equal intervals, and keeps the best weights.

  The steps to evaluate depend only on the step number, and early stopping on
  the step number and the kept weights. So a run that is resumed keeps the same
  weights and ends at the same step.

  Attributes:
    stopped_early: whether the last `config.patience` evaluations were no better
      than one before them.
  """

  def __init__(
    self,
    config: Any,
    folder: run_folder.RunFolder,
    built: recipe.Recipe,
    reporter: screen.Reporter,
  ):
    """Evaluate nothing yet.

    Args:
      config: JAXline's, with `evaluations` above 0.
      folder: where the best weights go.
      built: what is trained.
      reporter: tells the time that is left.
    """
    self._last, self._patience = config.training_steps, config.patience
    self._interval = math.ceil(self._last / config.evaluations)
    self._metric = config.best_model_eval_metric
    self._sign = 1 if config.best_model_eval_metric_higher_is_better else -1
    if config.experiment_kwargs.config.use_ema:
      # The averaged weights are what is kept.
      name = self._metric.removeprefix('eval_').removeprefix('ema_')
      self._metric = f'eval_ema_{name}'
    self._folder, self._built, self._reporter = folder, built, reporter
    # The arguments of `keep` for the best weights, until they are written.
    self._unsaved: tuple[weights.Weights, int, dict[str, float]] | None = None
    self._writer = screen.Writer(config, 'eval')
    self._has_header = self.stopped_early = False
    self.close = self._writer.finish

  def __call__(self, module: loop.Experiment, step: int) -> bool:
    """Evaluate if it is time to; return whether training should end.

    Raises:
      hosts.StoppedError: if the run was asked to end meanwhile.
    """
    if step % self._interval and step != self._last or not step:
      return False
    built = self._built
    metrics = {
      **module.measure(),
      **module.measure_train_sample(),
      'epoch': step * built.config.train_batch_size / built.num_examples,
      'learning_rate': float(built.schedule(step - 1)),
    }
    self._writer.write_scalars(step, metrics)
    should_end = self._folder.is_writer and self._compare(module, step, metrics)
    if self._patience is not None:
      # One process alone knows what is kept.
      agreed = multihost_utils.broadcast_one_to_all(np.int32(should_end))
      self.stopped_early = bool(agreed)
    return self.stopped_early

  def _compare(
    self, module: loop.Experiment, step: int, metrics: dict[str, float]
  ) -> bool:
    """Log the row and keep the weights if they are best; return as above."""
    value = metrics[self._metric]
    known = self._unsaved[2] if self._unsaved else self._folder.kept()
    best = known.get(self._metric)
    # Without any that were better than nothing, it is step 0.
    improved = known.get(_IMPROVED, known.get('step', 0))
    # Equal values: the later weights, which were trained longer.
    is_best = best is None or self._sign * value >= self._sign * best
    is_best = is_best and math.isfinite(value)
    self._log(curves.Row.of(step, metrics, is_best))
    if is_best:
      improved = improved if value == best else step
      facts = {self._metric: value, _IMPROVED: improved}
      self._unsaved = module.weights(), step, facts
    try:
      self.save()
    except UserError as error:
      logging.error('%s Training goes on.', error)
    if self._patience is None or step == self._last:
      return False
    return step // self._interval - improved // self._interval >= self._patience

  def _log(self, row: curves.Row) -> None:
    if not self._has_header:
      logging.info('%s', _HEADER.rstrip())
      self._has_header = True
    left = self._reporter.speed(row.step).get('seconds_left')
    shown = '' if left is None else datetime.timedelta(seconds=round(left))
    logging.info(
      '%s',
      f'{row.epoch:6.1f}{row.step:7d}{row.train_loss:12.4f}'
      f'{row.valid_loss:12.4f}{row.accuracy:10.2%}{row.learning_rate:9.2g}'
      f'{shown!s:>11}{"  *" if row.is_best else ""}',
    )

  def save(self) -> None:
    """Write the best weights, if they are not; raise UserError if it fails."""
    if self._unsaved is not None:
      kept, step, facts = self._unsaved
      self._folder.keep(kept, step, **facts)
      self._unsaved = None
