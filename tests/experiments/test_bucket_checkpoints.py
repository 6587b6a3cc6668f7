"""Tests of checkpoints in a bucket: as those on a disk."""

import threading

import pytest
from test_checkpoints import _checkpointer, _Experiment, _same, _save

from experiments import checkpoint_files, checkpoints
from nfnets import buckets


def test_what_is_restored_is_what_was_saved(remote_folder):
  _save(remote_folder, [1, 3, 7], _Experiment(seed=1))
  checkpointer, state = _checkpointer(remote_folder)
  assert checkpointer.restore_path('latest') == f'{remote_folder}/latest/7'
  checkpointer.restore('latest')
  assert _same(state.experiment_module.state, _Experiment(seed=1).state)
  assert state.global_step == 7
  names = buckets.names(f'{remote_folder}/latest')
  assert {name.split('/')[0] for name in names} - {''} == {'3', '7'}


def test_a_step_without_its_last_file_is_none(remote_folder):
  _save(remote_folder, [3, 5])
  buckets.remove(f'{remote_folder}/latest/5', ['commit_success.txt'])
  assert checkpoint_files.latest_step(f'{remote_folder}/latest') == 3
  _save(remote_folder, [6])
  names = buckets.names(f'{remote_folder}/latest')
  assert {name.split('/')[0] for name in names} - {''} == {'3', '6'}


def test_damage_is_noticed(remote_folder):
  _save(remote_folder, [3])
  folder = f'{remote_folder}/latest/3'
  noticed = 0
  for name in buckets.names(folder):
    content = bytearray(buckets.read(f'{folder}/{name}'))
    if not content or name == 'commit_success.txt':
      continue
    kept = bytes(content)
    content[len(content) // 2] ^= 0x10
    buckets.write(f'{folder}/{name}', bytes(content))
    checkpointer, state = _checkpointer(remote_folder)
    try:
      checkpointer.restore('latest')
      assert _same(state.experiment_module.state, _Experiment().state), name
    except checkpoints.CheckpointError as error:
      assert f'{folder} is damaged' in str(error)
      noticed += 1
    buckets.write(f'{folder}/{name}', kept)
  assert noticed >= 3


@pytest.mark.parametrize('bucket', ['no-bucket', 'forbidden-bucket'])
def test_a_bucket_that_cannot_be_used_is_an_error(store, bucket):
  with pytest.raises(checkpoints.CheckpointError, match=bucket):
    _checkpointer(f'gs://{bucket}/run')
  with pytest.raises(checkpoints.CheckpointError, match=bucket):
    _checkpointer(f'gs://{bucket}/run', mode='eval')[0].check_folder()
  with pytest.raises(checkpoints.CheckpointError, match=bucket):
    checkpoint_files.latest_step(f'gs://{bucket}/run/latest')


@pytest.mark.parametrize('kind', ['forbidden', 'lost'])
def test_training_goes_on_while_the_store_fails(
  store, remote_folder, monkeypatch, kind, caplog
):
  monkeypatch.setattr(checkpoints, '_RETRY_SECONDS', 0.1)
  checkpointer, state = _checkpointer(remote_folder)
  state.global_step = 1
  checkpointer.save('latest')
  checkpointer._is_written('latest')
  store.disturb(kind, 60)
  state.global_step = 2
  checkpointer.save('latest')
  timer = threading.Timer(1, lambda: store.disturb(kind, 0))
  timer.start()
  checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  assert checkpoint_files.latest_step(f'{remote_folder}/latest') == 2
