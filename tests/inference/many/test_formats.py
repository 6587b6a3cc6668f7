"""Files of results, which say the same in all formats."""

import csv
import json
import os

import many_lib
import numpy as np
from pyarrow import parquet
import pytest

from nfnets import classify, embed
from nfnets.inference.many import formats

network, pictures, run = many_lib.network, many_lib.pictures, many_lib.run


@pytest.fixture
def read(run, pictures, tmp_path):
  """Returns a function that runs a command and reads its file."""

  def read_file(main, suffix, *args):
    path = tmp_path / f'x{suffix}'
    status, _, err = run(main, pictures, f'--output={path}', *args)
    assert status == 1, err
    if suffix == '.npz':
      return dict(np.load(path, allow_pickle=False))
    if suffix == '.parquet':
      return parquet.read_table(path).to_pylist()
    lines = path.read_text().splitlines()
    return (
      [*csv.DictReader(lines)]
      if suffix == '.csv'
      else [json.loads(line) for line in lines]
    )

  return read_file


def test_classes_are_the_same_in_all_formats(run, pictures, read, network):
  network.class_names = 'a', 'b,"c', 'd e'
  everything = read(classify.main, '.jsonl')
  options = '--top=2', '--threshold=0.3'
  rows, table, columns = (
    read(classify.main, suffix, *options)
    for suffix in ('.jsonl', '.csv', '.parquet')
  )
  assert len(everything) == many_lib.NUM_IMAGES
  assert 'name_3' not in {**table[0], **columns[0]}
  for whole, row, cells, column in zip(
    everything, rows, table, columns, strict=True
  ):
    assert cells['image'] == column['image'] == row['image'] == whole['image']
    assert cells['error'] == (column['error'] or '') == row.get('error', '')
    assert ('top' in row) is ('error' not in row)
    best = whole.get('top', ())[:2]
    assert [*row.get('top', ())] == [x for x in best if x['probability'] >= 0.3]
    for i, one in enumerate(row.get('top', ()), 1):
      for key, value in one.items():
        assert column[f'{key}_{i}'] == value
        assert type(value)(cells[f'{key}_{i}']) == value
  # And what is printed.
  _, out, _ = run(classify.main, pictures, '--json', *options)
  assert [json.loads(line) for line in out.splitlines()] == rows


def test_embeddings_are_the_same_in_all_formats(pictures, read, monkeypatch):
  monkeypatch.setattr(formats, '_ROWS', 7)  # Of Parquet at once.
  arrays, rows, columns = (
    read(embed.main, suffix) for suffix in ('.npz', '.jsonl', '.parquet')
  )
  assert arrays['embeddings'].dtype == np.float32
  assert arrays['embeddings'].shape == (19, 12) and arrays['model'] == 'fake'
  good = zip(arrays['paths'], arrays['embeddings'], strict=True)
  for row, column in zip(rows, columns, strict=True):
    assert column['image'] == row['image']
    assert (column['error'] or '') == row.get('error', '')
    if 'error' in row:
      assert column['embedding'] is None
      continue
    name, vector = next(good)
    assert name == os.path.relpath(row['image'], pictures)
    np.testing.assert_array_equal(np.float32(row['embedding']), vector)
    np.testing.assert_array_equal(np.float32(column['embedding']), vector)
  assert next(good, None) is None


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl', '.parquet'])
def test_names_that_are_no_text_are_spelled_out(pictures, read, suffix):
  name = os.fsdecode(b'caf\xe9,.png')
  os.rename(pictures / '2' / '20.png', pictures / '2' / name)
  if suffix != '.jsonl':
    name = name.replace('\udce9', '\\udce9')
  assert read(classify.main, suffix)[-1]['image'] == str(pictures / '2' / name)


@pytest.mark.parametrize(
  ('main', 'args', 'message'),
  [
    (classify.main, ('a', '--output=x.npz'), 'ends in none of .csv, .jsonl'),
    (embed.main, ('a', '--output=x'), 'ends in none of .npz, .parquet'),
    (embed.main, ('a', '--output=x.csv'), 'none of .npz, .parquet, .jsonl'),
    (classify.main, ('a', '--resume'), '--output, which is missing'),
    (classify.main, ('a', '--json', '--output=x.csv'), '--json prints'),
    (classify.main, ('a', '--data=digits'), '--data stands instead of IMAGE'),
    (classify.main, ('--list=a', '--data=digits'), '--data stands instead of'),
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
