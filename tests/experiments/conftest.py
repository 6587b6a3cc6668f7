"""Fixtures of the tests that train."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

from absl import logging
import command_lib
import filelock
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
    return command_lib.read_json(self.output.splitlines()[-1])


@pytest.fixture(autouse=True)
def restore_verbosity():
  """Commands have absl log what they do, and other tests count lines."""
  yield
  logging.set_verbosity(logging.WARNING)


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
  """A TFDS data directory of these tests alone."""
  return str(tmp_path_factory.mktemp('tensorflow_datasets'))


def _in_no_cluster(**_):
  raise ValueError('coordinator_address should be defined.')


@pytest.fixture(scope='session')
def run_command(data_dir):
  """Returns a function that runs a command in this process: (*args) -> Result.

  `main` is another command than the experiment's; `cwd` the folder to be in.
  """

  def run(*args: str, main=experiment.main, cwd='.') -> Result:
    argv = ['experiments/experiment.py', *args]
    if not any(arg.startswith('--data_dir=') for arg in args):
      argv.append(f'--data_dir={data_dir}')
    output, log = io.StringIO(), io.StringIO()
    with (
      contextlib.redirect_stdout(output),
      contextlib.redirect_stderr(log),
      contextlib.chdir(cwd),
      # Other tests have used JAX by now, after which none can be joined.
      mock.patch.object(jax.distributed, 'initialize', _in_no_cluster),
      mock.patch.object(sys, 'excepthook', sys.excepthook),
    ):
      try:
        status = main(argv)
      except SystemExit as error:  # Of argparse.
        status = error.code
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
    output, log = process.communicate(timeout=900)
    return Result(process.returncode, output, log)

  return run


@pytest.fixture(scope='session')
def run_once(run_command, tmp_path_factory):
  """Returns a function that makes a run for all of xdist's processes.

  It takes the name of the run, the command's arguments and a folder to begin
  with, and returns the run's folder and Result, which no test may change.
  """
  root = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent

  def run(name, *args, begin_with=None):
    folder, record = root / name, root / f'{name}.json'
    with filelock.FileLock(root / f'{name}.lock'):
      if not record.exists():
        if begin_with is not None:
          shutil.copytree(begin_with, folder)
        result = run_command(*args, f'--checkpoint_dir={folder}')
        assert result.status == 0, result.log
        record.write_text(json.dumps(vars(result)))
      return folder, Result(**json.loads(record.read_text()))

  return run


_SIX_STEPS = (*command_lib.SMALL, '--training_steps=6')


@pytest.fixture(scope='session')
def straight(run_once):
  """A run of six steps without a stop: (its folder, its Result)."""
  return run_once('straight', *_SIX_STEPS)


@pytest.fixture(scope='session')
def evaluated(straight, run_once):
  """A copy of that run after its evaluation: (its folder, the Result)."""
  args = (*_SIX_STEPS, '--jaxline_mode=eval')
  return run_once('evaluated', *args, begin_with=straight[0])


@pytest.fixture
def parse():
  """Returns a function that reads a command line: (*args) -> (name, config)."""

  def parse_args(*args: str):
    return command_line.parse(['experiment.py', *args])

  return parse_args
