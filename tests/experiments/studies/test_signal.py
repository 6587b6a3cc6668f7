"""The command that draws signals: what it writes, and what it refuses."""

import csv
import math

import jax
import numpy as np
from PIL import Image
import pytest

from experiments.studies import signal_measure
from experiments.tools import study
import nfnets
from nfnets import weights


@pytest.fixture
def calls(monkeypatch):
  """Replaces measuring by four made-up rows; what it was called with."""
  calls = []

  def measure(named, *args):
    calls.append((named, *args))
    row, name = signal_measure.Row, named.text
    return [
      row(name, 0, 0, 0, 0.1, 0.5, None, 1.0, None),
      row(name, 1, 1, 1, 0.2, 1.0, 1.0, 1.04, 1.0),
      row(name, 2, 1, 0, 0.0, math.inf, 0.9, None, None),
      row(name, 3, 2, 1, 0.2, math.nan if args[3] else 1.2, 0.9, 1.08, 1.0),
    ]

  monkeypatch.setattr(signal_measure, 'measure', measure)
  return calls


@pytest.fixture
def run(run_command, tmp_path):
  def run(*args):
    def main(argv):
      return study.main([argv[0], 'signal', *argv[1:]])

    return run_command(*args, main=main, cwd=tmp_path)

  return run


def test_a_picture_and_a_table_are_written(calls, run, tmp_path):
  models = 'nf_resnet50,nfnet_digits:alpha=1,fixup_resnet50'
  result = run(f'--models={models}')
  assert result.status == 0, result.log
  assert result.json['output'] == 'signal.png'
  with Image.open(tmp_path / 'signal.png') as picture:
    assert picture.width == 800
  with open(tmp_path / 'signal.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == list(signal_measure.Row._fields)
  assert ','.join(row['network'] for row in rows[::4]) == models
  assert rows[0]['res_avg_var'] == '' and rows[1]['res_avg_var'] == '1.0'
  assert rows[2]['avg_var'] == ''  # It is not finite.
  sizes = [images.shape for _, _, images, _, _ in calls]
  assert sizes == [(32, s, s, 3) for s in (128, 32, 128)]
  images = np.asarray(calls[0][2])
  assert abs(images.mean()) < 0.01 and abs(images.std() - 1) < 0.01


def test_a_signal_that_is_lost_is_a_failure(calls, run, tmp_path):
  result = run('--models=nf_resnet50', '--seed=1')
  assert result.status == 1
  assert result.json['last_var'] == {'nf_resnet50': None}
  assert 'error: not finite: last_var. ' in result.log
  assert (tmp_path / 'signal.csv').exists()


@pytest.mark.slow
def test_images_of_a_dataset_are_normalized(calls, run):
  result = run('--models=nfnet_digits', '--input=digits', '--batch_size=64')
  assert result.status == 0, result.log
  images = np.asarray(calls[0][2])
  assert images.shape == (64, 32, 32, 3)
  # What is 0 and 255, by ImageNet's mean and deviation, and bicubic overshoot.
  assert -3.5 < images.min() < -2.0 and 1.5 < images.max() < 4.5


@pytest.mark.slow
def test_weights_say_whose_they_are(calls, run, tmp_path):
  model = nfnets.create_model('nfnet_digits', 10)
  params, state = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype),
    jax.eval_shape(model.init, jax.random.key(0)),
  )
  weights.save_weights(tmp_path / 'w.npz', params, state)
  changed = 'nfnet_digits:alpha=2'
  assert run('--weights=w.npz', f'--models={changed}').status == 0
  named, model, _, given, _ = calls[0]
  assert named.text == changed and model.test_size == 32
  assert model.overrides == {'alpha': 2}
  assert given[0].keys() == params.keys()
  result = run('--weights=w.npz', '--models=nf_resnet50')
  assert result.status == 1
  assert 'w.npz: These weights are of nfnet_digits' in result.log
  result = run('--weights=w.npz', '--models=nf_resnet50,nfnet_digits')
  assert result.status == 2 and 'of one network' in result.log


@pytest.mark.parametrize(
  ('args', 'status', 'message'),
  [
    ([], 2, '--models or --weights is missing'),
    (['--models=nf_resnet50:activation=mish'], 2, "No activation 'mish'"),
    (['--models=nf_resnet50', '--output=a.gif'], 2, 'does not end in .png'),
    (['--models=nf_resnet50', '--output=no/a.png'], 1, 'there is no folder no'),
    (
      ['--models=nf_resnet50', '--output=s3://a/a.png'],
      2,
      's3:// is not known',
    ),
    (['--models=nf_resnet50', '--input=nowhere'], 1, "dataset 'nowhere'"),
    (['--models=nf_resnet50', '--weights=no.npz'], 1, 'there is no such file'),
  ],
)
def test_what_cannot_be_done_is_said_in_a_line(
  args, status, message, calls, run, tmp_path
):
  result = run(*args)
  assert result.status == status
  assert result.log.startswith('error: ') and result.log.count('\n') == 1
  assert message in result.log
  assert not calls and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('nf_resnet51', 'Did you mean nf_resnet50'),
    ('nf_resnet50:beta=1', "no change 'beta=1'. Use NAME=VALUE with one of"),
    ('nf_resnet50:alpha', "no change 'alpha'"),
    ('nf_resnet50:scaled_activations=1', 'must be one of yes, no'),
    ('nf_resnet50:init=he', 'init does not apply'),
    ('resnet50:alpha=1', "no change 'alpha=1'"),
    ('resnet50_v1:order=act_norm_conv', 'order does not apply'),
  ],
)
def test_what_is_no_network_says_so(text, message):
  with pytest.raises(ValueError, match='.') as error:
    signal_measure.parse(text)
  assert message in str(error.value)


def test_the_name_of_a_network_has_its_changes():
  text = 'nf_resnet50:weight_standardization=no:alpha=0.5:init=he'
  named = signal_measure.parse(text)
  assert named.text == text
  assert named.changes == {'weight_standardization': False, 'init': 2.0}
  assert named.arguments == {'alpha': 0.5}
