"""What a run shows: log lines or a bar, TensorBoard's scalars, and its end."""

import datetime
import logging as stdlib_logging
import math
import pathlib
import shlex
import sys
import threading
import time
import types
from typing import Any

from absl import logging
import jax
import numpy as np
import tqdm

from experiments import checkpoints, command_line, gradients, privacy
from nfnets import paths

# The metrics, in words, and how they are written.
_SHOWN = (
  ('train_loss', 'loss', '{:.3f}'),
  ('top_1_acc', 'top-1', '{:.1%}'),
  ('learning_rate', 'lr', '{:.3g}'),
  ('grad_norm', 'grad', '{:.3g}'),
  ('fraction_clipped', 'clipped', '{:.1%}'),
  ('images_per_second', 'images/s', '{:.0f}'),
  ('data_wait', 'waiting', '{:.0%}'),
  ('images_skipped', 'bad images', '{:.0f}'),
  ('updates_skipped', 'bad updates', '{:.0f}'),
  ('epsilon', 'epsilon', '{:.3g}'),
)
# A terminal has 80 columns, where steps per second are left out.
_BAR = (
  '{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}'
)
_IN_BAR = ('train_loss', 'top_1_acc', 'images_per_second', 'data_wait')


class Reporter:
  """Shows training on a terminal as a bar, elsewhere as a line per interval."""

  def __init__(
    self,
    training_steps: int,
    batch_size: int,
    private: privacy.Privacy | None = None,
  ):
    """Start with nothing to show.

    Args:
      training_steps: the step at which training ends.
      batch_size: images per step, over all devices.
      private: tells epsilon and delta, where training is private.
    """
    self._training_steps = training_steps
    self._batch_size = batch_size
    self._private = private
    self._bar: tqdm.tqdm | None = None
    # (step, time) of the end of the first step, and of the last report by what
    # reports: the log, the bar or the curves.
    self._first: tuple[int, float] | None = None
    self._reported: dict[str, tuple[int, float]] = {}

  def start_clock(self, step: int) -> None:
    """Begin to measure the speed, which does not include compiling."""
    self._first = (step, time.monotonic())

  def speed(self, step: int, reports: str = '') -> dict[str, float]:
    """Return images per second and the seconds that are left; {} if unknown.

    Args:
      step: the number of updates made.
      reports: what asks. The speed is that since it asked before, if that was
        at least a second ago, and else that of all steps but the first.
    """
    if self._first is None or step <= self._first[0]:
      return {}
    now = time.monotonic()
    since = self._reported.get(reports, self._first)
    if now - since[1] < 1 or step <= since[0]:
      since = self._first
    elif reports:
      self._reported[reports] = (step, now)
    steps_per_sec = (step - since[0]) / (now - since[1])
    return {
      'images_per_second': steps_per_sec * self._batch_size,
      'seconds_left': (self._training_steps - step) / steps_per_sec,
    }

  def known(self, step: int) -> dict[str, float]:
    """Return what is known of a step without making it."""
    if self._private is None:
      return {}
    epsilon = self._private.epsilon(step)
    return {'epsilon': epsilon, 'delta': self._private.delta}

  def scalars(
    self, reports: str, step: int, metrics: dict[str, Any]
  ) -> dict[str, float]:
    """Return metrics but the layers', with the speed and what is `known`."""
    # These wait for the step. JAXline measures the speed of a few steps alone.
    left_out = gradients.LAYERS, 'steps_per_sec'
    scalars = {
      k: np.asarray(v).item() for k, v in metrics.items() if k not in left_out
    }
    return {**scalars, **self.known(step), **self.speed(step, reports)}

  def log(self, step: int, metrics: dict[str, Any]) -> None:
    """Log one line on the first host, unless there is a bar."""
    if self._bar is None and not jax.process_index():
      shown = _show(self.scalars('log', step, metrics))
      logging.info('step %d/%d  %s', step, self._training_steps, shown)

  def start_bar(self, step: int) -> bool:
    """Begin a bar, if standard error is a terminal; tell whether it did."""
    if sys.stderr.isatty() and not jax.process_index():
      self._bar = tqdm.tqdm(
        total=self._training_steps,
        initial=step,
        bar_format=_BAR,
        dynamic_ncols=True,
      )
    return self._bar is not None

  def update_bar(self, step: int, metrics: dict[str, Any]) -> None:
    """Move the bar, if there is one."""
    if self._bar is not None:
      scalars = self.scalars('bar', step, metrics)
      # The bar itself shows the time that is left.
      shown = _show({k: v for k, v in scalars.items() if k in _IN_BAR}, ' ')
      self._bar.set_postfix_str(shown, refresh=False)
      self._bar.update(step - self._bar.n)

  def close(self, step: int) -> None:
    """End the bar at the last step that was made."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.close()
      self._bar = None


def _show(scalars: dict[str, float], separator: str = '  ') -> str:
  """Return what people read of the metrics."""
  shown = [
    f'{label} {form.format(scalars[key])}'
    for key, label, form in _SHOWN
    if key in scalars
  ]
  if 'seconds_left' in scalars:
    left = datetime.timedelta(seconds=round(scalars['seconds_left']))
    shown.append(f'{left} left')
  return separator.join(shown)


class Writer:
  """A JAXline writer: TensorBoard's scalars, and the last ones for the end.

  Into a bucket its files are copied in the background, because TensorFlow would
  have training wait for the store, and end where it fails.
  """

  def __init__(self, config: Any, mode: str, reporter: Reporter | None = None):
    """Open `checkpoint_dir/mode`.

    Args:
      config: JAXline's.
      mode: JAXline's mode.
      reporter: adds the speed to what training writes.
    """
    self._tensorboard = self._remote = None
    self._copied: dict[str, int] = {}  # Sizes by name.
    self._thread = threading.Thread()
    folder = paths.expand(config.checkpoint_dir)
    if not jax.process_index():
      if paths.is_remote(folder):
        self._remote = paths.path(folder) / mode
        folder = paths.process_folder() / folder.removeprefix('gs://')
      import nfnets.data  # noqa: F401 (TensorFlow, without announcements)

      from jaxline import platform  # isort: skip

      where = types.SimpleNamespace(checkpoint_dir=str(folder))
      self._tensorboard = platform.TensorBoardLogger(where, mode)
      self._local = pathlib.Path(folder, mode)
    self._reporter = reporter or Reporter(0, 0)
    self.last: dict[str, float] = {}

  def write_scalars(self, global_step: int, scalars: dict[str, Any]) -> None:
    """Write one point of each curve."""
    layers = scalars.get(gradients.LAYERS)
    scalars = self._reporter.scalars('curves', global_step, scalars)
    if self._tensorboard is not None:
      curves = dict(layers.scalars()) if layers is not None else {}
      self._tensorboard.write_scalars(global_step, {**scalars, **curves})
    if self._remote is not None and not self._thread.is_alive():
      self._thread = threading.Thread(target=self._copy, daemon=True)
      self._thread.start()
    self.last = {'step': int(global_step), **scalars}

  def finish(self) -> None:
    """Wait until everything is where it belongs, or cannot be."""
    if self._remote is not None:
      if self._thread.ident is not None:
        self._thread.join()
      self._copy()

  def _copy(self) -> None:
    for file in self._local.iterdir():
      content = file.read_bytes()
      if len(content) == self._copied.get(file.name):
        continue
      try:
        paths.write_bytes(self._remote / file.name, content)
      except OSError as error:
        logging.warning(
          'Curves could not be written to %s, and will be again: %s.',
          self._remote,
          error.strerror or error,
        )
        return
      self._copied[file.name] = len(content)


class _AboveBars:
  """Standard error for log lines, which go above the bars that there are."""

  def __init__(self):
    self._stream = sys.stderr  # It may be redirected for a while.

  def write(self, text: str) -> None:
    tqdm.tqdm.write(text, file=self._stream, end='')

  def flush(self) -> None:
    self._stream.flush()

  def close(self) -> None:
    """Leave standard error open; absl calls this at the end."""


def set_up_logging() -> None:
  """Log to standard error, without what libraries tell of their workings."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.python_handler.setStream(_AboveBars())
  handler.setFormatter(
    stdlib_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
  )
  handler.addFilter(_is_for_people)

  def excepthook(kind, error, traceback):
    # TensorStore's threads say so of every array that they could not write.
    if str(error) != 'Event loop is closed':
      sys.__excepthook__(kind, error, traceback)

  sys.excepthook = excepthook


def _is_for_people(record: stdlib_logging.LogRecord) -> bool:
  # site-packages, or dist-packages. A clone may be in a folder called jaxline.
  _, _, library = record.pathname.partition('-packages')
  if 'orbax' in library or 'jaxline' in library:
    return False  # Their errors are raised, too.
  return record.levelno > stdlib_logging.INFO or not library


def describe_end(
  argv: list[str], config: Any, results: dict[str, Any], seconds: float | None
) -> str:
  """Return a few lines: how it went, where the results are, what comes next.

  Args:
    argv: the command line.
    config: JAXline's.
    results: the results that the command prints as JSON.
    seconds: duration; None if the run had already ended.
  """
  mode, step = results['mode'], results.get('step')
  took = f'{datetime.timedelta(seconds=round(seconds or 0))}'
  stopped = results.get('stopped_by_sigterm') or results.get('interrupted')
  if seconds is None:
    lines = [f'This run had ended at step {step}; nothing was done or changed.']
  elif stopped:
    lines = [f'Stopped at step {step} after {took}; the same command goes on.']
  elif mode == 'eval':
    lines = [f'Evaluated in {took}.']
  else:
    speed = results.get('images_per_second')
    speed = f', {speed:.0f} images per second' if speed else ''
    lines = [f'Trained to step {step} in {took}{speed}.']
  if results.get('stopped_early'):
    lines.append(
      f'Stopped early: no improvement in the last {config.patience} '
      f'evaluation(s). The best weights are those of step '
      f'{results.get("best_step", step)}.'
    )
  accuracies = []
  for key, what in (
    ('test_top_1_acc', 'Test accuracy'),
    ('eval_top_1_acc', 'Accuracy'),
    ('eval_ema_top_1_acc', 'Accuracy of the averaged weights'),
  ):
    if math.isfinite(results.get(key, math.nan)):
      number = results[f'{key.partition("_")[0]}_num_examples']
      line = f'{what}: {results[key]:.2%} of {number} examples'
      if key.startswith('test') and results['test_split'] != 'test':
        line += f' ({results["test_split"]})'
      accuracies.append(line)
  if 'checkpoint_dir' not in results:
    return '\n'.join([*lines, *accuracies])
  folder = paths.path(results['checkpoint_dir'])
  saved = checkpoints.latest_step(folder / 'latest')
  if stopped and saved is not None:
    lines.append(f'Saved: step {saved} in {folder / "latest"}')
  lines += accuracies
  if mode == 'train' and 'best_step' in results:  # It has ended.
    from nfnets.inference import curves, report_warnings

    scalars = curves.read_scalars(folder / 'eval')
    rows = curves.rows(scalars, results['best_step'])
    early = results.get('stopped_early', False)
    lines += [x.text for x in report_warnings.check_training(rows, early)]
  best = checkpoints.best(folder)
  if best is not None:
    metric = config.best_model_eval_metric
    lines.append(f'Best {metric} so far: {best[0]:.4g}, at step {best[1]}')
  lines.append(f'Results: {folder} (checkpoints, TensorBoard curves)')
  if 'report' in results:
    lines.append(f'Report: {results["report"]}')
  if mode == 'train':
    again = command_line.without(argv, 'jaxline_mode', 'weights')
    if len(again) == len(argv) and config.experiment_kwargs.config.weights:
      again.append('--weights=None')  # The config names them, not the command.
    again = shlex.join([*again, '--jaxline_mode=eval'])
    lines.append(f'Evaluate: python {again}')
  if paths.is_file(folder / 'weights.safetensors'):
    name = shlex.quote(str(folder))
    lines.append(f'Classify: python -m nfnets.classify --weights={name} IMAGE')
  return '\n'.join(lines)
