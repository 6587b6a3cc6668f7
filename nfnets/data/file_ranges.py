"""Ranges of bytes of files, wherever these are."""

import abc
from collections.abc import Sequence
from typing import NamedTuple


class Range(NamedTuple):
  """Bytes [start, start + size) of a file."""

  path: str
  start: int
  size: int


class Files(abc.ABC):
  """Reads several ranges at a time.

  Safe to use from several threads.

  Attributes:
    scan_bytes: How much to read at once on the way through a file.
    parallel_reads: How many calls of `read` are worth making at once.
  """

  scan_bytes: int
  parallel_reads: int

  @abc.abstractmethod
  def sizes(self, names: Sequence[str]) -> list[int]:
    """Returns the sizes of files; raises DatasetError if one is not there."""

  @abc.abstractmethod
  def read(self, ranges: Sequence[Range]) -> list[bytes]:
    """Returns the bytes of ranges, fewer or none where a file ends before.

    Raises:
      OSError, DatasetError: A file cannot be read.
    """

  @abc.abstractmethod
  def read_one(self, part: Range) -> bytes:
    """Reads a range in this thread; see `read`."""

  @abc.abstractmethod
  def stop(self) -> None:
    """Makes calls that wait for a store end with an error, now and later."""

  @abc.abstractmethod
  def close(self) -> None:
    """Closes the files. Reading after that is an error."""
