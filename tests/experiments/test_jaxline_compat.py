"""Tests of what is put in the place of JAXline's own functions."""

import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys

import command_lib
import jax
from jaxline import experiment as jaxline_experiment
from jaxline import platform, utils
import numpy as np
import process_lib
import pytest

from experiments import experiment, trainer
from nfnets.errors import UserError

_ROOT = pathlib.Path(__file__).parents[2]
_OURS = '--config.experiment_kwargs.config.'
_ONE_DEVICE = '--xla_backend_optimization_level=0'
_SMALL = (
  '--config=experiments/configs/by_name.py:digits:small',
  f'{_OURS}image_size=16',
  f'{_OURS}eval_image_size=16',
)


def test_broadcast_puts_one_copy_on_each_device():
  n = jax.local_device_count()
  tree = {'a': np.arange(6.0).reshape(2, 3), 'b': 5}
  spread = utils.bcast_local_devices(tree)
  assert spread['a'].shape == (n, 2, 3) and spread['b'].shape == (n,)
  shards = spread['a'].addressable_shards
  assert {s.device for s in shards} == set(jax.local_devices())
  for shard in shards:
    np.testing.assert_array_equal(np.asarray(shard.data)[0], tree['a'])


def test_the_first_part_is_a_copy_that_outlives_its_source():
  spread = utils.bcast_local_devices({'a': np.arange(4.0)})
  first = utils.get_first(spread)
  add = jax.pmap(lambda x: x + 1, donate_argnums=0)
  add(spread['a'])
  np.testing.assert_array_equal(first['a'], np.arange(4.0))


def test_reading_the_first_part_runs_nothing_on_the_devices():
  # A shape of its own, for which nothing has been compiled before.
  spread = utils.bcast_local_devices(np.arange(91.0))
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event)
  )
  try:
    first = utils.get_first(spread)
  finally:
    jax.monitoring.clear_event_listeners()
  assert not [e for e in compiled if 'compile' in e or 'trace' in e]
  assert isinstance(first, np.ndarray)


def test_draws_do_not_follow_from_the_process(monkeypatch):
  """A device draws the same, whichever process it belongs to."""
  mode = 'unique_host_unique_device'
  first = utils.host_id_devices_for_rng(mode)
  monkeypatch.setattr(jax, 'process_index', lambda: 3)
  np.testing.assert_array_equal(utils.host_id_devices_for_rng(mode), first)
  # Where the devices of a host draw the same, hosts still differ.
  others = utils.host_id_devices_for_rng('unique_host_same_device')
  np.testing.assert_array_equal(others, 3)


class _Subclass(trainer.Experiment):
  pass


@pytest.mark.parametrize(
  'experiment_class, args, is_command',
  [
    (trainer.Experiment, (), True),
    (_Subclass, (), True),
    (trainer.Experiment, (lambda config, mode: None,), False),
    (jaxline_experiment.AbstractExperiment, (), False),
  ],
)
def test_the_launcher_runs_the_command_for_our_experiments(
  experiment_class, args, is_command, monkeypatch
):
  calls = []
  monkeypatch.setattr(
    experiment, 'main', lambda *args: calls.append(('command', args)) or 3
  )
  monkeypatch.setattr(
    trainer, '_main', lambda *args: calls.append(('JAXline', args))
  )
  status = platform.main(experiment_class, ['launch.py'], *args)
  if is_command:
    assert calls == [('command', (sys.argv, experiment_class))]
    assert status == 3
  else:
    assert calls == [('JAXline', (experiment_class, ['launch.py'], *args))]


def test_the_command_trains_with_a_subclass(run_command, tmp_path):
  class Experiment(trainer.Experiment):
    def __init__(self, *args, **kwargs):
      raise UserError('The subclass is here.')

  main = functools.partial(experiment.main, experiment_class=Experiment)
  result = run_command(
    '--config=digits:small', f'--checkpoint_dir={tmp_path}', main=main
  )
  assert (result.status, 'The subclass is here.' in result.log) == (1, True)


def test_a_missing_tpu_is_an_error_where_there_must_be_one(
  run_command, tmp_path
):
  result = run_command(
    *('--config=digits:small', '--jaxline_ensure_tpu'),
    f'--checkpoint_dir={tmp_path / "run"}',
  )
  assert result.status == 1
  assert 'There is no TPU, which --jaxline_ensure_tpu asks' in result.log
  assert not (tmp_path / 'run').exists()


@pytest.fixture
def launch():
  """Returns a function that starts the launcher: (*args) -> Popen."""
  launcher = _ROOT / 'examples' / 'jaxline_launcher.py'

  def start(*args):
    return subprocess.Popen(
      [sys.executable, launcher, *_SMALL, *args],
      cwd=_ROOT,
      env={**os.environ, 'PYTHONPATH': str(_ROOT), 'XLA_FLAGS': _ONE_DEVICE},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


def _finish(process):
  """Returns the last line of a process that should succeed."""
  output, log = process.communicate(timeout=900)
  assert process.returncode == 0, log
  return command_lib.read_json(output.splitlines()[-1])


@pytest.mark.slow
def test_the_launcher_stops_resumes_and_evaluates(
  launch, run_process, tmp_path
):
  folder = f'--config.checkpoint_dir={tmp_path / "launched"}'
  process = launch(folder, '--config.training_steps=5000')
  command_lib.wait_for_step(process)
  process.send_signal(signal.SIGTERM)
  stopped = _finish(process)
  assert stopped['stopped_by_sigterm'] and stopped['step'] < 5000
  steps = stopped['step'] + 3
  trained = _finish(launch(folder, f'--config.training_steps={steps}'))
  straight = run_process(
    *('--config=digits:small', '--image_size=16', '--eval_image_size=16'),
    f'--checkpoint_dir={tmp_path / "straight"}',
    f'--training_steps={steps}',
    XLA_FLAGS=_ONE_DEVICE,
  )
  assert straight.status == 0, straight.log
  for name in ('train_loss', 'test_loss', 'step'):
    assert trained[name] == straight.json[name]
  launched, expected = (
    command_lib.read_arrays(tmp_path / name, steps)
    for name in ('launched', 'straight')
  )
  assert launched.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(launched[name], value)
  with socket.create_server(('localhost', 0)) as server:
    address = f'localhost:{server.getsockname()[1]}'
  cluster = f'--coordinator_address={address}', '--num_processes=1'
  evaluated = _finish(
    launch(
      *(folder, '--jaxline_mode=eval', f'--config.training_steps={steps}'),
      *(*cluster, '--process_id=0'),
    )
  )
  assert evaluated['step'] == steps
  assert evaluated['eval_loss'] == trained['test_loss']
  both = _finish(
    launch(
      f'--config.checkpoint_dir={tmp_path / "both"}',
      '--jaxline_mode=train_eval_multithreaded',
      f'--config.training_steps={steps}',
    )
  )
  assert both['eval_loss'] == trained['test_loss']


@pytest.mark.slow
def test_jaxlines_own_tests_pass(tmp_path):
  # But for one that expects an error of an older JAX. They are for one device.
  code = f"""
import os, sys, pytest
os.chdir({str(tmp_path)!r})
sys.exit(pytest.main([
  '-p', 'experiments.jaxline_compat', '-k', 'not (TreePsum and testEmpty)',
  '--pyargs', 'jaxline.train_test', 'jaxline.utils_test']))
"""
  done = process_lib.run_python(code, XLA_FLAGS=_ONE_DEVICE)
  assert done.returncode == 0, done.stdout
  assert '42 passed' in done.stdout
