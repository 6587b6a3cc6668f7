"""Tests of runs that are told to end, killed, or spread over several hosts."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import command_lib
import numpy as np
import orbax.checkpoint as ocp
import pytest

_SMALL = command_lib.SMALL


def _folder(path):
  return f'--checkpoint_dir={path}'


def _steps(n):
  return f'--training_steps={n}'


@pytest.mark.slow
def test_sigterm_saves_and_ends(start_command, tmp_path):
  args = (*_SMALL, _folder(tmp_path), _steps(100_000))
  process = start_command(*args, devices=4)
  command_lib.wait_for_step(process)
  process.send_signal(signal.SIGTERM)
  output, log = process.communicate(timeout=300)
  assert process.returncode == 0, log
  last = json.loads(output.splitlines()[-1])
  assert last['stopped_by_sigterm']
  assert f'Stopped at step {last["step"]} after ' in log
  steps = ocp.utils.checkpoint_steps(tmp_path / 'latest')
  assert max(steps) == last['step'] < 100_000


_LISTEN = """
import hashlib
import time
from experiments import hosts
with hosts.Notice() as notice:
  print('ready', flush=True)
  while not notice.is_set():
    time.sleep(0.01)
  print('interrupt' if notice.is_interrupt else 'term', flush=True)
  input()
  hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
"""


@pytest.mark.parametrize(
  ('number', 'word', 'status'),
  [(signal.SIGINT, 'interrupt', 130), (signal.SIGTERM, 'term', 143)],
)
def test_two_signals_within_a_second_are_one(number, word, status):
  """As `timeout` sends two; a later one ends even a long call into C."""
  with subprocess.Popen(
    [sys.executable, '-c', _LISTEN],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    assert process.stdout.readline() == f'{word}\n'
    process.send_signal(number)
    process.stdin.write('\n')
    process.stdin.flush()
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(30) == status


@pytest.mark.slow
def test_ctrl_c_saves_and_ends(start_command, tmp_path):
  args = (*_SMALL, _folder(tmp_path), _steps(100_000))
  process = start_command(*args, '--save_checkpoint_interval=100000')
  command_lib.wait_for_step(process)
  process.send_signal(signal.SIGINT)
  output, log = process.communicate(timeout=300)
  assert process.returncode == 130, log
  last = json.loads(output.splitlines()[-1])
  assert last['interrupted'] and not last['stopped_by_sigterm']
  step = last['step']
  assert f'Saved: step {step} in {tmp_path}/latest' in log.splitlines()
  assert ocp.utils.checkpoint_steps(tmp_path / 'latest') == [step]
  assert 'results' not in json.loads((tmp_path / 'run.json').read_text())


@pytest.mark.slow
def test_ctrl_c_claims_no_checkpoint_that_is_not_there(start_command, tmp_path):
  process = start_command(*_SMALL, _folder(tmp_path), '--jaxline_mode=eval')
  for line in process.stderr:
    if 'waiting since' in line:
      break
  process.send_signal(signal.SIGINT)
  log = process.communicate(timeout=300)[1]
  assert process.returncode == 130
  assert log.splitlines()[-1] == 'error: interrupted'


_KILLED = (
  *_SMALL,
  '--save_checkpoint_interval=1',
  '--augment_name=cutmix_mixup_0.4_randaugment_405',
  '--model_kwargs.drop_rate=0.3',
  '--model_kwargs.stochdepth_rate=0.2',
  '--num_epochs=5.0',
)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(
  start_command, run_process, tmp_path
):
  """SIGKILL at random moments; NFNETS_TEST_KILLS sets how many."""
  last_step, generator, step = 60, random.Random(0), 0
  args = (*_KILLED, _folder(tmp_path / 'killed'), _steps(last_step))
  for _ in range(int(os.environ.get('NFNETS_TEST_KILLS', '2'))):
    process = start_command(*args)
    # Until it trains, and then a random while, often within a save.
    command_lib.wait_for_step(process)
    time.sleep(generator.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    log = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, log
    steps = ocp.utils.checkpoint_steps(tmp_path / 'killed' / 'latest')
    assert step <= max(steps) < last_step
    step = max(steps)
  killed = run_process(*args)
  assert killed.status == 0, killed.log
  assert f'Continuing from step {step} of' in killed.log
  straight = run_process(
    *_KILLED,
    _folder(tmp_path / 'straight'),
    _steps(last_step),
    f'--save_checkpoint_interval={last_step}',
  )
  for key in ('step', 'train_loss', 'grad_norm', 'top_1_acc', 'learning_rate'):
    assert killed.json[key] == straight.json[key]
  want, got = (
    command_lib.read_arrays(tmp_path / name, last_step)
    for name in ('straight', 'killed')
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
  results = [process.communicate(timeout=900) for process in processes]
  assert [p.returncode for p in processes] == [status] * len(processes), results
  # Gloo, which connects CPUs, writes to standard output as well.
  last = [output.splitlines()[-1] for output, _ in results]
  assert not any(line.startswith('{') for line in last[1:])
  return json.loads(last[0])


@pytest.mark.slow
def test_processes_and_devices_do_not_matter(start_command, tmp_path):
  results = {}
  for count, devices in ((1, 4), (2, 2)):
    folder = tmp_path / f'{count}x{devices}'
    args = (
      *_SMALL,
      _folder(folder),
      _steps(12),
      '--save_checkpoint_interval=12',
      '--augment_name=cutmix_mixup_randaugment_405',
    )
    if count == 1:
      processes = [start_command(*args, devices=devices)]
    else:
      processes = _start_two(start_command, *args, devices=devices)
    results[count, devices] = (
      _finish(processes),
      command_lib.read_arrays(folder, 12),
    )
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
  command_lib.wait_for_step(processes[0])
  processes[1].send_signal(signal.SIGTERM)
  stopped = _finish(processes)['step']
  assert max(ocp.utils.checkpoint_steps(tmp_path / 'latest')) == stopped

  processes = _start_two(start_command, *args)
  log = command_lib.wait_for_step(processes[0])
  assert f'Continuing from step {stopped} of' in log
  processes[1].send_signal(signal.SIGKILL)
  log = processes[0].communicate(timeout=300)[1]
  assert processes[0].returncode == 1
  assert 'process 0 of 2 has lost another' in log
  processes[1].communicate()

  step = max(ocp.utils.checkpoint_steps(tmp_path / 'latest'))
  assert step > stopped
  process = start_command(
    *_SMALL, _folder(tmp_path), _steps(step + 2), devices=2
  )
  assert _finish([process])['step'] == step + 2
