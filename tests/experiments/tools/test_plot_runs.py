"""Tests of the picture of a run's curves."""

import sys

import tensorflow as tf

from experiments.tools import plot_runs
from nfnets.inference import curves


def _write(folder, points):
  writer = tf.summary.create_file_writer(str(folder))
  with writer.as_default():
    for step, value in points:
      tf.summary.scalar('train_loss', value, step)
  writer.close()


def test_steps_made_again_count_once(tmp_path):
  _write(tmp_path / 'train', [(1, 5.0), (2, 4.0), (3, 9.0)])
  _write(tmp_path / 'train', [(3, 3.0), (4, 2.0)])
  steps, values = curves.read_scalars(tmp_path / 'train')['train_loss']
  assert steps == [1, 2, 3, 4]
  assert values == [5.0, 4.0, 3.0, 2.0]


def test_a_picture_is_drawn_of_runs_with_and_without_evaluation(
  tmp_path, monkeypatch, capsys
):
  for name in ('a', 'b'):
    _write(tmp_path / name / 'train', [(1, 5.0), (2, 4.0)])
  output = tmp_path / 'curves.png'
  args = [str(tmp_path / 'a'), str(tmp_path / 'b'), f'--output={output}']
  monkeypatch.setattr(sys, 'argv', ['plot_runs.py', *args])
  assert plot_runs.main() == 0
  assert output.read_bytes().startswith(b'\x89PNG')
  assert str(output) in capsys.readouterr().out


def test_a_folder_without_a_run_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['plot_runs.py', str(tmp_path / 'x')])
  assert plot_runs.main() == 1
  assert f'no training run in {tmp_path}/x' in capsys.readouterr().err
