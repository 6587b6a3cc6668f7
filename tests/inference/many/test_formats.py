"""Files of results, which tell the same in all formats."""

import csv
import io
import json
import os

import many_lib
import numpy as np
from pyarrow import parquet
import pytest

from nfnets import classify, embed
from nfnets.inference.many import formats

network, pictures, run = many_lib.network, many_lib.pictures, many_lib.run
NUM_GOOD = many_lib.NUM_IMAGES - len(many_lib.BROKEN)


def write(run, main, pictures, folder, suffix, *args):
  """Returns the file that a command writes."""
  path = folder / f'x{suffix}'
  status, _, err = run(main, pictures, f'--output={path}', *args)
  assert status == 1, err
  return path


def read_json(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def read_csv(path):
  with open(path, newline='') as file:
    return [*csv.DictReader(file)]


def test_classes_are_the_same_in_all_formats(run, pictures, tmp_path):
  args = run, classify.main, pictures, tmp_path
  rows = read_json(write(*args, '.jsonl', '--top=2'))
  table = read_csv(write(*args, '.csv', '--top=2'))
  columns = parquet.read_table(write(*args, '.parquet', '--top=2')).to_pylist()
  assert len(rows) == len(table) == len(columns) == many_lib.NUM_IMAGES
  for row, cells, column in zip(rows, table, columns, strict=True):
    assert cells['image'] == column['image'] == row['image']
    assert cells['error'] == (column['error'] or '') == row.get('error', '')
    assert ('top' in row) is ('error' not in row)
    for i, one in enumerate(row.get('top', ()), 1):
      assert int(cells[f'label_{i}']) == column[f'label_{i}'] == one['label']
      assert cells[f'name_{i}'] == column[f'name_{i}'] == one['name']
      assert float(cells[f'probability_{i}']) == one['probability']
      assert column[f'probability_{i}'] == one['probability']
  assert 'name_3' not in table[0] and 'name_3' not in columns[0]
  # And what is printed.
  _, out, _ = run(classify.main, pictures, '--json', '--top=2')
  assert [json.loads(line) for line in out.splitlines()] == rows


def test_embeddings_are_the_same_in_all_formats(run, pictures, tmp_path):
  args = run, embed.main, pictures, tmp_path
  with np.load(write(*args, '.npz'), allow_pickle=False) as file:
    arrays = dict(file)
  assert arrays['embeddings'].dtype == np.float32
  assert arrays['embeddings'].shape == (NUM_GOOD, 12)
  rows = read_json(write(*args, '.jsonl'))
  table = read_csv(write(*args, '.csv'))
  columns = parquet.read_table(write(*args, '.parquet')).to_pylist()
  vectors = iter(arrays['embeddings'])
  paths = iter(arrays['paths'])
  for row, cells, column in zip(rows, table, columns, strict=True):
    assert cells['image'] == column['image'] == row['image']
    assert cells['error'] == (column['error'] or '') == row.get('error', '')
    if 'error' in row:
      assert column['embedding'] is None and cells['e0'] == ''
      continue
    vector = next(vectors)
    assert next(paths) == os.path.relpath(row['image'], pictures)
    np.testing.assert_array_equal(np.float32(row['embedding']), vector)
    np.testing.assert_array_equal(np.float32(column['embedding']), vector)
    in_csv = [cells[f'e{i}'] for i in range(12)]
    np.testing.assert_array_equal(np.float32(in_csv), vector)
  assert next(vectors, None) is None


def test_an_npz_is_what_numpy_writes(run, pictures, tmp_path):
  path = write(run, embed.main, pictures, tmp_path, '.npz')
  with np.load(path, allow_pickle=False) as file:
    arrays = dict(file)
  written = io.BytesIO()
  np.savez(written, **arrays)
  assert path.read_bytes() == written.getvalue()


def test_files_are_written_part_by_part(run, pictures, tmp_path, monkeypatch):
  args = run, embed.main, pictures, tmp_path
  whole = write(*args, '.npz').read_bytes()
  (tmp_path / 'x.npz').unlink()
  monkeypatch.setattr(formats, '_ROWS', 7)
  assert write(*args, '.npz').read_bytes() == whole
  path = write(*args, '.parquet')
  assert parquet.ParquetFile(path).num_row_groups == 4
  monkeypatch.setattr(formats, '_BYTES', 4 * 12 * 5)
  assert parquet.ParquetFile(write(*args, '.parquet')).num_row_groups == 5


def test_names_that_are_no_text_are_spelled_out(run, pictures, tmp_path):
  name = os.fsdecode(b'caf\xe9,\n.png')
  os.rename(pictures / '2' / '20.png', pictures / '2' / name)
  args = run, classify.main, pictures, tmp_path
  found = [
    read_csv(write(*args, '.csv'))[-1]['image'],
    parquet.read_table(write(*args, '.parquet'))['image'].to_pylist()[-1],
    read_json(write(*args, '.jsonl'))[-1]['image'],
  ]
  spelled = str(pictures / '2' / 'caf\\udce9,\n.png')
  assert found == [spelled, spelled, str(pictures / '2' / name)]


def test_classes_below_a_threshold_are_left_out(run, pictures, tmp_path):
  args = run, classify.main, pictures, tmp_path, '.jsonl'
  everything = read_json(write(*args))
  some = read_json(write(*args, '--threshold=0.4'))
  for all_of, row in zip(everything, some, strict=True):
    if 'top' in all_of:
      expected = [x for x in all_of['top'] if x['probability'] >= 0.4]
      assert row['top'] == expected
  assert any(len(row.get('top', ())) == 1 for row in some)


@pytest.mark.parametrize(
  ('main', 'args', 'message'),
  [
    (classify.main, ('a', '--output=x.npz'), 'ends in none of .csv, .jsonl'),
    (embed.main, ('a', '--output=x'), 'ends in none of .npz, .parquet'),
    (classify.main, ('a', '--resume'), '--output, which is missing'),
    (classify.main, ('a', '--json', '--output=x.csv'), '--json prints'),
    (classify.main, ('a', '--data=b'), '--data stands instead of IMAGE'),
    (classify.main, ('--list=a', '--data=b'), '--data stands instead of'),
    (classify.main, ('a', '--split=test'), '--split and --data_dir belong'),
    (classify.main, ('-', '--list=-'), 'standard input, -, can be read once'),
    (classify.main, ('a', '--threshold=2'), '2 is no number from 0 to 1'),
    (classify.main, ('a', '--threshold=nan'), 'nan is no number from 0 to 1'),
    (classify.main, ('--list=/no/list',), '--list=/no/list: No such file'),
  ],
)
def test_wrong_commands_are_answered(run, main, args, message):
  status, out, err = run(main, *args)
  assert (status, out) == (2, '')
  assert message in ' '.join(err.split())
