"""Tests of checkpoints on a disk and in a bucket, of a small experiment."""

import os
import shutil
import threading
import time
import types
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import pytest

from experiments import checkpoints, jaxline_compat
from nfnets import paths
from nfnets.errors import UserError


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


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, tmp_path):
  if request.param == 'disk':
    return str(tmp_path)
  return request.getfixturevalue('remote_folder')


def _top_names(folder):
  return {name.split('/')[0] for name in paths.names(folder)}


def test_what_is_restored_is_what_was_saved_and_the_last_are_kept(folder):
  _save(folder, [1, 3, 7], _Experiment(seed=1))
  assert _top_names(f'{folder}/latest') == {'3', '7'}
  checkpointer, state = _checkpointer(folder)
  assert checkpointer.can_be_restored('latest')
  assert checkpointer.restore_path('latest') == f'{folder}/latest/7'
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
  with pytest.raises(UserError) as error:
    checkpointer.restore('latest')
  message = str(error.value)
  assert str(tmp_path / 'latest' / '3') in message
  assert (
    'train_state.params.net/~/conv.w: float32[299, 40] in the checkpoint, '
    'float32[300, 40] in this experiment'
  ) in message


@pytest.mark.parametrize(
  'folder',
  ['disk', pytest.param('bucket', marks=pytest.mark.slow)],
  indirect=True,
)
@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'delete'])
def test_damage_is_noticed_or_harmless(folder, damage, capfd):
  _save(folder, [3])
  path, noticed = f'{folder}/latest/3', 0
  for name in paths.names(path):
    content = paths.read_bytes(f'{path}/{name}')
    if not content:
      continue
    damaged, middle = bytearray(content), len(content) // 2
    if damage == 'flip':
      damaged[middle] ^= 0x10
    else:
      del damaged[middle if damage == 'cut' else 0 :]
    paths.write_bytes(f'{path}/{name}', bytes(damaged))
    if damage == 'delete':
      paths.remove(f'{path}/{name}')
    checkpointer, state = _checkpointer(folder, experiment=_Experiment(seed=1))
    try:
      if checkpointer.can_be_restored('latest'):
        checkpointer.restore('latest')
        assert _same(state.experiment_module.state, _Experiment().state), name
    except UserError as error:
      assert f'{path} is damaged' in str(error)
      assert len(str(error)) < 1000
      noticed += 1
    paths.write_bytes(f'{path}/{name}', content)
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
  with pytest.raises(UserError) as error:
    checkpointer.restore_path('latest')
  assert 1 < time.time() - start < 60
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
  with pytest.raises(UserError, match='Train first'):
    checkpointer.check_folder()
    checkpointer.restore_path('latest')
  assert time.time() - start < 60
  assert not (tmp_path / 'missing').exists()


def test_evaluation_ends_with_the_training_it_waits_for(tmp_path):
  def check_training():
    raise ZeroDivisionError

  checkpointer = checkpoints.OrbaxCheckpointer(
    _config(tmp_path), 'eval', check_training
  )
  with pytest.raises(ZeroDivisionError):
    checkpointer.restore_path('latest')


@pytest.fixture
def disk(monkeypatch):
  """A disk that has no room while `full` is set."""
  disk, usage = types.SimpleNamespace(full=False), shutil.disk_usage('/')
  monkeypatch.setattr(
    shutil,
    'disk_usage',
    lambda _: usage._replace(free=100 if disk.full else 10**12),
  )
  monkeypatch.setattr(checkpoints, '_RETRY_SECONDS', 0.1)
  return disk


def test_training_goes_on_while_the_disk_is_full(tmp_path, disk, caplog):
  checkpointer, state = _checkpointer(tmp_path)
  for step, full in ((1, False), (2, True), (3, True), (4, False)):
    disk.full, state.global_step = full, step
    checkpointer.save('latest')
    checkpointer.close()
  checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  assert sorted(os.listdir(tmp_path / 'latest')) == ['1', '4']
  (message, _) = [x for x in caplog.messages if 'is full' in x]
  assert str(tmp_path) in message
  assert '0.0 MiB are free' in message


def test_a_disk_that_stays_full_is_an_error_and_nothing_is_lost(tmp_path, disk):
  _save(tmp_path, [3])
  checkpointer, state = _checkpointer(tmp_path, save_retry_minutes=0.01)
  disk.full, state.global_step = True, 5
  checkpointer.save('latest')
  with pytest.raises(UserError, match='is full'):
    checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  assert os.listdir(tmp_path / 'latest') == ['3']


def test_a_step_without_its_last_file_is_none(remote_folder):
  _save(remote_folder, [3, 5])
  paths.remove(f'{remote_folder}/latest/5/commit_success.txt')
  assert checkpoints.latest_step(f'{remote_folder}/latest') == 3
  _save(remote_folder, [6])
  assert _top_names(f'{remote_folder}/latest') == {'3', '6'}


@pytest.mark.parametrize('kind', ['forbidden', 'lost'])
def test_training_goes_on_while_the_store_fails(
  store, remote_folder, monkeypatch, kind, caplog
):
  monkeypatch.setattr(checkpoints, '_RETRY_SECONDS', 0.1)
  checkpointer, state = _checkpointer(remote_folder)
  state.global_step = 1
  checkpointer.save('latest')
  checkpointer._is_written()
  store.disturb(kind, 60)
  state.global_step = 2
  checkpointer.save('latest')
  timer = threading.Timer(1, lambda: store.disturb(kind, 0))
  timer.start()
  checkpointer.wait_for_checkpointing_to_finish()
  checkpointer.close()
  assert checkpoints.latest_step(f'{remote_folder}/latest') == 2


def test_a_checkpoint_is_left_out_while_the_one_before_is_written(
  tmp_path, monkeypatch, caplog
):
  go_on = threading.Event()
  write = checkpoints.write

  def write_slowly(folder, step, tree, keep):
    if step == 1:
      go_on.wait()
    write(folder, step, tree, keep)

  monkeypatch.setattr(checkpoints, 'write', write_slowly)
  monkeypatch.setattr(checkpoints, '_PATIENCE_SECONDS', 0.1)
  monkeypatch.setattr(checkpoints, '_RETRY_SECONDS', 0.1)
  checkpointer, state = _checkpointer(tmp_path)
  for state.global_step in (1, 2, 3):
    checkpointer.save('latest')
  go_on.set()
  checkpointer.wait_for_checkpointing_to_finish()
  assert checkpoints.latest_step(tmp_path / 'latest') == 3
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
