"""Tests of whole runs in a bucket: the command, and the tools after it."""

import json
import os
import signal
import time

import command_lib
import numpy as np
import pytest
from test_interruptions import _start_two

from experiments import checkpoints
from nfnets import paths


@pytest.mark.parametrize(
  'setting', ['checkpoint_dir', 'weights', 'data_dir', 'data']
)
def test_other_schemes_are_refused_before_anything_is_made(
  setting, run_command, tmp_path
):
  result = run_command(
    '--config=digits', f'--{setting}=s3://bucket/x', cwd=tmp_path
  )
  assert result.status == 2
  assert f'error: --{setting}: s3://bucket/x: s3:// is not' in result.log
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('bucket', ['no-bucket', 'forbidden-bucket'])
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_a_bucket_that_cannot_be_used_is_said_before_anything_is_made(
  bucket, mode, run_command, tmp_path, store
):
  result = run_command(
    *command_lib.SMALL,
    '--data_dir=data',
    f'--checkpoint_dir=gs://{bucket}/run',
    f'--jaxline_mode={mode}',
    cwd=tmp_path,
  )
  assert result.status == 1
  assert f'gs://{bucket}' in result.log.splitlines()[-1]
  assert mode == 'eval' or not os.listdir(tmp_path)


@pytest.mark.slow
def test_sigterm_ends_a_run_that_waits_for_the_store(
  start_command, store, remote_folder, tmp_path
):
  process = start_command(
    *command_lib.SMALL,
    f'--data_dir={remote_folder}',
    f'--checkpoint_dir={tmp_path}',
    '--training_steps=100000',
    '--log_train_data_interval=0.2',
  )
  command_lib.wait_for_step(process)
  store.disturb('lost', 600)
  for line in process.stderr:
    if 'The store does not answer' in line:
      break
  before, step = None, checkpoints.latest_step(tmp_path / 'latest')
  while step != before:  # What has been read ahead is used up first.
    time.sleep(2)
    before, step = step, checkpoints.latest_step(tmp_path / 'latest')
  process.send_signal(signal.SIGTERM)
  output, log = process.communicate(timeout=200)
  assert process.returncode == 0, log
  last = json.loads(output.splitlines()[-1])
  assert last['stopped_by_sigterm']
  assert checkpoints.latest_step(tmp_path / 'latest') == last['step']


@pytest.mark.slow
def test_a_run_of_two_that_was_killed_ends_as_one_on_a_disk(
  start_command, run_process, remote_folder, tmp_path
):
  args = (
    *(*command_lib.SMALL, '--compile_quickly'),
    *('--training_steps=30', '--evaluations=3'),
  )
  two = _start_two(start_command, *args, f'--checkpoint_dir={remote_folder}')
  for line in two[0].stderr:
    if ' step 8/' in line:
      break
  two[1].send_signal(signal.SIGKILL)
  for process in two:
    process.communicate(timeout=900)
  resumed = run_process(
    *args, '--report', f'--checkpoint_dir={remote_folder}', devices=2
  )
  assert resumed.status == 0, resumed.log
  assert f'of {remote_folder}/latest' in resumed.log  # Continuing.
  straight = run_process(*args, f'--checkpoint_dir={tmp_path}', devices=2)
  assert straight.status == 0, straight.log
  for key in ('train_loss', 'test_loss', 'test_top_1_acc'):
    assert resumed.json[key] == straight.json[key]
  checkpoint = tmp_path / 'copy' / 'latest' / '30'
  for name in paths.names(f'{remote_folder}/latest/30'):
    file = checkpoint / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(paths.read_bytes(f'{remote_folder}/latest/30/{name}'))
  want = command_lib.read_arrays(tmp_path, 30)
  got = command_lib.read_arrays(tmp_path / 'copy', 30)
  assert want.keys() == got.keys()
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)
  assert {*paths.names(remote_folder)} >= {
    *('run.json', 'weights.safetensors', 'report.html'),
  }
