"""SIGTERM as a request to save and end, as clusters send it before they stop a
machine."""

from collections.abc import Iterator
import os
import signal
import threading
from typing import Any

from absl import logging

from nfnets.data import errors


class StoppedError(Exception):
  """The work was left because the program shall end."""


class Notice:
  """Whether the program has been asked to end; a context manager.

  Inside the context, a first SIGTERM is noted, and a second one ends the
  program at once, with the status that shells give it, 143.
  """

  def __init__(self):
    self._event = threading.Event()
    self._readers: list[Any] = []

  def is_set(self) -> bool:
    """Tells whether SIGTERM has come."""
    return self._event.is_set()

  def until_set(self, batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches until SIGTERM comes, if need be while it waits for one.

    A read from a store that fails may last longer than a machine that is taken
    away has left.

    Args:
      batches: those of `nfnets.data.dataset`.

    Raises:
      StoppedError: SIGTERM has come.
      nfnets.data.dataset.DatasetError: as `batches`.
    """
    if hasattr(batches, 'stop'):  # Not those that nobody reads.
      self._readers.append(batches)
    try:
      if self.is_set():
        raise StoppedError
      for batch in batches:
        if self.is_set():
          raise StoppedError
        yield batch
    except errors.DatasetError as error:
      if self.is_set():
        raise StoppedError from error
      raise
    finally:
      if batches in self._readers:
        self._readers.remove(batches)

  def __enter__(self) -> 'Notice':
    # Python's handlers run in the main thread and between two of its
    # instructions, and compiling a step is one instruction. The number of the
    # signal is written to this pipe at once.
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._previous_fd = signal.set_wakeup_fd(self._writer)
    self._previous = signal.signal(signal.SIGTERM, lambda *_: None)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
    signal.set_wakeup_fd(self._previous_fd)
    os.close(self._writer)  # Ends the thread.
    self._thread.join()
    os.close(self._reader)

  def _listen(self) -> None:
    while number := os.read(self._reader, 1):
      if number[0] != signal.SIGTERM:
        continue
      if self._event.is_set():
        os._exit(128 + signal.SIGTERM)
      self._event.set()
      logging.info(
        'SIGTERM: ending after this step. A second one ends the program at '
        'once.'
      )
      for reader in list(self._readers):
        reader.stop()
