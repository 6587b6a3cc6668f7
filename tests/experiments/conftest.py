"""Fixtures of the tests that train."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import command_lib
import jax
import pytest

from experiments import command_line, experiment

_DEVICES = '--xla_force_host_platform_device_count'
_COMMAND = pathlib.Path(__file__).parents[2] / 'experiments' / 'experiment.py'


class Result:
  """What a run of a command left.

  Attributes:
    status: its exit status.
    output: standard output.
    log: standard error.
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


def _in_no_cluster(**_):
  raise ValueError('coordinator_address should be defined.')


@pytest.fixture(scope='session')
def run_command(data_dir):
  """Returns a function that runs a command in this process: (*args) -> Result.

  `main` is another command than the experiment's, `cwd` the folder to be in,
  and `log` what standard error is.
  """

  def run(*args: str, main=experiment.main, cwd='.', log=None) -> Result:
    argv = ['experiments/experiment.py', *args]
    if not any(arg.startswith('--data_dir=') for arg in args):
      argv.append(f'--data_dir={data_dir}')
    output, log = io.StringIO(), log or io.StringIO()
    command_lib.forget_flags()
    with (
      contextlib.redirect_stdout(output),
      contextlib.redirect_stderr(log),
      contextlib.chdir(cwd),
      # Other tests have used JAX by now, after which none can be joined.
      mock.patch.object(jax.distributed, 'initialize', _in_no_cluster),
      mock.patch.object(sys, 'excepthook', sys.excepthook),
    ):
      status = main(argv)
    command_lib.forget_flags()
    jax.config.update('jax_disable_most_optimizations', False)
    return Result(status, output.getvalue(), log.getvalue())

  return run


@pytest.fixture(scope='session')
def start_command(data_dir):
  """Returns a function: (*args, devices=1, **environment) -> Popen."""

  def start(*args: str, devices: int = 1, **environment) -> subprocess.Popen:
    env = {
      **os.environ,
      **environment,
      'TFDS_DATA_DIR': data_dir,
      # Of a flag that is there twice, the last counts.
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {_DEVICES}={devices}',
    }
    process = subprocess.Popen(
      [sys.executable, str(_COMMAND), *args],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    _started.append(process)
    return process

  return start


# Processes of tests, ended or not.
_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_goes_on():
  """Ends what a test that failed has left running."""
  yield
  while _started:
    process = _started.pop()
    if process.poll() is None:
      process.kill()
      process.communicate()


@pytest.fixture(scope='session')
def run_process(start_command):
  """Returns a function that runs the command in a process of its own."""

  def run(*args: str, devices: int = 1, **environment) -> Result:
    process = start_command(*args, devices=devices, **environment)
    output, log = process.communicate(timeout=300)
    return Result(process.returncode, output, log)

  return run


@pytest.fixture(scope='session')
def straight(run_command, tmp_path_factory):
  """A run of six steps without a stop: (its folder, its Result)."""
  folder = tmp_path_factory.mktemp('straight run')
  result = run_command(
    *command_lib.SMALL, f'--checkpoint_dir={folder}', '--training_steps=6'
  )
  assert result.status == 0, result.log
  return folder, result


@pytest.fixture(scope='session')
def evaluated(straight, run_command):
  """The Result of evaluating that run."""
  result = run_command(
    *command_lib.SMALL,
    f'--checkpoint_dir={straight[0]}',
    '--training_steps=6',
    '--jaxline_mode=eval',
  )
  assert result.status == 0, result.log
  return result


@pytest.fixture
def parse():
  """Returns a function that reads a command line: (*args) -> (name, config)."""

  def parse_args(*args: str):
    command_lib.forget_flags()
    return command_line.parse(['experiment.py', *args])

  yield parse_args
  command_lib.forget_flags()
