"""The command that measures what features are worth."""

import csv
import json
import pathlib
import sys

from nfnets import weights

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'inference'))
import pictures_lib  # noqa: E402

pictures = pictures_lib.pictures


def test_it_prints_a_table_and_writes_what_it_measured(
  run, pictures, tmp_path, monkeypatch
):
  output = tmp_path / 'probed.safetensors'
  status, out, _ = run(
    *('--shots=9,2', '--batch_size=5', f'--data={pictures.root}'),
    *(f'--output={output}', f'--suspects={tmp_path / "suspects.csv"}'),
  )
  assert status == 0
  *lines, last = out.splitlines()
  results = json.loads(last)
  assert results['output'] == str(output)
  assert results['suspects'] == str(tmp_path / 'suspects.csv')
  with open(results['suspects'], newline='') as file:
    table = [*csv.DictReader(file)]
  margin = [float(x['p_predicted']) - float(x['p_label']) for x in table]
  assert margin == sorted(margin, reverse=True)
  # Random pictures are often taken for others, wherever they are.
  assert {x['split'] for x in table} == {'train', 'test'}
  files = {
    split: {f'{pictures.root}/{path}' for path in pictures.paths(full)}
    for split, full in (('train', 'train_and_valid'), ('test', 'test'))
  }
  assert all(x['path'] in files[x['split']] for x in table)
  assert (results['train_images'], results['test_images']) == (40, 31)
  rows = results['results']
  assert [row['shots'] for row in rows] == [2, None]
  assert [line.split()[0] for line in lines[3:5]] == ['2', 'all']
  for row in rows:
    for one in (row['logistic'], row['neighbors']):
      assert 0 <= one['low'] <= one['accuracy'] <= one['high'] <= 1
  model, params, _ = weights.open_model(output)
  assert model.class_names == tuple(pictures.names)
  assert weights.read_metadata(output)['trained_on'] == pictures.root


def test_wrong_commands_are_told(run, tmp_path):
  for args, status, message in (
    (['--data=digits', '--shots=1,0'], 2, '0 is no whole number'),
    (['--data=digits', '--seed=-1'], 2, '-1'),
    (['--data=digits', '--suspects=x.txt'], 2, '--suspects=x.txt does not'),
    (['--data=digits', '--output=w.pth'], 2, 'ends neither in'),
    (
      ['--data=digits', f'--output={tmp_path}/none/w.npz'],
      1,
      'there is no folder',
    ),
    (['--data=./nowhere'], 1, 'There is no folder'),
  ):
    actual, out, err = run(*args)
    assert (actual, out) == (status, '') and message in err, args
