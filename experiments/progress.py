"""What a run tells: log lines or a progress bar, and TensorBoard's scalars."""

import datetime
import logging as stdlib_logging
import pathlib
import sys
import tempfile
import threading
import types
from typing import Any

from absl import logging
import jax
from jaxline import platform
import numpy as np
import tqdm

from experiments import layer_log, privacy
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
# A terminal has 80 columns.
_IN_BAR = ('train_loss', 'top_1_acc', 'images_per_second')


class Reporter:
  """Shows training on a terminal as a bar, elsewhere as a line per interval."""

  def __init__(
    self,
    training_steps: int,
    batch_size: int,
    private: privacy.Privacy | None = None,
  ):
    """Starts with nothing to show.

    Args:
      training_steps: the step at which training ends.
      batch_size: images per step, over all devices.
      private: tells epsilon and delta, where training is private.
    """
    self._training_steps = training_steps
    self._batch_size = batch_size
    self._private = private
    self._bar: tqdm.tqdm | None = None

  def known(self, step: int) -> dict[str, float]:
    """Returns what is known of a step without making it."""
    if self._private is None:
      return {}
    epsilon = self._private.epsilon(step)
    return {'epsilon': epsilon, 'delta': self._private.delta}

  def log(self, step: int, scalars: dict[str, Any]) -> None:
    """Logs one line on the first host, unless there is a bar."""
    if self._bar is not None or jax.process_index():
      return
    scalars = self.with_speed(step, _without_layers(scalars))
    logging.info(
      'step %d/%d  %s', step, self._training_steps, '  '.join(_show(scalars))
    )

  def with_speed(self, step: int, scalars: dict[str, Any]) -> dict[str, float]:
    """Adds images per second, the seconds that are left and what is `known`.

    At a run's first step there is no speed yet, and nothing is added.
    """
    scalars = {k: np.asarray(v).item() for k, v in scalars.items()}
    scalars.update(self.known(step))
    speed = scalars['steps_per_sec']
    if speed > 0:
      scalars['images_per_second'] = speed * self._batch_size
      scalars['seconds_left'] = (self._training_steps - step) / speed
    return scalars

  def start_bar(self, step: int) -> bool:
    """Begins a bar, if standard error is a terminal; tells whether it did."""
    if sys.stderr.isatty() and not jax.process_index():
      self._bar = tqdm.tqdm(
        total=self._training_steps,
        initial=step,
        unit='step',
        dynamic_ncols=True,
      )
    return self._bar is not None

  def update_bar(self, step: int, scalars: dict[str, Any]) -> None:
    """Moves the bar."""
    if self._bar is None:
      return
    scalars = self.with_speed(step, _without_layers(scalars))
    # What is left stands in the bar already.
    shown = _show({k: v for k, v in scalars.items() if k in _IN_BAR})
    self._bar.set_postfix_str('  '.join(shown), refresh=False)
    self._bar.update(step - self._bar.n)

  def close(self, step: int) -> None:
    """Ends the bar at the last step that was made."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.close()
      self._bar = None


def _without_layers(scalars: dict[str, Any]) -> dict[str, Any]:
  """Leaves out the hundreds of numbers that nobody reads in a line."""
  return {k: v for k, v in scalars.items() if k != layer_log.NAME}


def _show(scalars: dict[str, float]) -> list[str]:
  """Returns what people read of the metrics."""
  shown = [
    f'{label} {form.format(scalars[key])}'
    for key, label, form in _SHOWN
    if key in scalars
  ]
  if 'seconds_left' in scalars:
    left = datetime.timedelta(seconds=round(scalars['seconds_left']))
    shown.append(f'{left} left')
  return shown


class Writer:
  """A JAXline writer: TensorBoard's scalars, and the last ones for the end."""

  def __init__(self, config: Any, mode: str, reporter: Reporter | None = None):
    """Opens `checkpoint_dir/mode`.

    Args:
      config: JAXline's.
      mode: JAXline's mode.
      reporter: adds the speed to what training writes.
    """
    self._tensorboard = self._copying = None
    folder = config.checkpoint_dir
    if not jax.process_index():
      if paths.is_remote(folder):
        self._copying = _Copying(paths.path(folder) / mode)
        folder = self._copying.local
      where = types.SimpleNamespace(checkpoint_dir=folder)
      self._tensorboard = platform.TensorBoardLogger(where, mode)
    self._reporter = reporter
    self.last: dict[str, float] = {}

  def write_scalars(self, global_step: int, scalars: dict[str, Any]) -> None:
    """Writes one point of each curve."""
    layers = scalars.get(layer_log.NAME)
    scalars = _without_layers(scalars)
    if self._reporter is not None:
      scalars = self._reporter.with_speed(global_step, scalars)
    scalars = {k: np.asarray(v).item() for k, v in scalars.items()}
    if self._tensorboard is not None:
      curves = dict(layers.scalars()) if layers is not None else {}
      self._tensorboard.write_scalars(global_step, {**scalars, **curves})
    if self._copying is not None:
      self._copying.begin()
    self.last = {'step': int(global_step), **scalars}

  def finish(self) -> None:
    """Waits until everything is where it belongs, or cannot be."""
    if self._copying is not None:
      self._copying.finish()


class _Copying:
  """Copies TensorBoard's files into a bucket, in the background.

  TensorFlow would have training wait for the store, and end where it fails.
  """

  def __init__(self, remote: Any):
    """Copies nothing yet.

    Args:
      remote: the folder in the bucket; files from the folder of this name in
        `local` are copied there.
    """
    self._folder = tempfile.TemporaryDirectory(prefix='nfnets-')
    self.local = self._folder.name
    self._remote = remote
    self._thread: threading.Thread | None = None
    self._sizes: dict[pathlib.Path, int] = {}

  def begin(self) -> None:
    """Begins to copy what has grown, unless that is being done."""
    if self._thread is None or not self._thread.is_alive():
      self._thread = threading.Thread(target=self._copy, daemon=True)
      self._thread.start()

  def finish(self) -> None:
    """Copies what is left."""
    if self._thread is not None:
      self._thread.join()
    self._copy()

  def _copy(self) -> None:
    for file in pathlib.Path(self.local, self._remote.name).iterdir():
      content = file.read_bytes()
      if len(content) == self._sizes.get(file):
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
      self._sizes[file] = len(content)


class _AboveBars:
  """Standard error for log lines, which go above the bars that there are."""

  def __init__(self):
    self._stream = sys.stderr  # Which may be redirected for a while.

  def write(self, text: str) -> None:
    tqdm.tqdm.write(text, file=self._stream, end='')

  def flush(self) -> None:
    self._stream.flush()

  def close(self) -> None:
    """Leaves standard error open; absl calls this at the end."""


def set_up_logging() -> None:
  """Logs to standard error, without what libraries tell of their workings."""
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
  if 'orbax' in record.pathname or 'jaxline' in record.pathname:
    return False  # Their errors are raised, too.
  is_library = 'site-packages' in record.pathname
  return record.levelno > stdlib_logging.INFO or not is_library
