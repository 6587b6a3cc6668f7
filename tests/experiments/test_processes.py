"""Tests of what processes of a run say when they have lost one another."""

import pathlib
import signal
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Joins the others and waits, as one that compiles does.
_PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from absl import flags
from experiments import processes
flags.FLAGS(sys.argv)
processes._HEARTBEAT_TIMEOUT = 3
processes._JOIN_TIMEOUT = 5
processes.join()
print('joined', flush=True)
end = time.time() + 60
while time.time() < end:
  time.sleep(0.01)
"""


def _start(count, numbers):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', _PROGRAM, str(_ROOT)),
        f'--coordinator_address={address}',
        f'--num_processes={count}',
        f'--process_id={number}',
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in numbers
  ]
  return address, processes


def _last_line(process) -> str:
  log = process.communicate(timeout=30)[1]
  assert process.returncode == 1, log
  assert 'stack trace' not in log
  return log.splitlines()[-1]


@pytest.mark.parametrize(
  ('lost', 'number'), [(0, 'SIGKILL'), (0, 'SIGSTOP'), (1, 'SIGSTOP')]
)
def test_the_last_line_says_who_is_lost(lost, number):
  address, processes = _start(2, (0, 1))
  for process in processes:
    while 'joined' not in process.stdout.readline():
      assert process.poll() is None, process.communicate()
  processes[lost].send_signal(signal.Signals[number])
  try:
    line = _last_line(processes[1 - lost])
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  whom = {
    (0, 'SIGKILL'): f'process 0, at {address},',
    (0, 'SIGSTOP'): 'process 0, or another that process 0 names,',
  }.get((lost, number), 'another, which was silent for 3 s,')
  assert line.startswith(f'error: process {1 - lost} of 2 has lost {whom} ')


def test_a_process_that_stays_alone_says_so():
  alone = [(number, *_start(2, [number])) for number in (0, 1)]
  for number, address, [process] in alone:
    assert _last_line(process) == (
      f'error: process {number} of 2 has not found all the others at '
      f'{address}, which is process 0, within 5 s.'
    )
