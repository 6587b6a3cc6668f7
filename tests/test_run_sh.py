"""run.sh with an interpreter whose venv and pip only leave traces."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import tomllib

from packaging import requirements, utils
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PINS = ('requirements.txt', 'requirements-dev.txt')
PYTEST = 'pytest -n 2 --dist=worksteal'
SLOW = 'slow and not exhaustive'

# Runs `-c` code as a Python of another version would, and stands in for
# `-m venv`, `-m pip` and every program that run.sh starts.
FAKE_PYTHON = f"""#!{sys.executable} -S
import os, pathlib, sys, time
bin_dir = pathlib.Path(sys.argv[0]).parent
kind, what, *args = (*sys.argv[1:], '')  # Some have one argument.
if kind == '-c':
  made = bin_dir / 'version'
  version = made.read_text() if made.exists() else os.environ['FAKE_VERSION']
  sys.version_info = tuple(map(int, version.split('.')))
  sys._base_executable = os.environ['FAKE']
  exec(what)
  sys.exit()
if kind == '-m' and what == 'venv':
  new_bin = pathlib.Path(args[0]) / 'bin'
  new_bin.mkdir()
  (new_bin / 'python').symlink_to(os.environ['FAKE'])
  (new_bin / 'version').write_text(os.environ['FAKE_VERSION'])
  sys.exit()
with open(os.environ['FAKE_CALLS'], 'a') as f:
  print(*sys.argv[2 if kind == '-m' else 1:], file=f)
print('what it says')
if what == 'pip':
  time.sleep(float(os.environ.get('FAKE_SECONDS', 0)))
leaks = {{'PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET'}} & set(os.environ)
if leaks or os.environ['PIP_INDEX_URL'] != 'theirs':
  sys.exit(99)
if os.environ.get('FAKE_FAILING') in sys.argv:
  sys.exit(int(os.environ.get('FAKE_STATUS', 3)))
"""


class Checkout:
  """A copy of run.sh and what it reads, in a folder with a space in it."""

  def __init__(self, folder):
    self.root = folder / 'a checkout'
    self.root.mkdir()
    for name in ('.ci', 'run.sh', *PINS, 'pyproject.toml'):
      copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
      copy(ROOT / name, self.root / name)
    self.venv = self.root / '.venv'
    self.calls = folder / 'calls'
    fake = folder / 'python3'
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    self.env = os.environ | {
      'PYTHON': str(fake),
      'FAKE': str(fake),
      'FAKE_VERSION': '3.11',
      'FAKE_CALLS': str(self.calls),
      'PYTHONPATH': 'somewhere',
      'PYTHONHOME': 'somewhere',
      'PIP_TARGET': 'somewhere',
      'PIP_INDEX_URL': 'theirs',
    }

  def start(self, *args, command='run.sh', **env):
    self.calls.write_text('')
    return subprocess.Popen(
      [self.root / command, *args],
      cwd='/',
      env=self.env | env,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, *args, **kwargs):
    """Returns the exit status, standard error and the calls that were made."""
    process = self.start(*args, **kwargs)
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr, self.calls.read_text().splitlines()

  def installs(self, *args, **env):
    """Returns what a run that must succeed installs."""
    status, stderr, calls = self.run(*args, **env)
    assert status == 0, stderr
    return [c.split()[-1] for c in calls if c.startswith('pip install ')]


@pytest.fixture
def checkout(tmp_path):
  return Checkout(tmp_path)


def test_smoke_test_runs_with_its_arguments_after_the_installation(checkout):
  process = checkout.start('--steps=2', 'x')
  stdout, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  setuptools, pins, package, smoke = checkout.calls.read_text().splitlines()
  assert ' setuptools==' in setuptools
  assert pins.endswith(' --no-deps --no-compile -r requirements.txt')
  assert package.endswith(' --no-deps -e .')
  assert smoke == 'experiments/smoke_test.py --steps=2 x'
  assert stdout == 'what it says\n'  # Not what pip says.


def test_unsuitable_python_is_named_with_its_version(checkout):
  for version in ('2.7', '3.10', '3.14'):
    status, stderr, _ = checkout.run('setup', FAKE_VERSION=version)
    assert status == 1
    assert f'{checkout.env["PYTHON"]} is Python {version}' in stderr
    assert 'no Python 3.11, 3.12 or 3.13' in stderr
  status, stderr, _ = checkout.run('setup', PYTHON='/no/python')
  assert status == 1 and 'tried /no/python' in stderr
  assert not checkout.venv.exists()


def test_suitable_python_on_the_path_is_found(checkout, tmp_path):
  fake = (tmp_path / 'python3').rename(tmp_path / 'python3.12')
  old = tmp_path / 'python3'
  old.write_text('#!/bin/sh\necho 3.10 /old\n')
  old.chmod(0o755)
  path = f'{tmp_path}:{os.environ["PATH"]}'
  env = {'PYTHON': '', 'FAKE': str(fake), 'FAKE_VERSION': '3.12', 'PATH': path}
  assert len(checkout.installs('setup', **env)) == 3
  assert (checkout.venv / 'bin' / 'version').read_text() == '3.12'


def test_only_what_has_changed_is_installed_again(checkout):
  assert len(checkout.installs('test')) == 4
  for name, count in (*zip(PINS, (4, 1), strict=True), ('pyproject.toml', 1)):
    with open(checkout.root / name, 'a') as f:
      f.write('# Changed.\n')
    assert len(checkout.installs('test')) == count, name
    assert not checkout.installs('test')
  # Another Python on the path is no change.
  assert checkout.run('setup', PYTHON='', FAKE_VERSION='3.12') == (0, '', [])


def test_environment_that_does_not_fit_is_made_again(checkout):
  def made_again(**env):
    (checkout.venv / 'leftover').touch()
    installs = checkout.installs('setup', **env)
    return len(installs) == 3 and not (checkout.venv / 'leftover').exists()

  checkout.run('setup')
  (checkout.venv / 'bin' / 'python').unlink()
  (checkout.venv / 'bin' / 'python').symlink_to('/no/python')
  assert made_again()
  assert made_again(FAKE_VERSION='3.12')
  checkout.root = checkout.root.rename(checkout.root.with_name('moved'))
  checkout.venv = checkout.root / '.venv'
  assert made_again(PYTHON='')


def test_installation_that_was_killed_is_made_again(checkout):
  process = checkout.start('setup', FAKE_SECONDS='60')
  while not checkout.calls.read_text():
    assert process.poll() is None
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate(timeout=300)
  (checkout.venv / 'leftover').touch()
  assert len(checkout.installs('setup')) == 3
  assert not (checkout.venv / 'leftover').exists()


def test_failure_of_pip_is_the_result_and_the_next_run_repeats_it(checkout):
  for failing in ('requirements.txt', '.', 'requirements-dev.txt'):
    status, _, calls = checkout.run('test', FAKE_FAILING=failing)
    assert status == 3 and calls[-1].endswith(f' {failing}')
  assert checkout.installs('test') == ['requirements-dev.txt']


def test_environment_of_someone_else_is_left_alone(checkout):
  checkout.venv.mkdir()
  (checkout.venv / 'precious').touch()
  status, stderr, calls = checkout.run('setup')
  assert status == 1 and '.venv is not from run.sh' in stderr and not calls
  assert (checkout.venv / 'precious').exists()


def test_test_command_runs_ruff_and_the_chosen_tests(checkout):
  checkout.run('test')
  checks = ['ruff check .', 'ruff format --check .']
  for args, marks in (([], ''), (['all'], ' -m '), (['slow'], f' -m {SLOW}')):
    status, _, calls = checkout.run('test', *args, '-k', 'agc')
    assert status == 0
    assert calls == [*checks, f'{PYTEST}{marks} -k agc']
  for failing, wanted in (('check', 1), ('--check', 1), ('pytest', 3)):
    status, _, calls = checkout.run('test', FAKE_FAILING=failing)
    assert (status, len(calls)) == (wanted, 3), failing


def test_ci_runs_the_smoke_test_and_the_fast_and_the_slow_tests(checkout):
  checkout.run('test')
  for failing in ('', 'experiments/smoke_test.py', 'pytest', SLOW):
    env = {'FAKE_FAILING': failing, 'FAKE_STATUS': '2'}
    status, _, calls = checkout.run(command='.ci/run', **env)
    assert status == bool(failing)
    assert sum('smoke_test.py' in c for c in calls) == 1
    assert [c for c in calls if 'pytest' in c] == [
      PYTEST,
      f'{PYTEST} -m {SLOW}',
    ]


def test_unknown_command_is_named_and_help_is_not_an_error(checkout):
  for args in (['tests'], ['setup', '--fast']):
    status, stderr, calls = checkout.run(*args)
    assert status == 2 and f'unknown command: {" ".join(args)}' in stderr
    assert 'usage:' in stderr and not calls
  stdout, stderr = checkout.start('help').communicate(timeout=300)
  assert stdout.startswith('usage:') and not stderr


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
  for extra in ('images', 'train', 'onnx', 'heic', 'test'):
    lines += [x for x in extras[extra] if x != 'nfnets[images]']
  for line in lines:
    requirement = requirements.Requirement(line)
    name = utils.canonicalize_name(requirement.name)
    assert name in pins, f'{name} is not pinned'
    assert pins[name] in requirement.specifier, f'{line}: {pins[name]}'


# The lines of a driver that has CUDA 13, with others around them.
NVIDIA_SMI = """#!/bin/sh
echo '| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: %s |'
echo '|   0  NVIDIA H200              Off |   00000000:1B:00.0 Off |        0 |'
"""


def choice(checkout, tmp_path, cuda='', device='', **env):
  """Returns the builds of JAX that are installed, and what is printed."""
  folder = tmp_path / 'bin'
  folder.mkdir(exist_ok=True)
  (folder / 'nvidia-smi').write_text(
    NVIDIA_SMI % cuda if cuda else '#!/bin/sh\nexit 9\n'
  )
  (folder / 'nvidia-smi').chmod(0o755)
  dev = tmp_path / 'dev'
  dev.mkdir(exist_ok=True)
  if device:
    (dev / device).parent.mkdir(exist_ok=True)
    (dev / device).touch()
  env = {'PATH': f'{folder}:{os.environ["PATH"]}', 'DEV': str(dev), **env}
  status, stderr, calls = checkout.run('setup', **env)
  assert status == 0, stderr
  return [c.split()[-1] for c in calls if ' jax[' in c], stderr


@pytest.mark.parametrize(
  'cuda, device, env, build, reason',
  [
    ('13.0', '', {}, 'cuda13', 'nvidia-smi: CUDA 13'),
    ('14.2', '', {}, 'cuda13', 'nvidia-smi: CUDA 14'),
    ('12.8', '', {}, 'cuda12', 'nvidia-smi: CUDA 12'),
    ('11.4', '', {}, None, 'CUDA 11, a driver too old for JAX'),
    ('', 'accel0', {}, 'tpu', 'a TPU VM'),
    ('', 'vfio/0', {}, 'tpu', 'a TPU VM'),
    ('', '', {}, None, 'there is no GPU and no TPU'),
    ('13.0', '', {'ACCELERATOR': 'cpu'}, None, 'ACCELERATOR says so'),
    ('', '', {'ACCELERATOR': 'tpu'}, 'tpu', 'ACCELERATOR says so'),
  ],
)
def test_jax_is_built_for_the_accelerator_that_there_is(
  checkout, tmp_path, cuda, device, env, build, reason
):
  builds, stderr = choice(checkout, tmp_path, cuda, device, **env)
  version = read_pins('requirements.txt')['jax']
  assert builds == ([f'jax[{build}]=={version}'] if build else [])
  assert f'JAX for {build or "cpu"} (' in stderr and reason in stderr


def test_another_accelerator_makes_another_environment(checkout, tmp_path):
  assert choice(checkout, tmp_path, '13.0')[0]
  for cuda, env in (
    ('13.0', {}),
    ('', {}),  # A login node of the same cluster.
    ('13.0', {'ACCELERATOR': 'cuda13'}),
  ):
    assert choice(checkout, tmp_path, cuda, **env) == ([], '')
  assert 'jax[cuda12]' in choice(checkout, tmp_path, '12.4')[0][0]
  _, stderr = choice(checkout, tmp_path, '12.4', ACCELERATOR='cpu')
  assert 'JAX for cpu' in stderr


def test_an_accelerator_that_there_is_not_is_an_error(checkout):
  status, stderr, calls = checkout.run('setup', ACCELERATOR='gpu')
  assert status == 2 and not calls
  assert 'ACCELERATOR is gpu; it is cpu, cuda12, cuda13 or tpu' in stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  'build, packages',
  [
    ('cuda12', {'jax-cuda12-plugin', 'jax-cuda12-pjrt'}),
    ('cuda13', {'jax-cuda13-plugin', 'jax-cuda13-pjrt'}),
    ('tpu', {'libtpu'}),
  ],
)
def test_pip_finds_the_build_at_the_pinned_version(tmp_path, build, packages):
  pins = read_pins('requirements.txt')
  report = tmp_path / 'report.json'
  subprocess.run(
    [
      *(sys.executable, '-m', 'pip', 'install', '--dry-run'),
      *('--ignore-installed', '--report', str(report), '-q'),
      *('-c', str(ROOT / 'requirements.txt'), f'jax[{build}]=={pins["jax"]}'),
    ],
    check=True,
  )
  found = {
    utils.canonicalize_name(x['metadata']['name']): x['metadata']['version']
    for x in json.loads(report.read_text())['install']
  }
  assert packages <= found.keys() and not any('tensorflow' in x for x in found)
  for name in found.keys() & pins.keys():
    assert found[name] == pins[name], name
  for name in packages - {'libtpu'}:
    assert found[name] == pins['jax']
