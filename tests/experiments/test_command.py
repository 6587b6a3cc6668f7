"""Tests of the command as people run it, on the digits."""

import json
import os
import pathlib
import random
import signal
import socket
import sys
import time

from absl import flags
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow as tf

from experiments import command

_SETTING = '--config.experiment_kwargs.config'
_SMALL = (
  '--config=digits',
  f'{_SETTING}.image_size=16',
  f'{_SETTING}.eval_image_size=16',
  f'{_SETTING}.train_batch_size=16',
  f'{_SETTING}.eval_batch_size=7',
  f'{_SETTING}.use_ema=True',
  '--config.save_checkpoint_interval=2',
  '--config.log_tensors_interval=2',
)


def _folder(path):
  return f'--config.checkpoint_dir={path}'


def _steps(n):
  return f'--config.training_steps={n}'


def _arrays(folder, step):
  """Reads a checkpoint without the project's code."""
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(folder / 'latest' / str(step) / 'state')
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _scalars(folder):
  """Reads TensorBoard's files: {name: {step: value}}."""
  scalars = {}
  for file in sorted(pathlib.Path(folder).glob('events.*')):
    for event in tf.compat.v1.train.summary_iterator(str(file)):
      for value in event.summary.value:
        number = float(tf.make_ndarray(value.tensor))
        scalars.setdefault(value.tag, {})[event.step] = number
  return scalars


@pytest.fixture(scope='module')
def straight(run_command, tmp_path_factory):
  """A run of six steps without a stop."""
  folder = tmp_path_factory.mktemp('straight')
  result = run_command(*_SMALL, _folder(folder), _steps(6))
  assert result.status == 0, result.log
  return folder, result


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
  lines = [x for x in straight[1].log.splitlines() if ' step ' in x]
  assert [x.split(' step ')[1].split('/')[0] for x in lines] == ['2', '4', '6']
  assert 'images/s' in lines[-1] and 'left' in lines[-1]


def test_tensorboard_gets_the_scalars(straight):
  folder, result = straight
  scalars = _scalars(folder / 'train')
  assert scalars['train_loss'][6] == pytest.approx(result.json['train_loss'])
  assert {'top_1_acc', 'learning_rate', 'images_per_second'} < set(scalars)


def test_a_run_that_stops_and_goes_on_ends_the_same(
  straight, run_command, tmp_path
):
  args = (*_SMALL, _folder(tmp_path))
  assert run_command(*args, _steps(3)).status == 0
  result = run_command(*args, _steps(6))
  assert result.status == 0, result.log
  assert f'Continuing from step 3 of {tmp_path}/latest' in result.log
  want, got = _arrays(straight[0], 6), _arrays(tmp_path, 6)
  assert want.keys() == got.keys()
  assert any('ema_params' in key for key in want)
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_evaluation_counts_every_example_once(straight, run_command):
  folder, _ = straight
  evaluate = (*_SMALL, _folder(folder), _steps(6), '--jaxline_mode=eval')
  results = [run_command(*evaluate, devices=n) for n in (1, 2)]
  for result in results:
    assert result.status == 0, result.log
    assert result.json['eval_num_examples'] == 360
    assert f'Evaluating step 6 of {folder}/latest' in result.log
  one, two = (r.json for r in results)
  for key in ('eval_loss', 'eval_ema_loss', 'eval_top_5_acc'):
    assert one[key] == pytest.approx(two[key], rel=1e-5)
  assert os.listdir(folder / 'best') == ['6']


def test_a_failure_of_training_ends_both(run_command, data_dir, tmp_path):
  """In train_eval_multithreaded, where evaluation would wait for ever."""
  (tmp_path / 'latest').write_text('not a folder')
  start = time.time()
  result = run_command(
    *_SMALL,
    _folder(tmp_path),
    _steps(4),
    '--jaxline_mode=train_eval_multithreaded',
  )
  assert result.status == 1
  assert time.time() - start < 120
  last = result.log.strip().splitlines()[-1]
  assert last.startswith('error: Could not write a checkpoint to')
  assert result.output == ''


def test_another_model_does_not_overwrite_the_checkpoint(straight, run_command):
  folder, _ = straight
  before = sorted(os.listdir(folder / 'latest'))
  result = run_command(
    *_SMALL,
    _folder(folder),
    _steps(8),
    f'{_SETTING}.optimizer.name=sgd_agc',
    f'{_SETTING}.use_ema=False',
  )
  assert result.status == 1
  assert 'is of another model or optimizer' in result.log
  assert 'ema_params' in result.log
  assert 'Traceback' not in result.log
  assert sorted(os.listdir(folder / 'latest')) == before


@pytest.mark.slow
def test_a_killed_run_always_goes_on(start_command, tmp_path):
  """SIGKILL at random moments; NFNETS_TEST_KILLS sets how many."""
  args = (*_SMALL, _folder(tmp_path), '--config.save_checkpoint_interval=1')
  generator, step = random.Random(0), 0
  for _ in range(int(os.environ.get('NFNETS_TEST_KILLS', '3'))):
    process = start_command(*args, _steps(100_000))
    # Until it trains, and then a random while, often within a save.
    for line in process.stderr:
      if ' step ' in line and '/100000' in line:
        break
    time.sleep(generator.uniform(0, 2))
    process.send_signal(signal.SIGKILL)
    log = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, log
    steps = ocp.utils.checkpoint_steps(tmp_path / 'latest')
    assert max(steps) >= step
    step = max(steps)
  process = start_command(*args, _steps(step + 1))
  output, log = process.communicate(timeout=300)
  assert process.returncode == 0, log
  assert f'Continuing from step {step} of' in log
  assert json.loads(output)['step'] == step + 1


@pytest.mark.slow
def test_two_processes_train_what_one_does(straight, start_command, tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    start_command(
      *_SMALL,
      _folder(tmp_path),
      _steps(6),
      f'--coordinator_address={address}',
      '--num_processes=2',
      f'--process_id={i}',
    )
    for i in range(2)
  ]
  results = [process.communicate(timeout=240) for process in processes]
  assert [p.returncode for p in processes] == [0, 0], results
  # Gloo, which connects CPUs, writes to standard output as well.
  last = json.loads(results[0][0].splitlines()[-1])
  for key in ('train_loss', 'grad_norm'):
    assert last[key] == pytest.approx(straight[1].json[key], rel=1e-4)
  assert '{' not in results[1][0]  # The first process tells for all.
  want, got = _arrays(straight[0], 6), _arrays(tmp_path, 6)
  for key, value in want.items():
    np.testing.assert_allclose(
      got[key], value, rtol=1e-3, atol=1e-5, err_msg=key
    )


@pytest.fixture
def fresh_flags():
  """Forgets the overrides that the command line defined."""
  yield
  for name in list(flags.FLAGS):
    if name.startswith('config.'):
      delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
  'args, status, message',
  [
    ((), 2, '--config is missing'),
    (('--config=f9',), 2, "There is no config 'f9'. Did you mean"),
    (('--config', 'f0'), 2, 'Write --config=f0'),
    (('--config=digits', '--frob'), 2, "Unknown command line flag 'frob'"),
    (('--config=digits', 'more'), 2, 'Unknown arguments: more'),
    (('--config=digits', '--jaxline_mode=x'), 2, "--jaxline_mode is 'x'"),
    (('--config=digits', '--config.foo=1'), 2, "has no setting 'foo'"),
    (('--config=digits', '--config.training_steps=x'), 2, 'training_steps=x'),
    (('--config=f0',), 1, 'imagenet2012 is not prepared: looked for it in'),
    ((*_SMALL, '--jaxline_mode=eval'), 1, 'No checkpoint in'),
    ((*_SMALL, f'{_SETTING}.num_classes=11'), 2, 'digits has 10 classes'),
    ((*_SMALL, f'{_SETTING}.train_batch_size=3'), 2, '2 devices do not divide'),
    ((*_SMALL, f'{_SETTING}.eval_subset=x'), 2, "eval_subset is 'x'"),
    ((*_SMALL, f'{_SETTING}.model=f0'), 2, "No model 'f0'"),
    ((*_SMALL, f'{_SETTING}.optimizer.name=x'), 2, "No optimizer 'x'"),
    ((*_SMALL, f'{_SETTING}.train_preproc=x'), 2, 'training preprocessing'),
    ((*_SMALL, f'{_SETTING}.augment_name=x'), 2, "augment_name is 'x'"),
    ((*_SMALL, f'{_SETTING}.which_dataset=x'), 1, "Unknown dataset 'x'"),
    ((*_SMALL, f'{_SETTING}.lr_schedule.name=x'), 2, 'lr_schedule.name'),
    ((*_SMALL, f'{_SETTING}.lr=-1.0'), 2, 'lr is -1.0; it must be positive'),
  ],
)
def test_bad_input_is_answered_on_one_screen(
  args, status, message, tmp_path, monkeypatch, capsys, data_dir, fresh_flags
):
  if any(arg.startswith(_SETTING) for arg in args) or args == ('--config=f0',):
    args = (*args, f'{_SETTING}.data_dir={data_dir}')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  # ml_collections looks there for what to override.
  monkeypatch.setattr(sys, 'argv', ['experiment.py', *args])
  got = command.main(sys.argv)
  captured = capsys.readouterr()
  assert got == status
  assert message in captured.err
  assert 'Traceback' not in captured.err
  assert captured.out == ''
  assert not (tmp_path / 'runs').exists()
