"""What a command has computed so far, kept in a folder beside its output.

The folder, OUTPUT.partial, holds

  settings.json    what the results depend on
  rows.jsonl       a line of JSON for every image, in the order of the images
  vectors-C.f32    for embeddings of C numbers, those of every row without an
                   error, one after another

and is appended to after every batch. Whatever ends the command, what is there
up to the last whole batch is right; the next one goes on from there with the
same batches, so that every number becomes what it would have been.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
from typing import Any, BinaryIO

import numpy as np

from nfnets import paths as paths_lib
from nfnets.inference.many.sources import Item

Row = dict[str, Any]

_VECTORS = re.compile(r'vectors-(\d+)\.f32')


class JournalError(ValueError):
  """One cannot go on, or not begin; the message says why, in one line."""


class Journal:
  """The folder of an output.

  Attributes:
    output: the file that it is to become.
    folder: its path.
    dimension: how many numbers an embedding has; 0 as long as there is none.
  """

  def __init__(self, output: str, has_vectors: bool):
    """Looks at nothing yet.

    Args:
      output: the file that will be written.
      has_vectors: whether there is one for every row without an error.
    """
    self.output = output
    self._has_vectors = has_vectors
    self.folder = _folder(output)
    self._settings = self.folder / 'settings.json'
    self._rows = self.folder / 'rows.jsonl'
    # For commands that print what they compute it is not imported.
    import filelock

    self._lock = filelock.FileLock(self.folder / 'lock', blocking=False)
    self._files: list[BinaryIO] = []

  @property
  def dimension(self) -> int:
    return max((size for size, _ in self._vectors()), default=0)

  def exists(self) -> bool:
    """Returns whether a command was stopped before its output was whole."""
    return self._rows.is_file() and self._rows.stat().st_size > 0

  def check_can_begin(self) -> None:
    """Raises JournalError if something would be lost by beginning anew."""
    if self.exists():
      self._take_lock()
      self.close()
      raise JournalError(
        f'{self.output} was begun by a command that was stopped. --resume goes '
        f'on with it; to begin anew, delete the folder {self.folder}.'
      )

  def open(self, settings: Mapping[str, Any]) -> None:
    """Opens the folder, and makes it if need be.

    Args:
      settings: all that results depend on, by its name for messages: JSON.

    Raises:
      JournalError: if another command is writing there, or what is there was
        made with other settings.
      OSError: if it cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    self.folder.mkdir(parents=True, exist_ok=True)
    self._take_lock()
    if not self.exists():
      with paths_lib.writing(self._settings) as partial:
        partial.write_text(json.dumps(settings, indent=1))
      return
    try:
      known = json.loads(self._settings.read_bytes())
    except ValueError:
      known = None
    if not isinstance(known, dict):
      raise JournalError(f'{self._settings} is damaged; delete {self.folder}.')
    for name in {**known, **settings}:
      if known.get(name) != settings.get(name):
        was, now = (_shown(x.get(name)) for x in (known, settings))
        raise JournalError(
          f'{self.output} was begun with {name} {was}, and now it is {now}. '
          f'Use the same command, or delete the folder {self.folder}.'
        )

  def recover(self, items: Iterator[Item], batch_size: int) -> Iterator[Row]:
    """Drops what is not whole, and yields what is, batch after batch.

    Args:
      items: the images, of which as many are taken as there are rows.
      batch_size: rows are whole in groups of so many.

    Raises:
      JournalError: if the rows are of other images.
    """
    held = 0
    for dimension, path in self._vectors():
      held = path.stat().st_size // (4 * dimension)
    offset = number = good = 0
    with contextlib.ExitStack() as stack:
      lines = iter(())
      if self._rows.exists():
        lines = stack.enter_context(open(self._rows, 'rb'))
      while len(block := [*itertools.islice(lines, batch_size)]) == batch_size:
        rows = [row for line in block if (row := _parsed(line))]
        good += sum('error' not in row for row in rows)
        if len(rows) < batch_size or self._has_vectors and good > held:
          good -= sum('error' not in row for row in rows)
          break
        for row in rows:
          number += 1
          item = next(items, None)
          if item is None or item.name != row['image']:
            now = 'is missing' if item is None else f'is {item.name}'
            raise JournalError(
              f'image {number} was {row["image"]} and {now} now: images have '
              'come or gone, so that one cannot go on. To begin anew, delete '
              f'the folder {self.folder}.'
            )
          yield row
        offset += sum(map(len, block))
    self._truncate(self._rows, offset)
    for dimension, path in self._vectors():
      self._truncate(path, good * 4 * dimension)

  def append(self, rows: Sequence[Row], vectors: Sequence[np.ndarray]) -> None:
    """Adds a batch.

    Args:
      rows: what there is to say of each image, with `error` where there is no
        result.
      vectors: float32 [C], of each row without an error. They are kept if the
        journal has vectors.

    Raises:
      OSError: if they cannot be written. What was there before is whole.
    """
    if self._has_vectors and vectors:
      # First, as rows tell how many there have to be.
      path = self.folder / f'vectors-{len(vectors[0])}.f32'
      self._write(path, np.asarray(vectors, '<f4').tobytes())
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    self._write(self._rows, lines.encode())

  def rows(self) -> Iterator[Row]:
    """Yields all rows."""
    with open(self._rows, 'rb') as file:
      yield from map(json.loads, file)

  def rows_file(self) -> pathlib.Path:
    """Returns the file of all rows."""
    return self._rows

  def vectors_file(self) -> pathlib.Path:
    """Returns the file of all vectors, of which there must be one."""
    return next(path for _, path in self._vectors())

  def finish(self, write: Callable[[pathlib.Path], None]) -> None:
    """Writes the output and removes the folder.

    Args:
      write: writes the output as a file of this name.

    Raises:
      OSError: if it cannot be written. The folder stays.
    """
    whole = self.folder / 'output'  # In here, or something would be left over.
    whole.unlink(missing_ok=True)
    write(whole)
    with open(whole, 'rb+') as file:
      os.fsync(file.fileno())
    paths_lib.put(whole, self.output)
    self.remove()

  def remove(self) -> None:
    """Removes the folder."""
    self.close()
    shutil.rmtree(self.folder, ignore_errors=True)

  def close(self) -> None:
    """Closes the files, and lets other commands open the folder."""
    for file in self._files:
      file.close()
    self._files.clear()
    self._lock.release()

  def _take_lock(self) -> None:
    try:
      self._lock.acquire()
    except TimeoutError as error:
      raise JournalError(
        f'another command is writing {self.output} at this moment.'
      ) from error

  def _vectors(self) -> list[tuple[int, pathlib.Path]]:
    if not self.folder.is_dir():
      return []
    matches = [(_VECTORS.fullmatch(p.name), p) for p in self.folder.iterdir()]
    return [(int(match[1]), path) for match, path in matches if match]

  def _write(self, path: pathlib.Path, content: bytes) -> None:
    file = next((x for x in self._files if x.name == str(path)), None)
    if file is None:
      file = open(str(path), 'ab', buffering=0)
      self._files.append(file)
    while content:  # A full disk may take a part.
      content = content[file.write(content) :]

  def _truncate(self, path: pathlib.Path, size: int) -> None:
    if path.exists():
      os.truncate(path, size)


def _folder(output: str) -> pathlib.Path:
  if paths_lib.is_remote(output):
    # Nothing can be appended to in a bucket.
    from nfnets.data import cache

    digest = hashlib.sha256(output.encode()).hexdigest()[:16]
    return cache.folder() / 'unfinished' / digest
  return pathlib.Path(f'{paths_lib.absolute(output)}.partial')


def _parsed(line: bytes) -> Row | None:
  """Returns a row; None for what is left of one."""
  if not line.endswith(b'\n'):
    return None
  try:
    row = json.loads(line)
  except ValueError:
    return None
  return row if isinstance(row, dict) and 'image' in row else None


def _shown(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) < 60 else f'{text[:57]}...'
