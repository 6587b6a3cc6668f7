"""The command that measures what features are worth."""

import json
import pathlib
import sys

import pytest
import quick_lib

from nfnets import probe, weights

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'inference'))
import pictures_lib  # noqa: E402

pictures = pictures_lib.pictures
quickly_compiled = quick_lib.quickly_compiled


@pytest.fixture
def run(pictures, tmp_path, monkeypatch, capsys):
  """Returns a function that runs the command: (*args) -> (status, out, err)."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  model, params = quick_lib.digits()
  path = tmp_path / 'weights.npz'
  weights.save_weights(path, params)
  monkeypatch.setattr(weights, 'open_model', lambda *_: (model, params, {}))

  def run_command(*args):
    args = [f'--weights={path}', '--runtime=jax', '--batch_size=5', *args]
    if not any(arg.startswith('--data') for arg in args):
      args.append(f'--data={pictures.root}')
    try:
      status = probe.main(args)
    except SystemExit as error:
      status = error.code
    return status, *capsys.readouterr()

  return run_command


def test_it_prints_a_table_and_writes_what_it_measured(
  run, pictures, tmp_path, monkeypatch
):
  output = tmp_path / 'probed.safetensors'
  status, out, _ = run('--shots=9,2', f'--output={output}')
  assert status == 0
  *lines, last = out.splitlines()
  results = json.loads(last)
  assert results['output'] == str(output)
  assert (results['train_images'], results['test_images']) == (40, 31)
  rows = results['results']
  assert [row['shots'] for row in rows] == [2, None]
  assert [line.split()[0] for line in lines[3:5]] == ['2', 'all']
  for row in rows:
    for one in (row['logistic'], row['neighbors']):
      assert 0 <= one['low'] <= one['accuracy'] <= one['high'] <= 1
  monkeypatch.undo()
  model, params, _ = weights.open_model(output)
  assert model.class_names == tuple(pictures.info.features['label'].names)
  assert weights.read_metadata(output)['trained_on'] == pictures.root


def test_wrong_commands_are_told(run, tmp_path):
  for args, status, message in (
    (['--shots=1,0'], 2, '0 is no whole number'),
    (['--seed=-1'], 2, '-1'),
    (['--output=w.pth'], 2, 'ends neither in'),
    ([f'--output={tmp_path}/none/w.npz'], 1, 'there is no folder'),
    (['--data=./nowhere'], 1, 'There is no folder'),
  ):
    actual, out, err = run(*args)
    assert (actual, out) == (status, '') and message in err, args
