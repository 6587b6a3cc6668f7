"""Tests of the picture of a run's curves."""

import sys

import numpy as np
import tensorflow as tf

from experiments.tools import plot_runs
from nfnets.inference import curves


def _write(folder, points, name='train_loss'):
  writer = tf.summary.create_file_writer(str(folder))
  with writer.as_default():
    for step, value in points:
      tf.summary.scalar(name, value, step)
  writer.close()


def test_steps_made_again_count_once(tmp_path):
  _write(tmp_path / 'train', [(1, 5.0), (2, 4.0), (3, 9.0)])
  _write(tmp_path / 'train', [(3, 3.0), (4, 2.0)])
  steps, values = curves.read_scalars(tmp_path / 'train')['train_loss']
  assert (steps, values) == ([1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0])


def test_a_picture_is_drawn_and_a_folder_without_a_run_is_named(
  tmp_path, monkeypatch, capsys
):
  output = tmp_path / 'curves.png'
  args = ['plot_runs.py', *(str(tmp_path / x) for x in 'ab')]
  monkeypatch.setattr(sys, 'argv', [*args, f'--output={output}'])
  _write(tmp_path / 'a' / 'train', [(1, 5.0), (2, 4.0)])
  assert plot_runs.main() == 1
  assert f'no training run in {tmp_path}/b' in capsys.readouterr().err
  _write(tmp_path / 'b' / 'train', [(1, 5.0), (2, 4.0)])
  assert plot_runs.main() == 0
  assert output.read_bytes().startswith(b'\x89PNG')
  assert str(output) in capsys.readouterr().out


def test_layers_are_drawn_from_the_input_on_where_a_run_has_them(tmp_path):
  names = ['stem', 'nf_block/conv0', 'nf_block_10/conv0', 'linear']
  for i, name in enumerate(names):
    points = [(5, i * 5), (10, i * 10)]
    _write(tmp_path / 'a' / 'train', points, f'layers_max_ratio/{i:03d} {name}')
  _write(tmp_path / 'b' / 'train', [(1, 5.0), (2, 4.0)])
  picture = plot_runs.make_picture([tmp_path / 'a', tmp_path / 'b'])
  picture.canvas.draw()
  assert [len(part.axes) for part in picture.subfigs] == [2, 2]
  ax, _ = picture.subfigs[1].axes  # The second is the bar of colours.
  assert [t.get_text() for t in ax.get_yticklabels()] == names
  assert ax.yaxis_inverted()
  np.testing.assert_array_equal(
    ax.collections[0].get_array().reshape(4, 2), np.outer(range(4), [5, 10])
  )
