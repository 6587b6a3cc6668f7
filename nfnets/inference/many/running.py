"""What `classify` and `embed` share: the batches, the loop, and how it ends."""

import argparse
import collections
from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from typing import Any, TextIO

import numpy as np
import tqdm

from nfnets.errors import ImageError, UserError
from nfnets.inference import networks
from nfnets.inference.many import formats
from nfnets.inference.many.sources import Item, Source
from nfnets.weights import fetching

_MAX_THREADS = 8  # Each holds an image in full.
_NAMES_SHOWN = 5  # Unreadable images that the summary names.
_ERRORS_SHOWN = 10  # While it runs, if the output has them as well.


def say(text: str, file: TextIO) -> None:
  """Print a line, above the bar if there is one."""
  tqdm.tqdm.write(text, file=file)
  file.flush()


def calls(network: networks.Network) -> int:
  """Return how many batches the network works on at the same time."""
  return 2 if network.runtime == 'openvino' else 1


def run_batches(
  function: Callable[[np.ndarray], np.ndarray],
  preprocess: Callable[[bytes | np.ndarray], np.ndarray],
  make_row: Callable[[np.ndarray, int | None], formats.Row],
  items: Iterator[Item],
  batch_size: int,
  calls: int = 1,
  check: bool = True,
) -> Iterator[list[formats.Row]]:
  """Run a network on images, in batches, and read the next ones meanwhile.

  Args:
    function: from preprocessed images [B, h, w, 3] to [B, ...]. B is always
      the same, so that it is compiled once.
    preprocess: from a read image to [h, w, 3].
    make_row: from an output and a label to the row of an image.
    items: the images.
    batch_size: B, if there are as many images.
    calls: number of concurrent calls of `function`.
    check: whether to look for damage that `preprocess` may miss.

  Yields:
    The rows of each batch, in the order of the images, with `image`, its name,
    and `error` where there is no output.
  """
  threads = min(os.cpu_count() or 1, _MAX_THREADS)
  reading = futures.ThreadPoolExecutor(threads, 'read')
  computing = futures.ThreadPoolExecutor(calls, 'compute')
  waiting: collections.deque[futures.Future] = collections.deque()
  size = None

  def load(item: Item) -> tuple[np.ndarray | str, int | None]:
    """Return a preprocessed image and its label, or what is wrong with it."""
    try:
      image, label = item.read(check)
      return preprocess(image), label
    except ImageError as error:
      return str(error), None

  def compute(batch: list[Item], loads: list[futures.Future]) -> list:
    """Run one batch, filled up to `size`, without the images with an error."""
    loaded = [load.result() for load in loads]
    good = [image for image, _ in loaded if not isinstance(image, str)]
    if good:
      images = np.zeros((size, *good[0].shape), np.float32)
      np.stack(good, out=images[: len(good)])
      outputs = iter(np.asarray(function(images)))
    rows = [{'image': item.name} for item in batch]
    for row, (image, label) in zip(rows, loaded, strict=True):
      if isinstance(image, str):
        row['error'] = image
      elif np.isfinite(output := next(outputs)).all():
        row |= make_row(output, label)
      else:
        row['error'] = "the network's output is not finite"
    return rows

  try:
    while batch := [*itertools.islice(items, batch_size)]:
      size = size or len(batch)
      loads = [reading.submit(load, item) for item in batch]
      waiting.append(computing.submit(compute, batch, loads))
      if len(waiting) > calls + 2:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    computing.shutdown(cancel_futures=True)
    reading.shutdown(cancel_futures=True)


class _Tally:
  """Counts rows, and reports their errors."""

  def __init__(self, has_output: bool):
    self.counts = collections.Counter()
    self.is_long = False  # More than one batch.
    self._shown = _ERRORS_SHOWN if has_output else sys.maxsize
    self._names: list[str] = []

  def add(self, row: formats.Row, report: bool = True) -> None:
    self.counts.update(
      images=1,
      failed='error' in row,
      labelled='correct' in row,
      correct=row.get('correct', False),
    )
    if 'error' in row:
      self._names += [row['image']][: self.counts['failed'] <= _NAMES_SHOWN]
      error = f'{row["image"]}: {row["error"]}'
      if self.counts['failed'] == self._shown + 1:
        error = 'Further errors are only in the output.'
      if report and self.counts['failed'] <= self._shown + 1:
        say(error, sys.stderr)

  def results(self) -> dict[str, Any]:
    """Return the counts; says how many have failed."""
    images, failed, labelled, correct = (
      self.counts[key] for key in ('images', 'failed', 'labelled', 'correct')
    )
    if failed and self.is_long:
      rest = failed - len(self._names)
      say(
        f'{failed:,} of {images:,} images failed: {", ".join(self._names)}'
        + (f' and {rest:,} more' if rest else ''),
        sys.stderr,
      )
    accuracy = {'accuracy': correct / labelled} if labelled else {}
    return {'images': images - failed, 'failed': failed, **accuracy}


def run(
  args: argparse.Namespace,
  network: networks.Network,
  source: Source,
  journal: formats.Journal | None,
  function: Callable[[np.ndarray], np.ndarray],
  make_row: Callable[[np.ndarray, int | None], formats.Row],
  table: formats.Table,
  print_row: Callable[[formats.Row], None] = lambda row: None,
  **settings: Any,
) -> dict[str, Any]:
  """Run a network on all images that have no results yet, and write them.

  Args:
    args: arguments of `sources.add_arguments`.
    network: the network.
    source: the images.
    journal: stores the results; None if they are printed.
    function: the network's function of preprocessed images.
    make_row: from an output and a label to the row of an image, with the
      embedding if it is one.
    table: converts rows to the columns of the output.
    print_row: prints a row, without a journal.
    **settings: other settings that change the results.

  Returns:
    What the last line of standard output has.

  Raises:
    UserError: if the results cannot be written.
  """
  tally, start, timed = _Tally(journal is not None), None, 0
  items, bar = source.items(), None
  results = {'model': network.name}
  with contextlib.ExitStack() as stack:
    if journal is not None:
      stack.callback(journal.lock.release)
      stack.enter_context(_explained(journal))
      settings |= {
        'weights': fetching.digest(fetching.find(args.weights)),
        'model': network.name,
        'image_size': network.image_size,
        'preprocessing': network.preprocessing,
        'runtime': network.runtime,
        'precision': network.precision,
        'tta': network.tta,
        'images': [
          *(*args.paths, args.list, args.data, args.split, args.data_dir)
        ],
      }
      for row in journal.resume(settings, items):
        tally.add(row, report=False)
      if number := tally.counts['images']:
        tally.is_long = True
        say(f'Goes on after {number:,} images.', sys.stderr)

    def watched() -> Iterator[Item]:
      nonlocal bar
      for number, item in enumerate(items):
        if number == args.batch_size:
          tally.is_long = True
          bar = stack.enter_context(_bar(source, tally.counts['images']))
        yield item

    batches = run_batches(
      *(function, network.preprocess, make_row, watched(), args.batch_size),
      calls=calls(network),
      # This decodes only the crop of a JPEG, and misses damage around it.
      check=network.preprocessing == 'crop_resize',
    )
    stack.callback(batches.close)
    for rows in batches:
      if start is None:
        start = time.perf_counter()
      else:
        timed += len(rows)
      if journal is not None:
        journal.append(''.join(json.dumps(row) + '\n' for row in rows))
      for row in rows:
        tally.add(row)
        if journal is None:
          print_row(row)
      if bar is not None:
        bar.update(len(rows))
    if timed:
      rate = timed / (time.perf_counter() - start)
      results['images_per_second'] = round(rate, 3)
    results |= tally.results()
    if journal is not None:
      results['output'] = args.output
      if table.has_vectors:
        vectors = map(formats.decode, journal.rows())
        first = next((x for x in vectors if x is not None), None)
        if first is None:
          journal.remove()
          raise UserError('no image to embed; nothing is written.')
        results['dimension'] = len(first)
      journal.finish(table)
  return results


@contextlib.contextmanager
def _bar(source: Source, start: int) -> Iterator[tqdm.tqdm]:
  """Show progress, and its end once the images are counted."""
  # None: unless standard error is a terminal.
  options = {'unit': ' images', 'dynamic_ncols': True, 'disable': None}
  with tqdm.tqdm(initial=start, **options) as bar:

    def count() -> None:
      # The loop over the images says what is wrong with them.
      with contextlib.suppress(Exception):
        bar.total = source.count()
        bar.refresh()

    if source.count is not None and not bar.disable:
      threading.Thread(target=count, daemon=True).start()
    yield bar
    bar.total = bar.total or bar.n


@contextlib.contextmanager
def _explained(journal: formats.Journal) -> Iterator[None]:
  """Say how to continue after a failed write, Ctrl-C or SIGTERM."""

  def end(number: int, frame: Any) -> None:
    del frame
    # At once, as in `command_line.run`; the journal is right at any moment.
    print(
      '\n'
      * sys.stderr.isatty()  # Where there may be a bar.
      + f'error: interrupted; the same command with --resume goes on with '
      f'{journal.output}',
      file=sys.stderr,
      flush=True,
    )
    os._exit(128 + number)

  before = {
    number: signal.signal(number, end)
    for number in (signal.SIGINT, signal.SIGTERM)
    if signal.getsignal(number) != signal.SIG_IGN
  }
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{error.filename or journal.output}: {error.strerror}. The results so '
      f'far are in {journal.folder}; --resume continues with them.'
    ) from error
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
