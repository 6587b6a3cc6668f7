"""Files of results: CSV, JSON lines, Parquet, and .npz for embeddings.

All are written from a journal, a part at a time.
"""

from collections.abc import Callable, Iterator, Sequence
import csv
import itertools
import json
import pathlib
import shutil
from typing import Any, NamedTuple
import zipfile

import numpy as np
from numpy.lib import format as npy

from nfnets.inference.many.journal import Journal, Row

_ROWS = 10_000  # At once.
_BYTES = 2**25  # Of vectors at once.


class Table(NamedTuple):
  """What is written of a journal, as a table.

  Attributes:
    columns: names, and their types: str, int, float or bool.
    cells: from a row of the journal to what is in the columns, None for what is
      missing.
    folder: what precedes the names of all images, for paths in an .npz.
    model: the network's name.
  """

  columns: dict[str, type]
  cells: Callable[[Row], Sequence[Any]]
  folder: str
  model: str


def first_columns(has_labels: bool) -> dict[str, type]:
  """Returns the columns that tables begin with; those of labels if need be."""
  if not has_labels:
    return {'image': str}
  return {'image': str, 'true_label': int, 'true_name': str}


def write_jsonl(journal: Journal, table: Table, path: pathlib.Path) -> None:
  """Writes a line of JSON for each row, with its `embedding`, if any."""
  del table
  if not journal.dimension:
    shutil.copyfile(journal.rows_file(), path)
    return
  with open(path, 'w') as file:
    for row, vector in _with_vectors(journal):
      if vector is not None:
        row['embedding'] = _short(vector)
      file.write(json.dumps(row) + '\n')


def write_csv(journal: Journal, table: Table, path: pathlib.Path) -> None:
  """Writes a table with a line of names; embeddings are e0, e1, ..."""
  numbers = [f'e{i}' for i in range(journal.dimension)]
  with open(
    path, 'w', encoding='utf-8', errors='backslashreplace', newline=''
  ) as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow([*table.columns, *numbers])
    for row, vector in _with_vectors(journal):
      rest = [None] * len(numbers) if vector is None else _short(vector)
      writer.writerow([*table.cells(row), *rest])


def write_parquet(journal: Journal, table: Table, path: pathlib.Path) -> None:
  """Writes the same columns, and embeddings as one, of lists."""
  import pyarrow as pa
  from pyarrow import parquet

  dimension = journal.dimension
  types = {str: pa.string(), int: pa.int32(), float: pa.float64()}
  types[bool] = pa.bool_()
  fields = [(name, types[kind]) for name, kind in table.columns.items()]
  if dimension:
    fields.append(('embedding', pa.list_(pa.float32(), dimension)))
  schema = pa.schema(fields)
  rows = _with_vectors(journal)
  with parquet.ParquetWriter(path, schema) as writer:
    while part := [*itertools.islice(rows, _rows_at_once(dimension))]:
      cells = zip(*(table.cells(row) for row, _ in part), strict=True)
      arrays = [
        pa.array(map(_as_text, column), kind)
        for column, (_, kind) in zip(cells, fields, strict=False)
      ]
      if dimension:
        arrays.append(_vector_array([x for _, x in part], dimension))
      writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def write_npz(journal: Journal, table: Table, path: pathlib.Path) -> None:
  """Writes `embeddings`, `paths`, `model` and, where known, `labels`.

  Rows with an error are left out. The file is the one that `numpy.savez` would
  write, but nothing has to be held for it.
  """
  shape = count, width = 0, 0
  for row in _good(journal):
    shape = count, width = count + 1, max(width, len(_name(row, table)))
  with zipfile.ZipFile(path, 'w') as archive:
    with open(journal.vectors_file(), 'rb') as vectors:
      shape = count, journal.dimension
      with _member(archive, 'embeddings', np.dtype('<f4'), shape) as file:
        shutil.copyfileobj(vectors, file, _BYTES)
    names = (_name(row, table) for row in _good(journal))
    _write_array(archive, 'paths', np.dtype(f'<U{max(width, 1)}'), count, names)
    if 'true_label' in table.columns:
      labels = (row['true_label'] for row in _good(journal))
      _write_array(archive, 'labels', np.dtype('<i4'), count, labels)
    model = np.array(table.model)
    with _member(archive, 'model', model.dtype, ()) as file:
      file.write(model.tobytes())


WRITERS = {
  '.csv': write_csv,
  '.jsonl': write_jsonl,
  '.parquet': write_parquet,
  '.npz': write_npz,
}


def _good(journal: Journal) -> Iterator[Row]:
  return (row for row in journal.rows() if 'error' not in row)


def _name(row: Row, table: Table) -> str:
  return row['image'].removeprefix(table.folder)


def _as_text(cell: Any) -> Any:
  """Spells out what is no text in names of files; leaves the rest alone."""
  if isinstance(cell, str):
    return cell.encode(errors='backslashreplace').decode()
  return cell


def _rows_at_once(dimension: int) -> int:
  return min(_ROWS, max(_BYTES // (4 * dimension), 1)) if dimension else _ROWS


def _with_vectors(
  journal: Journal,
) -> Iterator[tuple[Row, np.ndarray | None]]:
  """Yields every row with its vector, None where there is none."""
  dimension = journal.dimension
  if not dimension:
    yield from ((row, None) for row in journal.rows())
    return
  with open(journal.vectors_file(), 'rb') as file:
    for row in journal.rows():
      vector = None
      if 'error' not in row:
        vector = np.frombuffer(file.read(4 * dimension), '<f4')
      yield row, vector


def _short(vector: np.ndarray) -> list[float]:
  """Returns the shortest numbers that float32 tells apart."""
  return [float(str(x)) for x in vector]


def _vector_array(vectors: list[np.ndarray | None], dimension: int) -> Any:
  import pyarrow as pa

  values = np.zeros((len(vectors), dimension), np.float32)
  missing = np.array([vector is None for vector in vectors])
  for i in np.flatnonzero(~missing):
    values[i] = vectors[i]
  return pa.FixedSizeListArray.from_arrays(
    pa.array(values.ravel()), dimension, mask=pa.array(missing)
  )


def _member(
  archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]
) -> Any:
  """Opens an array in an .npz, whose content is still to be written."""
  file = archive.open(f'{name}.npy', 'w', force_zip64=True)
  header = {
    'descr': npy.dtype_to_descr(dtype),
    'fortran_order': False,
    'shape': shape,
  }
  npy.write_array_header_1_0(file, header)
  return file


def _write_array(
  archive: zipfile.ZipFile,
  name: str,
  dtype: np.dtype,
  count: int,
  values: Iterator[Any],
) -> None:
  with _member(archive, name, dtype, (count,)) as file:
    while part := [*itertools.islice(values, _ROWS)]:
      file.write(np.array(part, dtype).tobytes())
