"""Files of results: CSV, JSON lines, Parquet and .npz, written from a journal.

While a command runs, the folder OUTPUT.partial holds rows.jsonl, the journal.
Its first line is what the results depend on; then comes a line of JSON for
every image, in the order of the images, after every batch. Whatever ends the
command, the lines up to the last whole one are right, and the next command with
--resume continues from there. The output is written from them at the end.
"""

import argparse
import base64
from collections.abc import Callable, Iterator
import contextlib
import csv
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
from typing import Any, NamedTuple
import zipfile

import numpy as np

from nfnets import finite_json, paths
from nfnets.errors import UserError, prefix
from nfnets.inference import command_line
from nfnets.inference.many.sources import Item

Row = dict[str, Any]

_ROWS = 5_000  # That a table of Parquet holds in memory at once.


class Table(NamedTuple):
  """How rows of a journal become a table.

  Attributes:
    columns: {name: type}, by Arrow's names of types. All but `embedding`.
    cells: returns {column: value} of a row. Other keys are left out.
    model: the network's name.
    has_vectors: whether rows without an error have an embedding.
    folder: the beginning of all names of images that an .npz leaves out.
  """

  columns: dict[str, str]
  cells: Callable[[Row], Row]
  model: str
  has_vectors: bool = False
  folder: str = ''


def label_columns(has_labels: bool) -> dict[str, str]:
  """Return the columns that tables begin with."""
  labels = {'true_label': 'int32', 'true_name': 'string'}
  return {'image': 'string', **(labels if has_labels else {})}


def encode(vector: np.ndarray) -> str:
  """Return a vector as text for a row: base64 of float32, little endian."""
  return base64.b64encode(np.asarray(vector, '<f4').tobytes()).decode()


def decode(row: Row) -> np.ndarray | None:
  """Return the embedding of a row, float32 [C]; None if it has none."""
  if 'embedding' not in row:
    return None
  return np.frombuffer(base64.b64decode(row['embedding']), '<f4')


def write(
  rows: Callable[[], Iterator[Row]], table: Table, path: pathlib.Path, kind: str
) -> None:
  """Write a file.

  Args:
    rows: returns an iterator of all rows whenever it is called.
    table: their columns.
    path: the file.
    kind: the suffix that says the format. An .npz leaves out rows with an
      error; all others have every row.
  """
  writers = {'.csv': _csv, '.jsonl': _jsonl, '.parquet': _parquet}
  writers.get(kind, _npz)(rows, table, path)


def _jsonl(rows, table, path):
  with open(path, 'w') as file:
    for row in rows():
      if 'embedding' in row:
        # The shortest numbers that float32 tells apart.
        row['embedding'] = [float(str(x)) for x in decode(row)]
      file.write(json.dumps(row) + '\n')


def _csv(rows, table, path):
  # Names of files can hold what UTF-8 has not.
  options = {'encoding': 'utf-8', 'errors': 'backslashreplace', 'newline': ''}
  with open(path, 'w', **options) as file:
    writer = csv.DictWriter(
      file, table.columns, extrasaction='ignore', lineterminator='\n'
    )
    writer.writeheader()
    writer.writerows(map(table.cells, rows()))


def _parquet(rows, table, path):
  import pyarrow as pa
  from pyarrow import parquet

  def cells(row: Row) -> Row:
    found = table.cells(row) | {'embedding': decode(row)}
    found['image'] = found['image'].encode(errors='backslashreplace').decode()
    return found

  schema = pa.schema([*table.columns.items()])
  if table.has_vectors:
    size = next(len(x) for row in rows() if (x := decode(row)) is not None)
    schema = schema.append(pa.field('embedding', pa.list_(pa.float32(), size)))
  left = map(cells, rows())
  with parquet.ParquetWriter(path, schema) as writer:
    while part := [*itertools.islice(left, _ROWS)]:
      writer.write_table(pa.Table.from_pylist(part, schema))


def _npz(rows, table, path):
  """Write `embeddings`, `paths`, `model` and, where known, `labels`."""
  good = [
    (row['image'].removeprefix(table.folder), row.get('true_label'))
    for row in rows()
    if 'error' not in row
  ]
  names, labels = zip(*good, strict=True)
  arrays = {'paths': np.array(names), 'model': np.array(table.model)}
  if 'true_label' in table.columns:
    arrays['labels'] = np.array(labels, np.int32)
  vectors = (x for row in rows() if (x := decode(row)) is not None)
  first = next(vectors)
  shape = {'shape': (len(good), len(first)), 'fortran_order': False}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, array in arrays.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
    # One by one, because all of them may not fit into memory.
    with archive.open('embeddings.npy', 'w', force_zip64=True) as file:
      np.lib.format.write_array_header_1_0(file, {'descr': '<f4', **shape})
      for vector in itertools.chain([first], vectors):
        file.write(vector.tobytes())


class Journal:
  """The rows of an output that is not complete yet.

  Attributes:
    output: the file that they become.
    folder: the folder that has them.
    lock: keeps other commands out; `resume` acquires it.
  """

  def __init__(self, output: str):
    import filelock  # Commands that print their results do without it.

    self.output = output
    self.folder = _folder(output)
    self._rows = self.folder / 'rows.jsonl'
    self.lock = filelock.FileLock(self.folder / 'lock', blocking=False)

  def has_rows(self) -> bool:
    """Return whether a command was stopped before its output was complete."""
    if not self._rows.is_file():
      return False
    with open(self._rows, 'rb') as file:
      return bool(file.readline() and file.readline())

  def resume(
    self, settings: dict[str, Any], items: Iterator[Item]
  ) -> Iterator[Row]:
    """Lock the folder and yield its rows; drop what is damaged.

    Args:
      settings: everything that results depend on, by its name for messages:
        JSON.
      items: the images; as many are taken as there are rows.

    Raises:
      UserError: if another command is writing there, or the rows are of other
        settings or images.
      OSError: if it cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    self.folder.mkdir(parents=True, exist_ok=True)
    try:
      self.lock.acquire()
    except TimeoutError as error:
      raise UserError(
        f'another command is writing {self.output} at this moment.'
      ) from error
    if not self.has_rows():
      self._rows.write_text(json.dumps(settings) + '\n')
    with open(self._rows, 'rb') as lines:
      first = lines.readline()
      with prefix(f'{self._rows} is damaged; delete {self.folder}'):
        known = json.loads(first)
      for name in {**known, **settings}:
        if known.get(name) != settings.get(name):
          was, now = (json.dumps(x.get(name))[:60] for x in (known, settings))
          raise UserError(
            f'{self.output} was begun with {name} {was}, and now it is {now}. '
            f'Use the same command, or delete the folder {self.folder}.'
          )
      offset = len(first)
      for number, line in enumerate(lines, 1):
        row = None
        with contextlib.suppress(ValueError):
          row = json.loads(line)
        if row is None or not line.endswith(b'\n'):
          break
        item = next(items, None)
        if item is None or item.name != row['image']:
          now = 'is missing' if item is None else f'is {item.name}'
          raise UserError(
            f'image {number} was {row["image"]} and {now} now: images have '
            'come or gone, so that one cannot go on. To begin anew, delete '
            f'the folder {self.folder}.'
          )
        yield row
        offset += len(line)
    os.truncate(self._rows, offset)

  def append(self, content: str) -> None:
    """Add lines; if that fails, those before it are whole."""
    with open(self._rows, 'a') as file:
      file.write(content)

  def rows(self) -> Iterator[Row]:
    """Yield all rows."""
    with open(self._rows, 'rb') as file:
      yield from map(json.loads, itertools.islice(file, 1, None))

  def finish(self, table: Table) -> None:
    """Write the output and remove the folder, which stays if that fails."""
    whole = self.folder / 'output'  # In here, or something would be left over.
    kind = os.path.splitext(self.output)[1]
    write(self.rows, table, whole, kind)
    paths.put(whole, self.output)
    self.remove()

  def remove(self) -> None:
    """Remove the folder."""
    self.lock.release()
    shutil.rmtree(self.folder, ignore_errors=True)


def _folder(output: str) -> pathlib.Path:
  if paths.is_remote(output):
    # Nothing can be appended to in a bucket.
    digest = hashlib.sha256(output.encode()).hexdigest()[:16]
    return paths.cache_folder('unfinished') / digest
  return pathlib.Path(f'{paths.absolute(output)}.partial')


def open_journal(args: argparse.Namespace) -> Journal | None:
  """Return where a command keeps its results; None to print them.

  Raises:
    UserError: if the output cannot be written, or if an earlier command that
      was stopped would lose its results.
  """
  if args.output is None:
    return None
  command_line.check_output(args.output)
  if args.output.endswith('.parquet'):
    command_line.check_installed('Writing Parquet', ('pyarrow',), 'images')
  journal = Journal(args.output)
  if not args.resume and journal.has_rows():
    raise UserError(
      f'{args.output} was begun by another command. --resume goes on with it '
      f'if that was stopped; to begin anew, delete the folder {journal.folder}.'
    )
  return journal


def is_finished(args: argparse.Namespace, journal: Journal | None) -> bool:
  """Return whether the output of a command to resume exists; says so."""
  if not args.resume or journal.has_rows() or not paths.is_file(args.output):
    return False
  print(
    f'{args.output} is there, and nothing that was stopped: there is nothing '
    'to do. Without --resume it is made anew.',
    file=sys.stderr,
  )
  finite_json.print_results({'output': args.output})
  return True
