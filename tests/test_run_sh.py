"""run.sh with an interpreter whose venv and pip only leave traces."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

from packaging import requirements, utils
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
_PYTEST = 'pytest -n 2 --dist=loadfile'

# Runs `-c` code as a Python of another version would, and stands in for
# `-m venv`, `-m ensurepip`, `-m pip` and every program that run.sh starts.
FAKE_PYTHON = f"""#!{sys.executable} -S
import os, pathlib, sys, time, types
fake = os.environ['FAKE']
bin_dir = pathlib.Path(sys.argv[0]).parent
kind, what, *args = sys.argv[1:]
failing = os.environ.get('FAKE_FAILING', '').split(':', 1)
if kind == '-c':
  made = bin_dir / 'version'
  version = made.read_text() if made.exists() else os.environ['FAKE_VERSION']
  sys.version_info = tuple(map(int, version.split('.')))
  sys._base_executable = fake
  has_pip = (bin_dir / 'pip').exists()
  sys.modules['pip'] = types.ModuleType('pip') if has_pip else None
  if 'FAKE_NO_ENSUREPIP' in os.environ:
    sys.modules['ensurepip'] = None
  exec(what)
elif kind == '-m' and what == 'venv':
  new_bin = pathlib.Path(args[-1]) / 'bin'
  new_bin.mkdir()
  (new_bin / 'python').symlink_to(fake)
  (new_bin / 'version').write_text(os.environ['FAKE_VERSION'])
elif kind == '-m' and what == 'ensurepip':
  (bin_dir / 'pip').touch()
else:
  with open(os.environ['FAKE_CALLS'], 'a') as f:
    f.write(' '.join(sys.argv[2:]) + '\\n')
  if what == 'pip':
    time.sleep(float(os.environ.get('FAKE_SECONDS', 0)))
  if os.environ.get('PYTHONPATH'):
    sys.exit('PYTHONPATH leaks in')
  if failing[0] in (what, args[-1] if args else ''):
    sys.exit(failing[1])
"""

NO_NETWORK = """\
WARNING: Retrying (Retry(total=0)) after connection broken by \
'NewConnectionError(Failed to establish a new connection: [Errno -3])'
ERROR: Could not find a version that satisfies the requirement setuptools
ERROR: No matching distribution found for setuptools"""


class Checkout:
  """A copy of run.sh and what it reads, in a folder with a space in it."""

  def __init__(self, folder):
    self.root = folder / 'a checkout'
    self.root.mkdir()
    for name in (
      'run.sh',
      'requirements.txt',
      'requirements-dev.txt',
      'pyproject.toml',
    ):
      shutil.copy(ROOT / name, self.root / name)
    self.venv = self.root / '.venv'
    self.stamp = self.venv / 'run.sh.stamp'
    self.calls = folder / 'calls'
    self.fake = folder / 'python3'
    self.fake.write_text(FAKE_PYTHON)
    self.fake.chmod(0o755)
    self.env = os.environ | {
      'PYTHON': str(self.fake),
      'FAKE': str(self.fake),
      'FAKE_VERSION': '3.11',
      'FAKE_CALLS': str(self.calls),
      'PYTHONPATH': 'somewhere',
    }

  def start(self, *args, **env):
    return subprocess.Popen(
      [self.root / 'run.sh', *args],
      cwd='/',
      env=self.env | env,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, *args, **env):
    """Returns the exit status, standard error and the calls that were made."""
    self.calls.write_text('')
    process = self.start(*args, **env)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, self.calls.read_text().splitlines()

  def fails(self, *args, **env):
    """Returns the error message of a run that must fail; it is one line."""
    status, stderr, _ = self.run(*args, **env)
    errors = [line for line in stderr.splitlines() if 'error' in line]
    assert status == 1, stderr
    assert len(errors) == 1 and stderr.splitlines()[-1] == errors[0], stderr
    return errors[0]


@pytest.fixture
def checkout(tmp_path):
  return Checkout(tmp_path)


def test_unknown_command_is_named_and_exits_2(checkout):
  status, stderr, _ = checkout.run('tests')
  assert status == 2
  assert "unknown command 'tests'" in stderr and 'usage:' in stderr
  assert not checkout.venv.exists()


def test_setup_refuses_arguments(checkout):
  status, stderr, _ = checkout.run('setup', '--fast')
  assert status == 2 and '--fast' in stderr


def test_help_goes_to_standard_output(checkout):
  process = checkout.start('help')
  stdout, stderr = process.communicate(timeout=60)
  assert process.returncode == 0 and stdout.startswith('usage:') and not stderr


@pytest.mark.parametrize('version', ['2.7', '3.10', '3.14'])
def test_unsuitable_python_is_named_with_its_version(checkout, version):
  message = checkout.fails('setup', FAKE_VERSION=version)
  assert f'{checkout.fake} is Python {version}, but 3.11, 3.12' in message
  assert not checkout.venv.exists()


def test_missing_python_is_reported(checkout, tmp_path):
  tools = tmp_path / 'tools'
  tools.mkdir()
  for tool in ('bash', 'cksum', 'dirname', 'env', 'grep'):
    (tools / tool).symlink_to(shutil.which(tool))
  message = checkout.fails('setup', PYTHON='', PATH=str(tools))
  assert 'no Python was found; install 3.11, 3.12 or 3.13' in message
  message = checkout.fails('setup', PYTHON='/no/python')
  assert 'PYTHON=/no/python does not run' in message


def test_python_without_ensurepip_is_reported_with_the_package(checkout):
  message = checkout.fails('setup', FAKE_NO_ENSUREPIP='1')
  assert 'lacks the module venv or ensurepip' in message
  assert 'apt install python3.11-venv' in message


@pytest.mark.parametrize(
  ('pip_says', 'message'),
  [
    (NO_NETWORK, 'pip cannot reach its package index'),
    ('ERROR: [Errno 28] No space left on device', 'no space left on the disk'),
    ('ERROR: No matching distribution found for a==1', 'pip finds no a==1 for'),
    ('Hm.\nERROR: Cannot do it.\nBye.', 'ERROR: Cannot do it.'),
  ],
)
def test_failure_of_pip_is_explained_and_the_next_run_recovers(
  checkout, pip_says, message
):
  error = checkout.fails('setup', FAKE_FAILING='pip:' + pip_says)
  log = checkout.venv / 'setup.log'
  assert message in error and f'run ./run.sh again (log: {log})' in error
  assert pip_says in log.read_text()
  status, _, calls = checkout.run('setup')
  assert status == 0 and any('requirements.txt' in call for call in calls)


def test_smoke_test_runs_with_the_arguments_after_the_installation(checkout):
  status, stderr, calls = checkout.run('--steps=2', 'x')
  assert status == 0, stderr
  assert re.search(r'install .* setuptools==[\d.]+$', calls[0])
  assert calls[1].endswith(f'-r {checkout.root}/requirements.txt')
  assert calls[2].endswith(f'--no-deps -e {checkout.root}')
  assert calls[3:] == ['--steps=2 x']


def test_second_run_installs_nothing(checkout):
  checkout.run('setup')
  assert checkout.run('setup') == (0, '', [])
  assert checkout.run('setup', PYTHON='') == (0, '', [])


@pytest.mark.parametrize(
  ('name', 'installs'),
  [
    ('requirements.txt', 4),
    ('pyproject.toml', 1),
    ('requirements-dev.txt', 1),
  ],
)
def test_changed_file_is_installed_again(checkout, name, installs):
  checkout.run('test')
  with open(checkout.root / name, 'a') as f:
    f.write('# Changed.\n')
  _, _, calls = checkout.run('test')
  assert sum(call.startswith('pip') for call in calls) == installs
  _, _, calls = checkout.run('test')
  assert not any(call.startswith('pip') for call in calls)


@pytest.mark.parametrize('damage', ['killed', 'no pip', 'no python', 'moved'])
def test_damaged_environment_is_made_again(checkout, damage):
  checkout.run('setup')
  leftover = checkout.venv / 'leftover'
  leftover.touch()
  if damage == 'killed':
    checkout.stamp.write_text('')
  elif damage == 'no pip':
    (checkout.venv / 'bin' / 'pip').unlink()
  elif damage == 'no python':
    (checkout.venv / 'bin' / 'python').unlink()
    (checkout.venv / 'bin' / 'python').symlink_to('/no/python')
  elif damage == 'moved':
    moved = checkout.root.with_name('moved')
    checkout.root.rename(moved)
    checkout.root = moved
    leftover = moved / '.venv' / 'leftover'
  status, _, calls = checkout.run('setup')
  assert status == 0 and len(calls) == 3
  assert not leftover.exists()


def test_chosen_python_of_another_version_makes_the_environment_again(checkout):
  checkout.run('setup')
  assert checkout.run('setup', FAKE_VERSION='3.12', PYTHON='') == (0, '', [])
  _, _, calls = checkout.run('setup', FAKE_VERSION='3.12')
  assert len(calls) == 3
  assert 'python 3.12' in checkout.stamp.read_text()


@pytest.mark.parametrize('name', ['requirements.txt', 'requirements-dev.txt'])
def test_environment_of_a_killed_run_is_made_again(checkout, name):
  checkout.run('test')
  with open(checkout.root / name, 'a') as f:
    f.write('# Changed.\n')
  checkout.calls.write_text('')
  process = checkout.start('test', FAKE_SECONDS='60')
  while not checkout.calls.read_text():
    assert process.poll() is None
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate(timeout=60)
  _, stderr, calls = checkout.run('test')
  assert 'removing .venv, which is unfinished' in stderr
  assert sum(call.startswith('pip') for call in calls) == 4


def test_environment_of_someone_else_is_kept(checkout):
  checkout.venv.mkdir()
  (checkout.venv / 'precious').touch()
  status, stderr, _ = checkout.run('setup')
  assert status == 0 and '.venv.old' in stderr
  assert (checkout.root / '.venv.old' / 'precious').exists()


def test_missing_test_tools_do_not_spoil_the_environment(checkout):
  checkout.run('setup')
  dev = f'{checkout.root}/requirements-dev.txt'
  message = checkout.fails('test', FAKE_FAILING=f'{dev}:{NO_NETWORK}')
  assert 'cannot reach' in message
  assert checkout.run('setup') == (0, '', [])


def test_concurrent_runs_install_once(checkout):
  checkout.calls.touch()
  processes = [checkout.start('setup', FAKE_SECONDS='0.5') for _ in range(3)]
  errors = [process.communicate(timeout=60)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0, 0], errors
  assert len(checkout.calls.read_text().splitlines()) == 3
  assert 'waiting for' in ''.join(errors)


def test_test_command_runs_everything_and_passes_arguments_on(checkout):
  checkout.run('test')
  status, _, calls = checkout.run('test', '-k', 'agc')
  assert status == 0
  assert calls == ['ruff check .', 'ruff format --check .', f'{_PYTEST} -k agc']


@pytest.mark.parametrize('failing', ['ruff', 'pytest'])
def test_test_command_fails_when_a_check_fails(checkout, failing):
  checkout.run('test')
  status, _, calls = checkout.run('test', FAKE_FAILING=f'{failing}:no')
  assert status == 1
  assert calls[-1] == _PYTEST


def read_pins(*names):
  """The versions that requirements files pin, by canonical package name."""
  pins = {}
  for name in names:
    for line in (ROOT / name).read_text().splitlines():
      if line and not line.startswith('#'):
        requirement = requirements.Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == '==', line
        pins[utils.canonicalize_name(requirement.name)] = specifier.version
  return pins


def test_pins_lie_in_the_ranges_of_pyproject():
  pins = read_pins('requirements.txt', 'requirements-dev.txt')
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  lines = project['dependencies'][:]
  for extra in ('train', 'onnx', 'test'):
    lines += extras[extra]
  for line in lines:
    requirement = requirements.Requirement(line)
    name = utils.canonicalize_name(requirement.name)
    assert name in pins, f'{name} is not pinned'
    assert pins[name] in requirement.specifier, f'{line}: {pins[name]}'
