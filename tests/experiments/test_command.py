"""Tests of the command on the digits: what it leaves, and what it answers."""

import os
import pathlib

import command_lib
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow as tf

from experiments import configs, jaxline_compat, recipe
from experiments.tools import extract_weights
from nfnets import imagenet

_SMALL = command_lib.SMALL


def _scalars(folder):
  """Reads TensorBoard's files: {name: {step: value}}."""
  scalars = {}
  for file in sorted(pathlib.Path(folder).glob('events.*')):
    for event in tf.compat.v1.train.summary_iterator(str(file)):
      for value in event.summary.value:
        number = float(tf.make_ndarray(value.tensor))
        scalars.setdefault(value.tag, {})[event.step] = number
  return scalars


def test_training_ends_with_one_line_of_json(straight):
  folder, result = straight
  assert len(result.output.splitlines()) == 1
  last = result.json
  assert (last['config'], last['mode'], last['step']) == ('digits', 'train', 6)
  assert last['checkpoint_dir'] == str(folder)
  assert 0 < last['train_loss'] < 5
  assert {'top_1_acc', 'top_5_acc', 'learning_rate', 'grad_norm'} < set(last)
  assert {'fraction_clipped', 'images_per_second'} < set(last)


def test_a_log_file_gets_one_line_per_interval(straight):
  lines = [x for x in straight[1].log.splitlines() if '  loss ' in x]
  assert [x.split(' step ')[1].split('/')[0] for x in lines] == ['2', '4', '6']
  assert 'images/s' in lines[-1] and 'left' in lines[-1]


def test_tensorboard_gets_the_scalars(straight):
  folder, result = straight
  scalars = _scalars(folder / 'train')
  assert scalars['train_loss'][6] == pytest.approx(result.json['train_loss'])
  assert {'top_1_acc', 'learning_rate', 'images_per_second'} < set(scalars)
  tested = _scalars(folder / 'eval')['eval_ema_loss']
  assert tested == {6: pytest.approx(result.json['test_loss'])}


@pytest.mark.slow
def test_a_run_that_stops_and_goes_on_ends_the_same(
  straight, run_command, tmp_path
):
  args = (*_SMALL, f'--checkpoint_dir={tmp_path}', '--test_at_end=0')
  first = run_command(*args, '--training_steps=3')
  assert first.status == 0, first.log
  assert not any(key.startswith('test_') for key in first.json)
  result = run_command(*args, '--training_steps=6')
  assert result.status == 0, result.log
  assert f'Continuing from step 3 of {tmp_path}/latest' in result.log
  want = command_lib.read_arrays(straight[0], 6)
  got = command_lib.read_arrays(tmp_path, 6)
  assert want.keys() == got.keys()
  assert any('ema_params' in key for key in want)
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)


def _files(folder):
  return {
    path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
    for path in pathlib.Path(folder).rglob('*')
  }


def test_a_run_that_had_ended_is_left_as_it_is(straight, run_command):
  folder, first = straight
  args = (*_SMALL, f'--checkpoint_dir={folder}', '--training_steps=6')
  before = _files(folder)
  again = run_command(*args)
  assert again.status == 0
  assert again.json == first.json
  assert 'This run had ended at step 6; nothing was done' in again.log
  assert 'Test accuracy: ' in again.log and 'Trained' not in again.log
  other = run_command(*args, '--lr=0.05')
  assert (other.status, other.output) == (2, '')
  assert '  lr: 0.2 in the run, 0.05 now' in other.log.splitlines()
  assert _files(folder) == before


@pytest.mark.slow
def test_digits_end_with_a_report(run_command, tmp_path):
  args = (a for a in _SMALL if not a.startswith('--report'))
  args = (*args, f'--checkpoint_dir={tmp_path}', '--training_steps=2')
  result = run_command(*args)
  assert result.status == 0, result.log
  assert result.json['report'] == str(tmp_path / 'report.html')
  assert '360' in (tmp_path / 'report.html').read_text()
  assert 'also decided' not in (tmp_path / 'README.md').read_text()
  assert run_command(*args).json == result.json


def test_training_ends_with_what_evaluation_measures(straight, evaluated):
  """Of the averaged weights, as there are some."""
  trained, last = straight[1].json, evaluated[1].json
  assert trained['test_num_examples'] == last['eval_num_examples'] == 360
  for key in ('loss', 'top_1_acc'):
    assert trained[f'test_{key}'] == pytest.approx(last[f'eval_ema_{key}'])
  assert trained['test_loss'] != pytest.approx(last['eval_loss'], rel=1e-6)
  assert 'Test accuracy: ' in straight[1].log


def test_evaluation_counts_every_example_once(evaluated, data_dir):
  """As one batch has it, without devices and without padding."""
  folder, result = evaluated
  assert f'Evaluating step 6 of {folder}/latest' in result.log
  assert os.listdir(folder / 'best') == ['6']
  config = configs.load('digits')
  config.experiment_kwargs.config.update(
    image_size=16, eval_image_size=16, eval_batch_size=360, data_dir=data_dir
  )
  built = recipe.build(
    config.experiment_kwargs.config, jaxline_compat.init_rng(config)
  )
  (batch,) = built.eval_batches()
  labels = batch['labels']
  assert len(labels) == 360
  for which, prefix in (('raw', 'eval_'), ('ema', 'eval_ema_')):
    weights, _ = extract_weights.read_checkpoint(folder / 'latest' / '6', which)
    logits = jax.jit(built.model.logits)(
      weights.params, imagenet.normalize(batch['images'])
    )
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
    loss = -np.mean(log_probs[np.arange(360), labels])
    assert result.json[f'{prefix}loss'] == pytest.approx(loss, rel=1e-4)
    order = np.argsort(-logits, axis=-1)
    for k in (1, 5):
      correct = np.mean(np.any(order[:, :k] == labels[:, None], axis=-1))
      assert result.json[f'{prefix}top_{k}_acc'] == pytest.approx(correct)


def test_a_failure_of_training_ends_both(run_command, tmp_path):
  """In train_eval_multithreaded, where evaluation would wait for ever."""
  (tmp_path / 'latest').write_text('not a folder')
  result = run_command(
    *_SMALL,
    f'--checkpoint_dir={tmp_path}',
    '--training_steps=4',
    '--jaxline_mode=train_eval_multithreaded',
  )
  assert result.status == 1
  last = result.log.strip().splitlines()[-1]
  assert last.startswith('error: Could not write a checkpoint to')
  assert result.output == ''


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_a_good_checkpoint(
  run_command, tmp_path, monkeypatch
):
  train_batches = recipe.Recipe.train_batches

  def spoilt(*args):
    with train_batches(*args) as batches:
      for i, batch in enumerate(batches):
        images = np.full_like(batch['images'], np.nan)
        yield {**batch, 'images': images} if i == 3 else batch

  monkeypatch.setattr(recipe.Recipe, 'train_batches', spoilt)
  result = run_command(
    *_SMALL,
    f'--checkpoint_dir={tmp_path}',
    '--training_steps=50',
    '--save_checkpoint_interval=1',
  )
  assert result.status == 1
  last = result.log.strip().splitlines()[-1]
  assert last.startswith('error: At step 4 the loss is nan')
  assert 'skip_nonfinite=True' in last
  assert max(ocp.utils.checkpoint_steps(tmp_path / 'latest')) == 3
  for name, array in command_lib.read_arrays(tmp_path, 3).items():
    assert np.all(np.isfinite(array)), name


@pytest.mark.slow
def test_the_command_is_a_program(run_process, straight, tmp_path):
  """As people start it; its module is not also imported under its name."""
  result = run_process(
    *_SMALL,
    f'--checkpoint_dir={tmp_path}',
    '--training_steps=2',
    '--test_at_end=0',
    devices=jax.device_count(),
    PYTHONPROFILEIMPORTTIME='1',
  )
  assert result.status == 0, result.log
  assert len(result.output.splitlines()) == 1
  assert result.json['step'] == 2
  imported = [
    line.rpartition('|')[2].strip()
    for line in result.log.splitlines()
    if line.startswith('import time:')
  ]
  assert imported.count('experiments.loop') == 1
  assert 'experiments.experiment' not in imported


@pytest.mark.parametrize(
  'args, status, message',
  [
    ((), 2, '--config=NAME is missing'),
    (('--data=photos',), 2, 'it is --config=finetune'),
    (('--data', 'photos'), 2, 'it is --config=finetune'),
    (('--config=f9',), 2, "There is no config 'f9'. Did you mean"),
    (('--config=digits', '--frob'), 2, "There is no setting 'frob'"),
    (('--config=digits', 'more'), 2, 'Unknown argument: more'),
    (('--config=digits', '--jaxline_mode=x'), 2, "--jaxline_mode is 'x'"),
    (('--config=digits', '--config.foo=1'), 2, "no setting 'foo'"),
    (('--config=digits', '--training_steps=x'), 2, 'training_steps=x'),
    (('--config=f0',), 1, 'imagenet2012 is not prepared: looked for it in'),
    ((*_SMALL, '--jaxline_mode=eval'), 1, 'No checkpoint in'),
    ((*_SMALL, '--num_classes=11'), 2, 'digits has 10 classes'),
    ((*_SMALL, '--train_batch_size=3'), 2, '4 devices do not divide'),
    ((*_SMALL, '--eval_subset=x'), 2, "eval_subset is 'x'"),
    ((*_SMALL, '--model=f0'), 2, "No model 'f0'"),
    ((*_SMALL, '--optimizer.name=x'), 2, "No optimizer 'x'"),
    ((*_SMALL, '--train_preproc=x'), 2, 'training preprocessing'),
    ((*_SMALL, '--augment_name=mixap'), 2, "did you mean 'mixup'?"),
    ((*_SMALL, '--accumulate_steps=3'), 2, 'does not divide the 4'),
    ((*_SMALL, '--num_processes=2'), 2, 'processes need --coordinator_addr'),
    ((*_SMALL, '--which_dataset=x'), 1, "Unknown dataset 'x'"),
    ((*_SMALL, '--lr_schedule.name=x'), 2, 'lr_schedule.name'),
    ((*_SMALL, '--lr=-1.0'), 2, 'lr is -1.0; it must be positive'),
  ],
)
def test_bad_input_is_answered_on_one_screen(
  args, status, message, tmp_path, run_command
):
  result = run_command(*args, cwd=tmp_path)
  assert result.status == status
  assert message in result.log
  assert 'Traceback' not in result.log
  assert result.output == ''
  assert os.listdir(tmp_path) == []
