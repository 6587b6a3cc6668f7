"""Settings and fixtures of the tests that train."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

# Compiling is most of what these tests wait for.
_FLAGS = '--xla_backend_optimization_level=0'
# Before JAX starts: several devices on one CPU.
os.environ['XLA_FLAGS'] = (
  f'{_FLAGS} --xla_force_host_platform_device_count=4 '
  + os.environ.get('XLA_FLAGS', '')
)

_COMMAND = pathlib.Path(__file__).parents[2] / 'experiments' / 'experiment.py'


class Result:
  """What a run of the command left.

  Attributes:
    status: its exit status.
    log: standard error.
    output: standard output.
  """

  def __init__(self, status: int, output: str, log: str):
    self.status, self.output, self.log = status, output, log

  @property
  def json(self) -> dict:
    """The last line of standard output."""
    return json.loads(self.output.splitlines()[-1])


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
  """A TFDS data directory of these tests alone."""
  return str(tmp_path_factory.mktemp('tensorflow_datasets'))


@pytest.fixture(scope='session')
def start_command(data_dir):
  """Returns a function: (*args, devices=1, **environment) -> Popen."""

  def start(*args: str, devices: int = 1, **environment) -> subprocess.Popen:
    env = {
      **os.environ,
      **environment,
      'TFDS_DATA_DIR': data_dir,
      'XLA_FLAGS': f'{_FLAGS} --xla_force_host_platform_device_count={devices}',
    }
    return subprocess.Popen(
      [sys.executable, str(_COMMAND), *args],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


@pytest.fixture(scope='session')
def run_command(start_command):
  """Returns a function that runs the command: (*args, devices=1) -> Result."""

  def run(*args: str, devices: int = 1) -> Result:
    process = start_command(*args, devices=devices)
    output, log = process.communicate(timeout=300)
    return Result(process.returncode, output, log)

  return run
