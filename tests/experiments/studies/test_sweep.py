"""Sweeps: files, trials and results, with something in place of training."""

import csv
import math
import re

import pytest

from experiments import loop, train
from experiments.tools import study
from nfnets.errors import UserError

_GRID = """
config = 'digits'
settings = {'image_size': 16}
axes = {'lr': [0.1, 0.3], 'optimizer.kwargs.clipping': [0.01, float('inf')]}
seeds = range(2)
"""
_SAMPLED = """
import optuna
config = 'digits'
axes = {
  'lr': optuna.distributions.FloatDistribution(0.1, 1.0, log=True),
  'train_batch_size': [16, 64],
}
seeds = [0, 1]
sampler = optuna.samplers.RandomSampler(seed=0)
num_points = 3
"""


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a sweep's file: (text) -> its path."""

  def write_text(text, name='tried.py'):
    path = tmp_path / name
    path.write_text(text)
    return str(path)

  return write_text


@pytest.fixture
def trained(monkeypatch):
  """Replaces training; the configs that were trained, in order."""
  configs = []

  def run(config, mode, command, make_steps):
    del mode, make_steps
    configs.append((config, command))
    ours = config.experiment_kwargs.config
    if ours.optimizer.kwargs.clipping == math.inf and ours.lr > 0.2:
      raise loop.NonFiniteError
    return {'test_top_1_acc': ours.lr + 0.01 * config.random_seed}

  monkeypatch.setattr('experiments.train.train_and_evaluate', run)
  return configs


def _run(*args):
  return study.main(['study.py', 'sweep', *args])


def _table(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_every_point_of_a_grid_is_trained_with_every_seed(
  write, trained, tmp_path, capsys
):
  folder = tmp_path / 'out'
  assert _run(write(_GRID), f'--output={folder}') == 0
  seen = [(c.experiment_kwargs.config.lr, c.random_seed) for c, _ in trained]
  assert len(seen) == 8 and len(set(seen)) == 4
  # Seed by seed, so that an early look sees all of the grid.
  assert [seed for _, seed in seen] == sorted(seed for _, seed in seen)
  config, command = trained[0]
  assert config.experiment_kwargs.config.image_size == 16
  assert config.experiment_kwargs.config.traced_hyperparams
  assert config.checkpoint_dir == str(folder / 'lr=0.1,clipping=0.01,seed=0')
  assert '--lr=0.1 --optimizer.kwargs.clipping=0.01' in command

  rows = _table(folder / 'sweep.csv')
  assert [(row['lr'], row['optimizer.kwargs.clipping']) for row in rows] == [
    ('0.1', '0.01'),
    ('0.1', 'inf'),
    ('0.3', '0.01'),
    ('0.3', 'inf'),
  ]
  assert float(rows[2]['mean']) == pytest.approx(0.305)
  assert float(rows[2]['spread']) == pytest.approx(0.01 / 2**0.5)
  assert [row['diverged'] for row in rows] == ['0', '0', '0', '2']
  assert (rows[3]['seeds'], rows[3]['mean'], rows[3]['spread']) == ('0', '', '')
  assert len(_table(folder / 'trials.csv')) == 8
  assert (folder / 'sweep.png').read_bytes().startswith(b'\x89PNG')
  out, err = capsys.readouterr()
  assert '"trials": 8, "left": 0' in out.splitlines()[-1]
  assert 'nan' not in err and 'None' not in err


def test_nothing_is_trained_twice_and_new_seeds_and_values_are_added(
  write, trained, tmp_path
):
  args = f'--output={tmp_path / "out"}'
  _run(write(_GRID), args)
  _run(write(_GRID), args)
  assert len(trained) == 8
  _run(write(_GRID.replace('range(2)', 'range(3)')), args)
  assert len(trained) == 12
  assert {config.random_seed for config, _ in trained[8:]} == {2}


def test_a_sampler_chooses_points_that_every_seed_is_trained_with(
  write, trained, tmp_path
):
  folder = tmp_path / 'out'
  assert _run(write(_SAMPLED), f'--output={folder}') == 0
  points = [
    (c.experiment_kwargs.config.lr, c.experiment_kwargs.config.train_batch_size)
    for c, _ in trained
  ]
  assert points[::2] == points[1::2] and len(set(points)) == 3
  assert [c.random_seed for c, _ in trained] == [0, 1] * 3
  assert len(_table(folder / 'sweep.csv')) == 3


def test_trials_are_taken_once_and_again_when_their_process_has_died(
  write, trained, tmp_path, monkeypatch
):
  args = (write(_GRID), f'--output={tmp_path}')
  run = train.train_and_evaluate

  def start_another(*_):
    """A second process makes the rest while this one trains, and is killed."""
    monkeypatch.setattr(train, 'train_and_evaluate', run)
    assert _run(*args) == 0
    raise SystemExit

  monkeypatch.setattr(train, 'train_and_evaluate', start_another)
  with pytest.raises(SystemExit):
    _run(*args)
  folder = str(tmp_path / 'lr=0.1,clipping=0.01,seed=0')
  assert len(trained) == 7
  assert folder not in [config.checkpoint_dir for config, _ in trained]
  assert _run(*args) == 0
  assert len(trained) == 8 and trained[-1][0].checkpoint_dir == folder


def test_what_a_killed_process_had_finished_is_not_trained_again(
  write, trained, tmp_path
):
  folder = tmp_path / 'lr=0.1,clipping=0.01,seed=0'
  folder.mkdir()
  (folder / 'run.json').write_text('{"results": {"test_top_1_acc": 0.75}}')
  assert _run(write(_GRID), f'--output={tmp_path}') == 0
  assert len(trained) == 7
  assert float(_table(tmp_path / 'sweep.csv')[0]['mean']) > 0.3


@pytest.mark.parametrize(
  'change, message',
  [
    (("axes = {'lr'", "axes = {'lrr'"), r"no setting 'lrr'.*--lr"),
    (("'lr': [0.1, 0.3]", "'lr': []"), r"axis 'lr' is \[\]; it must be a list"),
    (("'lr': [0.1, 0.3]", "'lr': [0.1, 'x']"), "lr cannot be 'x'"),
    (('seeds = range(2)', ''), "'seeds' is missing"),
    (('seeds = range(2)', 'seeds = []'), r"'seeds' is \[\]; it must be a list"),
    (('seeds = range(2)', 'seed = [1]'), "'seed' says nothing.*seeds"),
    (("'digits'", "'digit'"), "no config 'digit'.*digits"),
    (("config = 'digits'", 'config = '), 'line 2: invalid syntax'),
    (("'lr': [0.1, 0.3]", "'lr': [0.1], 'a': 1.0"), "'a' is 1.0; it must be"),
    (("config = 'digits'", 'config = x'), "line 2: NameError: name 'x'"),
  ],
)
def test_what_is_wrong_in_a_file_is_told_in_one_line(
  change, message, write, trained, capsys
):
  path = write(_GRID.replace(*change))
  status = _run(path)
  error = capsys.readouterr().err
  assert status == 2 and not trained
  assert re.fullmatch(f'error: {re.escape(path)}.*{message}.*\n', error), error


def test_a_file_or_folder_that_cannot_be_used_is_named(write, tmp_path, capsys):
  path = write(_GRID)
  (tmp_path / 'sweep.db').write_text('no database, but longer than a header')
  for args, status, message in (
    ([f'{tmp_path}/none.py'], 2, f'no file {tmp_path}/none.py'),
    ([path, f'--output={path}'], 1, f'--output={path}: File exists'),
    ([path, '--output=gs://bucket/x'], 2, 'gs://bucket/x'),
    (
      [path, f'--output={tmp_path}'],
      1,
      f'The storage {tmp_path}/sweep.db cannot be used: file is not a database',
    ),
  ):
    assert _run(*args) == status
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_another_sweep_is_not_mixed_in(write, trained, tmp_path, capsys):
  args = f'--output={tmp_path / "out"}'
  assert _run(write(_GRID), args) == 0
  assert _run(write(_GRID.replace("'image_size': 16", '')), args) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert "its settings was {'image_size': '16'}, and is {}" in error
  assert len(trained) == 8


def test_a_wrong_trial_ends_the_sweep_and_is_named(
  write, monkeypatch, tmp_path, capsys
):
  def run(*_):
    raise UserError('image_size is 0; it must be positive.', 2)

  monkeypatch.setattr('experiments.train.train_and_evaluate', run)
  assert _run(write(_GRID), f'--output={tmp_path}') == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: lr=0.1,clipping=0.01,seed=0: image_size is 0')
