"""Tests of checkpoints, with a small experiment in place of a network."""

import collections
import os
import pathlib
import shutil
import threading
import time
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import checkpoints, jaxline_compat


class _State(NamedTuple):
  params: dict
  scale: np.ndarray


class _Experiment:
  """Has what the checkpointer asks of an experiment."""

  def __init__(self, seed=0, width=300):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((width, 40)).astype(np.float32)
    self.state = _State({'net/~/conv': {'w': w}, 'none': {}}, np.float32(seed))

  def snapshot_state(self):
    return {'train_state': jax.tree.map(np.array, self.state)}

  def abstract_snapshot(self):
    return jax.eval_shape(self.snapshot_state)

  def restore_from_snapshot(self, snapshot):
    self.state = snapshot['train_state']


def _config(folder, **settings):
  return ml_collections.ConfigDict(
    {
      'checkpoint_dir': str(folder),
      'max_checkpoints_to_keep': 2,
      'one_off_evaluate': False,
      'eval_wait_minutes': 0.02,
      'save_retry_minutes': 1.0,
      **settings,
    }
  )


def _checkpointer(folder, mode='train', experiment=None, step=0, **settings):
  checkpointer = checkpoints.OrbaxCheckpointer(
    _config(folder, **settings), mode
  )
  state = checkpointer.get_experiment_state('latest')
  state.experiment_module = experiment or _Experiment()
  state.global_step = step
  state.train_step_rng = jaxline_compat.bcast_local_devices(
    np.array([1, 2], np.uint32)
  )
  return checkpointer, state


def _save(folder, steps, experiment=None):
  checkpointer, state = _checkpointer(folder, experiment=experiment)
  for step in steps:
    state.global_step = step
    checkpointer.save('latest')
  checkpointer.close()


def _same(a, b):
  return all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_what_is_restored_is_what_was_saved(tmp_path):
  _save(tmp_path, [7], _Experiment(seed=1))
  checkpointer, state = _checkpointer(tmp_path)
  assert checkpointer.can_be_restored('latest')
  assert checkpointer.restore_path('latest') == str(tmp_path / 'latest' / '7')
  checkpointer.restore('latest')
  restored = state.experiment_module.state
  assert isinstance(restored, _State)
  assert _same(restored, _Experiment(seed=1).state)
  assert (state.global_step, type(state.global_step)) == (7, int)
  key = jaxline_compat.get_first(state.train_step_rng)
  assert key.tolist() == [1, 2]
  assert state.train_step_rng.shape[0] == jax.local_device_count()


def test_a_save_holds_what_was_there_when_it_was_called(tmp_path):
  experiment = _Experiment()
  wanted = jax.tree.map(np.array, experiment.state)
  checkpointer, _ = _checkpointer(tmp_path, experiment=experiment)
  checkpointer.save('latest')
  experiment.state.params['net/~/conv']['w'][:] = -1
  checkpointer.close()
  checkpointer, state = _checkpointer(tmp_path)
  checkpointer.restore('latest')
  assert _same(state.experiment_module.state, wanted)


def test_the_last_ones_are_kept(tmp_path):
  _save(tmp_path, [1, 2, 3, 4])
  assert sorted(os.listdir(tmp_path / 'latest')) == ['3', '4']


def test_series_are_apart(tmp_path):
  checkpointer, state = _checkpointer(tmp_path, step=3)
  best = checkpointer.get_experiment_state('best')
  best.__dict__.update(vars(state))
  best.best_eval_metric_value = 0.5
  best.best_model_eval_metric = 'eval_top_1_acc'
  checkpointer.save('best')
  checkpointer.close()
  checkpointer, _ = _checkpointer(tmp_path, mode='eval')
  assert not checkpointer.can_be_restored('latest')
  best = checkpointer.get_experiment_state('best')
  best.experiment_module = _Experiment(seed=5)
  checkpointer.restore('best')
  assert best.best_eval_metric_value == 0.5
  assert _same(best.experiment_module.state, _Experiment().state)


def test_saving_a_step_twice_is_harmless(tmp_path):
  _save(tmp_path, [3, 3])
  _save(tmp_path, [3])
  assert os.listdir(tmp_path / 'latest') == ['3']


def test_another_model_is_told_by_the_first_difference(tmp_path):
  _save(tmp_path, [3], _Experiment(width=299))
  checkpointer, _ = _checkpointer(tmp_path)
  with pytest.raises(checkpoints.CheckpointError) as error:
    checkpointer.restore('latest')
  message = str(error.value)
  assert str(tmp_path / 'latest' / '3') in message
  assert (
    'train_state.params.net/~/conv.w: float32[299, 40] in the checkpoint, '
    'float32[300, 40] in this experiment'
  ) in message


def _files(folder):
  return sorted(p for p in pathlib.Path(folder).rglob('*') if p.is_file())


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'delete'])
def test_damage_is_noticed_or_harmless(tmp_path, damage, capfd):
  _save(tmp_path / 'good', [3], _Experiment(seed=1))
  wanted = _Experiment(seed=1).state
  noticed = 0
  for file in _files(tmp_path / 'good'):
    folder = tmp_path / 'bad'
    shutil.copytree(tmp_path / 'good', folder)
    victim = folder / file.relative_to(tmp_path / 'good')
    content = bytearray(victim.read_bytes())
    if damage == 'delete':
      victim.unlink()
    else:
      if damage == 'flip':
        content[len(content) // 2] ^= 0x10
      else:
        del content[0 if damage == 'empty' else len(content) // 2 :]
      victim.write_bytes(content)
    checkpointer, state = _checkpointer(folder)
    try:
      if checkpointer.can_be_restored('latest'):
        checkpointer.restore('latest')
        assert _same(state.experiment_module.state, wanted), victim
    except checkpoints.CheckpointError as error:
      assert f'{folder}/latest/3 is damaged' in str(error)
      assert len(str(error)) < 1000
      noticed += 1
    shutil.rmtree(folder)
  assert noticed >= 3  # At least the data, its index and the metadata.
  assert 'Traceback' not in capfd.readouterr().err


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
  _save(tmp_path, [3])
  half = tmp_path / 'latest' / '5.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'latest' / '3', half)
  checkpointer, state = _checkpointer(tmp_path)
  checkpointer.restore('latest')
  assert state.global_step == 3
  state.global_step = 6
  checkpointer.save('latest')
  checkpointer.close()
  assert sorted(os.listdir(tmp_path / 'latest')) == ['3', '6']


def test_evaluation_waits_for_the_next_one_and_gives_up(tmp_path):
  _save(tmp_path, [3])
  checkpointer, _ = _checkpointer(tmp_path, mode='eval')
  assert checkpointer.restore_path('latest').endswith('latest/3')
  start = time.time()
  with pytest.raises(checkpoints.CheckpointError) as error:
    checkpointer.restore_path('latest')
  assert 1 < time.time() - start < 10
  assert f'No new checkpoint in {tmp_path}/latest for 0.02' in str(error.value)
  _save(tmp_path, [4])
  assert checkpointer.restore_path('latest').endswith('latest/4')


@pytest.mark.parametrize('one_off', [True, False])
def test_nothing_to_evaluate_is_said_at_once(tmp_path, one_off):
  folder = tmp_path if one_off else tmp_path / 'missing'
  checkpointer, _ = _checkpointer(
    folder, mode='eval', one_off_evaluate=one_off, eval_wait_minutes=60
  )
  start = time.time()
  with pytest.raises(checkpoints.CheckpointError, match='Train first'):
    checkpointer.check_folder()
    checkpointer.restore_path('latest')
  assert time.time() - start < 2
  assert not (tmp_path / 'missing').exists()


def test_evaluation_ends_with_the_training_it_waits_for(tmp_path):
  def check_training():
    raise ZeroDivisionError

  checkpointer = checkpoints.OrbaxCheckpointer(
    _config(tmp_path), 'eval', check_training
  )
  with pytest.raises(ZeroDivisionError):
    checkpointer.restore_path('latest')


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(checkpoints.CheckpointError) as error:
    _checkpointer(tmp_path / 'file' / 'run')
  assert f'Could not write a checkpoint to {tmp_path}/file/run' in str(
    error.value
  )


class _FullDisk:
  """Stands in for shutil.disk_usage; has no room while `full` is true."""

  def __init__(self):
    self.full = False

  def __call__(self, path):
    usage = collections.namedtuple('usage', 'total used free')
    return usage(10**12, 0, 100 if self.full else 10**12)


@pytest.fixture
def disk(monkeypatch):
  disk = _FullDisk()
  monkeypatch.setattr(shutil, 'disk_usage', disk)
  monkeypatch.setattr(checkpoints, '_RETRY_SECONDS', 0.1)
  return disk


def test_training_goes_on_while_the_disk_is_full(tmp_path, disk, caplog):
  checkpointer, state = _checkpointer(tmp_path)
  for step, full in ((1, False), (2, True), (3, True), (4, False)):
    disk.full, state.global_step = full, step
    checkpointer.save('latest')
  checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  assert sorted(os.listdir(tmp_path / 'latest')) == ['1', '4']
  (message, _) = [x for x in caplog.messages if 'is full' in x]
  assert str(tmp_path) in message
  assert '0.0 MiB are free' in message


def test_the_last_checkpoint_is_written_once_there_is_room(tmp_path, disk):
  checkpointer, state = _checkpointer(tmp_path, experiment=_Experiment(seed=3))
  disk.full, state.global_step = True, 5
  checkpointer.save('latest')
  timer = threading.Timer(0.5, lambda: setattr(disk, 'full', False))
  timer.start()
  checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  checkpointer, state = _checkpointer(tmp_path)
  checkpointer.restore('latest')
  assert _same(state.experiment_module.state, _Experiment(seed=3).state)


def test_a_disk_that_stays_full_is_an_error_and_nothing_is_lost(tmp_path, disk):
  _save(tmp_path, [3])
  checkpointer, state = _checkpointer(tmp_path, save_retry_minutes=0.01)
  disk.full, state.global_step = True, 5
  checkpointer.save('latest')
  with pytest.raises(checkpoints.CheckpointError, match='is full'):
    checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  assert os.listdir(tmp_path / 'latest') == ['3']


def test_a_failure_in_the_background_is_noticed_and_mended(
  tmp_path, disk, monkeypatch
):
  """As where a quota, which no one tells of beforehand, is used up."""
  write = ocp.StandardCheckpointHandler.async_save
  failures = [OSError(122, 'Disk quota exceeded')]

  async def fail_once(*args, **kwargs):
    if failures:
      raise failures.pop()
    return await write(*args, **kwargs)

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'async_save', fail_once)
  checkpointer, _ = _checkpointer(tmp_path, step=2)
  checkpointer.save('latest')
  checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  assert not failures
  assert os.listdir(tmp_path / 'latest') == ['2']
