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
from experiments import hosts
hosts._HEARTBEAT_TIMEOUT = 10
hosts._JOIN_TIMEOUT = int(sys.argv.pop(1))
hosts.join(
  coordinator_address=sys.argv[1],
  num_processes=int(sys.argv[2]),
  process_id=int(sys.argv[3]),
)
print('joined', flush=True)
end = time.time() + 200
while time.time() < end:
  time.sleep(0.01)
"""


def _start(numbers, join_seconds):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', _PROGRAM, str(_ROOT), str(join_seconds)),
        *(address, '2', str(number)),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in numbers
  ]
  return processes


def _last_line(process) -> str:
  log = process.communicate(timeout=300)[1]
  assert process.returncode not in (0, 2), log
  return log.splitlines()[-1]


@pytest.mark.parametrize(
  ('lost', 'number'), [(0, 'SIGKILL'), (0, 'SIGSTOP'), (1, 'SIGSTOP')]
)
def test_the_last_line_says_what_to_do(lost, number):
  processes = _start((0, 1), 100)
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
  assert line.startswith('error: this process has lost or ')
  assert 'Start all of them again to go on from the last checkpoint' in line


def test_a_process_that_stays_alone_says_so():
  alone = [_start([number], 5)[0] for number in (0, 1)]
  for process in alone:
    assert 'Start all of them again' in _last_line(process)
