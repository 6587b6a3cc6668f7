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


@pytest.mark.slow
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


def test_a_checkpoint_is_left_out_while_the_one_before_is_written(
  tmp_path, monkeypatch, caplog
):
  go_on = threading.Event()
  write = checkpoint_files.write

  def write_slowly(folder, step, tree, keep):
    if step == 1:
      go_on.wait()
    write(folder, step, tree, keep)

  monkeypatch.setattr(checkpoint_files, 'write', write_slowly)
  monkeypatch.setattr(checkpoints, '_PATIENCE_SECONDS', 0.1)
  monkeypatch.setattr(checkpoints, '_RETRY_SECONDS', 0.1)
  checkpointer, state = _checkpointer(tmp_path)
  for state.global_step in (1, 2, 3):
    checkpointer.save('latest')
  go_on.set()
  checkpointer.wait_for_checkpointing_to_finish()
  assert checkpoint_files.latest_step(tmp_path / 'latest') == 3
  left_out = [x for x in caplog.messages if 'is not written' in x]
  assert [x.split(' is not')[0] for x in left_out] == ['Step 2', 'Step 3']


def test_evaluation_goes_on_waiting_when_the_store_fails(
  store, remote_folder, caplog
):
  _save(remote_folder, [3])
  checkpointer, _ = _checkpointer(
    remote_folder, mode='eval', eval_wait_minutes=1
  )
  store.disturb('forbidden', 1)
  assert checkpointer.restore_path('latest') == f'{remote_folder}/latest/3'
  assert 'Trying again' in caplog.text
