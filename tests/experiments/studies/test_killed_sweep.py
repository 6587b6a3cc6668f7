"""A sweep that is killed goes on where it was."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import optuna
import pytest

from experiments.tools import study
from nfnets.inference import curves

_COMMAND = pathlib.Path(study.__file__)
_SWEEP = """
config = 'digits:small'
settings = {
  'training_steps': 60,
  'save_checkpoint_interval': 20,
  'log_train_data_interval': 5,
  'test_at_end': 100,
}
axes = {'lr': [0.01, 0.02]}
seeds = [0]
metric = 'train_loss'
maximize = False
"""


@pytest.mark.slow
def test_a_trial_goes_on_from_its_checkpoint_after_a_kill(tmp_path):
  file, folder = tmp_path / 'tried.py', tmp_path / 'out'
  file.write_text(_SWEEP)
  args = [sys.executable, str(_COMMAND), 'sweep', file, f'--output={folder}']
  second = folder / 'lr=0.02,seed=0'
  env = {**os.environ, 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  process = subprocess.Popen(args, env=env, stderr=subprocess.PIPE)
  try:
    deadline = time.monotonic() + 500
    while not (second / 'latest' / '20').is_dir():
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    process.send_signal(signal.SIGKILL)
    process.communicate()
  # The first has ended, and is not touched again.
  first = folder / 'lr=0.01,seed=0' / 'run.json'
  before = first.stat().st_mtime_ns
  assert not (second / 'weights.safetensors').exists()
  reached = max(int(p.name) for p in (second / 'latest').glob('[0-9]*[0-9]'))
  assert 20 <= reached < 60

  result = subprocess.run(args, env=env, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert first.stat().st_mtime_ns == before
  *_, last = sorted((second / 'train').iterdir(), key=lambda p: p.name)
  for other in set((second / 'train').iterdir()) - {last}:
    other.unlink()
  steps, _ = curves.read_scalars(second / 'train')['train_loss']
  assert min(steps) > reached and max(steps) == 60
  with open(folder / 'sweep.csv', newline='') as table:
    assert [row['seeds'] for row in csv.DictReader(table)] == ['1', '1']
  storage = f'sqlite:///{folder}/sweep.db'
  (name,) = optuna.get_all_study_names(storage)
  trials = optuna.load_study(study_name=name, storage=storage).trials
  assert [t.state.name for t in trials] == ['COMPLETE', 'FAIL', 'COMPLETE']


def test_an_interrupt_ends_it_with_one_line(tmp_path):
  file = tmp_path / 'tried.py'
  file.write_text('import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n')
  args = [sys.executable, str(_COMMAND), 'sweep', file]
  result = subprocess.run(args, capture_output=True, text=True)
  assert (result.returncode, result.stderr) == (130, 'error: interrupted\n')
