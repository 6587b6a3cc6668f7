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

from experiments import experiment

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


def _wait_for_step(process) -> str:
  """Returns what a process has logged when it has logged a step."""
  log = ''
  for line in process.stderr:
    log += line
    if ' step ' in line and '  loss ' in line:
      return log
  raise AssertionError(f'training has ended before its first step: {log}')


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
  lines = [x for x in straight[1].log.splitlines() if '  loss ' in x]
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


def test_sigterm_saves_and_ends(start_command, tmp_path):
  args = (*_SMALL, _folder(tmp_path), _steps(100_000))
  process = start_command(*args)
  _wait_for_step(process)
  process.send_signal(signal.SIGTERM)
  output, log = process.communicate(timeout=60)
  assert process.returncode == 0, log
  last = json.loads(output.splitlines()[-1])
  assert last['stopped_by_sigterm']
  assert f'Ended at step {last["step"]} of 100000 as asked, and saved' in log
  steps = ocp.utils.checkpoint_steps(tmp_path / 'latest')
  assert max(steps) == last['step'] < 100_000


def test_a_second_sigterm_ends_at_once(start_command, tmp_path):
  """Even while the first step is compiled."""
  process = start_command(*_SMALL, _folder(tmp_path), _steps(100_000))
  for line in process.stderr:
    if 'Compiling' in line:
      break
  for sure in ('SIGTERM: ending after this step', ''):
    process.send_signal(signal.SIGTERM)
    assert sure in process.stderr.readline()
  start = time.time()
  process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert time.time() - start < 2


def test_a_loss_that_is_not_finite_leaves_a_good_checkpoint(
  run_command, tmp_path
):
  result = run_command(
    *_SMALL,
    _folder(tmp_path),
    _steps(50),
    '--config.save_checkpoint_interval=1',
    f'{_SETTING}.lr=1e25',
    f'{_SETTING}.optimizer.kwargs.clipping=1e30',
  )
  assert result.status == 1
  last = result.log.strip().splitlines()[-1]
  assert last.startswith('error: At step ')
  assert 'skip_nonfinite=True' in last
  bad_step = int(last.split()[3])
  steps = ocp.utils.checkpoint_steps(tmp_path / 'latest')
  assert 0 < max(steps) < bad_step
  for name, array in _arrays(tmp_path, max(steps)).items():
    assert np.all(np.isfinite(array)), name


_KILLED = (
  *_SMALL,
  '--config.save_checkpoint_interval=1',
  f'{_SETTING}.augment_name=cutmix_mixup_0.4_randaugment_405',
  f'{_SETTING}.model_kwargs.drop_rate=0.3',
  f'{_SETTING}.model_kwargs.stochdepth_rate=0.2',
  f'{_SETTING}.num_epochs=5.0',
)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(
  start_command, run_command, tmp_path
):
  """SIGKILL at random moments; NFNETS_TEST_KILLS sets how many."""
  last_step, generator, step = 100, random.Random(0), 0
  args = (*_KILLED, _folder(tmp_path / 'killed'), _steps(last_step))
  for _ in range(int(os.environ.get('NFNETS_TEST_KILLS', '3'))):
    process = start_command(*args)
    # Until it trains, and then a random while, often within a save.
    _wait_for_step(process)
    time.sleep(generator.uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    log = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, log
    steps = ocp.utils.checkpoint_steps(tmp_path / 'killed' / 'latest')
    assert step <= max(steps) < last_step
    step = max(steps)
  killed = run_command(*args)
  assert killed.status == 0, killed.log
  assert f'Continuing from step {step} of' in killed.log
  straight = run_command(
    *_KILLED,
    _folder(tmp_path / 'straight'),
    _steps(last_step),
    '--config.save_checkpoint_interval=100',
  )
  for key in ('step', 'train_loss', 'grad_norm', 'top_1_acc', 'learning_rate'):
    assert killed.json[key] == straight.json[key]
  want, got = (
    _arrays(tmp_path / name, last_step) for name in ('straight', 'killed')
  )
  assert want.keys() == got.keys()
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def _start_two(start_command, *args, devices=1):
  address = f'127.0.0.1:{_free_port()}'
  return [
    start_command(
      *args,
      f'--coordinator_address={address}',
      '--num_processes=2',
      f'--process_id={i}',
      devices=devices,
    )
    for i in range(2)
  ]


def _finish(processes, status=0):
  results = [process.communicate(timeout=240) for process in processes]
  assert [p.returncode for p in processes] == [status] * len(processes), results
  # Gloo, which connects CPUs, writes to standard output as well.
  last = [output.splitlines()[-1] for output, _ in results]
  assert not any(line.startswith('{') for line in last[1:])
  return json.loads(last[0])


@pytest.mark.slow
def test_processes_and_devices_do_not_matter(start_command, tmp_path):
  results = {}
  for count, devices in ((1, 4), (2, 1), (2, 2)):
    folder = tmp_path / f'{count}x{devices}'
    args = (
      *_SMALL,
      _folder(folder),
      _steps(30),
      '--config.save_checkpoint_interval=30',
      f'{_SETTING}.augment_name=cutmix_mixup_randaugment_405',
    )
    if count == 1:
      processes = [start_command(*args, devices=devices)]
    else:
      processes = _start_two(start_command, *args, devices=devices)
    results[count, devices] = _finish(processes), _arrays(folder, 30)
  want, want_arrays = results.pop((1, 4))
  for got, got_arrays in results.values():
    for key in ('train_loss', 'top_1_acc', 'grad_norm'):
      assert got[key] == pytest.approx(want[key], rel=1e-3)
    for key, value in want_arrays.items():
      np.testing.assert_allclose(
        got_arrays[key], value, rtol=1e-2, atol=1e-4, err_msg=key
      )


@pytest.mark.slow
def test_processes_end_together_and_go_on(start_command, tmp_path):
  """After SIGTERM to one, after SIGKILL of one, and on other devices."""
  args = (*_SMALL, _folder(tmp_path), _steps(100_000))
  # As Slurm would start them; the port follows from the number of the job.
  slurm = {
    'SLURM_JOB_ID': str(random.randrange(4096)),
    'SLURM_STEP_NODELIST': '127.0.0.1',
    'SLURM_NTASKS': '2',
  }
  processes = [
    start_command(*args, **slurm, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
    for i in range(2)
  ]
  _wait_for_step(processes[0])
  processes[1].send_signal(signal.SIGTERM)
  stopped = _finish(processes)['step']
  assert max(ocp.utils.checkpoint_steps(tmp_path / 'latest')) == stopped

  processes = _start_two(start_command, *args)
  log = _wait_for_step(processes[0])
  assert f'Continuing from step {stopped} of' in log
  processes[1].send_signal(signal.SIGKILL)
  start = time.time()
  log = processes[0].communicate(timeout=120)[1]
  assert time.time() - start < 120
  assert processes[0].returncode == 1
  assert 'another process has ended' in log
  processes[1].communicate()

  step = max(ocp.utils.checkpoint_steps(tmp_path / 'latest'))
  assert step > stopped
  process = start_command(
    *_SMALL, _folder(tmp_path), _steps(step + 2), devices=2
  )
  assert _finish([process])['step'] == step + 2


def _in_no_cluster(**_):
  raise ValueError('coordinator_address should be defined.')


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
    (('--config=digits', '--frob'), 2, "There is no setting 'frob'"),
    (('--config=digits', 'more'), 2, 'Unknown arguments: more'),
    (('--config=digits', '--jaxline_mode=x'), 2, "--jaxline_mode is 'x'"),
    (('--config=digits', '--config.foo=1'), 2, "no setting 'foo'"),
    (('--config=digits', '--config.training_steps=x'), 2, 'training_steps=x'),
    (('--config=f0',), 1, 'imagenet2012 is not prepared: looked for it in'),
    ((*_SMALL, '--jaxline_mode=eval'), 1, 'No checkpoint in'),
    ((*_SMALL, f'{_SETTING}.num_classes=11'), 2, 'digits has 10 classes'),
    ((*_SMALL, f'{_SETTING}.train_batch_size=3'), 2, '2 devices do not divide'),
    ((*_SMALL, f'{_SETTING}.eval_subset=x'), 2, "eval_subset is 'x'"),
    ((*_SMALL, f'{_SETTING}.model=f0'), 2, "No model 'f0'"),
    ((*_SMALL, f'{_SETTING}.optimizer.name=x'), 2, "No optimizer 'x'"),
    ((*_SMALL, f'{_SETTING}.train_preproc=x'), 2, 'training preprocessing'),
    ((*_SMALL, f'{_SETTING}.augment_name=mixap'), 2, "did you mean 'mixup'?"),
    ((*_SMALL, f'{_SETTING}.accumulate_steps=3'), 2, 'does not divide the 8'),
    ((*_SMALL, '--num_processes=2'), 2, 'processes need --coordinator_addr'),
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
  # Other tests have used JAX by now, after which processes cannot be joined.
  monkeypatch.setattr(jax.distributed, 'initialize', _in_no_cluster)
  # ml_collections looks there for what to override.
  monkeypatch.setattr(sys, 'argv', ['experiment.py', *args])
  got = experiment.main(sys.argv)
  captured = capsys.readouterr()
  assert got == status
  assert message in captured.err
  assert 'Traceback' not in captured.err
  assert captured.out == ''
  assert not (tmp_path / 'runs').exists()
