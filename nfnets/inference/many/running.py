"""What `classify` and `embed` share: the images, the loop, and how it ends."""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any, TextIO

import numpy as np
import tqdm

from nfnets import paths as paths_lib
from nfnets.inference import command_line, networks
from nfnets.inference.many import formats, pipeline, sources
from nfnets.inference.many.journal import Journal, JournalError, Row

_NAMES_TOLD = 5  # Of images that cannot be read, in the end.
_ERRORS_TOLD = 10  # As they come, if they are in an output as well.


def say(text: str, file: TextIO) -> None:
  """Prints a line, above the bar if there is one."""
  tqdm.tqdm.write(text, file=file)
  file.flush()


class Tally:
  """What has been counted of the rows so far."""

  def __init__(self):
    self.images = 0
    self.failed = 0
    self.first_failed: list[str] = []
    self.correct: int | None = None
    self.labelled = 0

  def add(self, row: Row) -> None:
    """Counts a row."""
    self.images += 1
    if 'error' in row:
      self.failed += 1
      if len(self.first_failed) < _NAMES_TOLD:
        self.first_failed.append(row['image'])
    elif 'correct' in row:
      self.labelled += 1
      self.correct = (self.correct or 0) + row['correct']

  def results(self) -> dict[str, Any]:
    """Returns what a command ends with."""
    found = {'images': self.images - self.failed, 'failed': self.failed}
    if self.correct is not None:
      found['accuracy'] = self.correct / self.labelled
    return found

  def told(self) -> str:
    """Says in words how many images have failed."""
    rest = self.failed - len(self.first_failed)
    more = f' and {rest:,} more' if rest else ''
    return (
      f'{self.failed:,} of {self.images:,} images failed: '
      f'{", ".join(self.first_failed)}{more}'
    )


class _Bar:
  """Shows how far it is, and how fast, once there is more than one batch."""

  def __init__(self, source: sources.Source, start: int):
    self._source, self._start = source, start
    self._bar: tqdm.tqdm | None = None

  def show(self) -> None:
    """Begins; does nothing the next times."""
    if self._bar is None:
      self._bar = tqdm.tqdm(
        initial=self._start,
        unit=' images',
        dynamic_ncols=True,
        # None: unless standard error is a terminal.
        disable=None,
      )
      if self._source.count is not None and not self._bar.disable:
        threading.Thread(target=self._count, daemon=True).start()

  def _count(self) -> None:
    # Who enumerates them for the network says what is wrong.
    with contextlib.suppress(Exception):
      self._bar.total = self._source.count()
      self._bar.refresh()

  def update(self, count: int) -> None:
    if self._bar is not None:
      self._bar.update(count)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.total = self._bar.total or self._bar.n
      self._bar.close()


class Command:
  """The images of a command, and what becomes of them."""

  def __init__(
    self,
    args: argparse.Namespace,
    network: networks.Network,
    source: sources.Source,
    journal: Journal | None,
  ):
    """Prepares to run.

    Args:
      args: of `arguments.add`.
      network: which all images go through.
      source: the images.
      journal: where results are kept; None if they are printed.
    """
    self._args, self._network, self._source = args, network, source
    self._journal = journal
    self.tally = Tally()
    self.is_long = False  # More than one batch.
    self._rate: float | None = None

  def run(
    self,
    function: Callable[[np.ndarray], np.ndarray],
    row: Callable[[pipeline.Answer], Row],
    print_row: Callable[[Row], None] | None = None,
    settings: dict[str, Any] | None = None,
  ) -> None:
    """Runs the network on all images that have no results yet.

    Args:
      function: of the network, for preprocessed images.
      row: from an answer without an error to what is told of it, beside the
        name of the image.
      print_row: prints a row, without a journal.
      settings: all that results depend on.

    Raises:
      CommandError: if the results cannot be kept.
    """
    items = iter(self._source.items())
    with contextlib.ExitStack() as stack:
      if self._journal is not None:
        stack.callback(self._journal.close)
        self._go_on(items, settings)
        stack.enter_context(_told_how_to_go_on(self._journal))
      bar = _Bar(self._source, self.tally.images)
      stack.callback(bar.close)

      def when_many() -> None:
        self.is_long = True
        bar.show()

      batches = pipeline.answers(
        function,
        self._network.preprocess,
        items,
        self._args.batch_size,
        calls=calls(self._network),
        all_whole=self.tally.images > 0,
        # Of a JPEG this decodes the crop alone, whatever is wrong around it.
        check=self._network.preprocessing == 'crop_resize',
        when_many=when_many,
      )
      stack.callback(batches.close)
      for batch in _timed(batches, self._set_rate):
        rows = [self._row(answer, row) for answer in batch]
        if self._journal is not None:
          self._keep(rows, [x.output for x in batch if x.output is not None])
        for one in rows:
          self.tally.add(one)
          self._report(one)
          if print_row is not None:
            print_row(one)
        bar.update(len(batch))
    if self.tally.failed and self.is_long:
      say(self.tally.told(), sys.stderr)

  def results(self) -> dict[str, Any]:
    """Returns what the last line of standard output has."""
    found = {'model': self._network.name, **self.tally.results()}
    if self._rate is not None:
      found['images_per_second'] = round(self._rate, 3)
    return found

  def _row(
    self, answer: pipeline.Answer, row: Callable[[pipeline.Answer], Row]
  ) -> Row:
    told = {'image': answer.name}
    if answer.error is not None:
      return {**told, 'error': answer.error}
    return {**told, **row(answer)}

  def _report(self, row: Row) -> None:
    if 'error' not in row:
      return
    if self._journal is None or self.tally.failed <= _ERRORS_TOLD:
      say(f'{row["image"]}: {row["error"]}', sys.stderr)
    elif self.tally.failed == _ERRORS_TOLD + 1:
      say('Further errors are in the output alone.', sys.stderr)

  def _go_on(
    self, items: Iterator[sources.Item], settings: dict[str, Any] | None
  ) -> None:
    begun = self._journal.exists()
    try:
      self._journal.open(settings or {})
      for row in self._journal.recover(items, self._args.batch_size):
        self.tally.add(row)
    except JournalError as error:
      raise command_line.CommandError(error) from error
    except OSError as error:
      raise self._failed_to_write(error) from error
    if begun:
      self.is_long = True
      say(f'Goes on after {self.tally.images:,} images.', sys.stderr)

  def _keep(self, rows: list[Row], vectors: list[np.ndarray]) -> None:
    try:
      self._journal.append(rows, vectors)
    except OSError as error:
      raise self._failed_to_write(error) from error

  def finish(self, table: formats.Table) -> None:
    """Writes the output.

    Args:
      table: how rows become columns.

    Raises:
      CommandError: if it cannot be written.
    """
    suffix = os.path.splitext(self._journal.output)[1]
    with _told_how_to_go_on(self._journal):
      try:
        self._journal.finish(
          lambda path: formats.WRITERS[suffix](self._journal, table, path)
        )
      except OSError as error:
        raise self._failed_to_write(error) from error

  def _failed_to_write(self, error: OSError) -> command_line.CommandError:
    return command_line.CommandError(
      f'{self._journal.output}: {error.strerror}. What there is so far is in '
      f'{self._journal.folder}; --resume goes on with it.'
    )

  def _set_rate(self, rate: float) -> None:
    self._rate = rate


def open_journal(args: argparse.Namespace, has_vectors: bool) -> Journal | None:
  """Returns where the results of a command are kept; None to print them.

  Raises:
    CommandError: if the output cannot be written, or is somebody else's.
  """
  if args.output is None:
    return None
  command_line.check_output(args.output)
  command_line.check_installed('--output', ('filelock',), 'train')
  if args.output.endswith('.parquet'):
    command_line.check_installed('Writing Parquet', ('pyarrow',), 'train')
  journal = Journal(args.output, has_vectors)
  if not args.resume:
    try:
      journal.check_can_begin()
    except JournalError as error:
      raise command_line.CommandError(error) from error
  return journal


def is_finished(args: argparse.Namespace, journal: Journal) -> bool:
  """Returns whether the output of a command to resume is there; says so."""
  if not args.resume or journal.exists() or not paths_lib.is_file(args.output):
    return False
  say(
    f'{args.output} is there, and nothing that was stopped: there is nothing '
    'to do. Without --resume it is made anew.',
    sys.stderr,
  )
  print_results({'output': args.output})
  return True


def weights_digest(name: str) -> str:
  """Returns what changes with the contents of a file of weights."""
  from nfnets.weights import fetching

  with open(fetching.find(name), 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def settings(
  args: argparse.Namespace, network: networks.Network, **others: Any
) -> dict[str, Any]:
  """Returns all that the results depend on, but for what the images hold."""
  return {
    'weights': weights_digest(args.weights),
    'model': network.name,
    'image_size': network.image_size,
    'preprocessing': network.preprocessing,
    'runtime': network.runtime,
    'precision': network.precision,
    'batch_size': args.batch_size,
    'images': [*args.paths, args.list, args.data, args.split, args.data_dir],
    **others,
  }


def print_results(results: dict[str, Any]) -> None:
  """Prints the last line of standard output."""
  say(json.dumps(results), sys.stdout)


def calls(network: networks.Network) -> int:
  """Returns how many batches the network works on at the same time."""
  return 2 if network.runtime == 'openvino' else 1


def _timed(
  batches: Iterator[list[pipeline.Answer]],
  done: Callable[[float], None],
) -> Iterator[list[pipeline.Answer]]:
  """Passes batches on; tells images per second after the first batch."""
  start, count = None, 0
  for batch in batches:
    if start is None:
      start = time.perf_counter()
    else:
      count += len(batch)
    yield batch
  if count:
    done(count / (time.perf_counter() - start))


@contextlib.contextmanager
def _told_how_to_go_on(journal: Journal) -> Iterator[None]:
  """Ends the process at Ctrl-C or SIGTERM, with a word about --resume."""

  def end(number: int, frame: Any) -> None:
    del frame
    # At once, as in `command_line.run`; what is kept is right at any moment.
    print(
      '\n'
      * sys.stderr.isatty()  # Where there may be a bar.
      + f'error: interrupted; the same command with --resume goes on with '
      f'{journal.output}',
      file=sys.stderr,
      flush=True,
    )
    os._exit(128 + number)

  before = {}
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
      before[number] = signal.signal(number, end)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
