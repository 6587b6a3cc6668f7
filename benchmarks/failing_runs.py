"""Processes of one run on this machine, and what they leave."""

from collections.abc import Callable, Mapping
import contextlib
import hashlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

from safetensors import numpy as safetensors

_ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 60
_SETTINGS = (
  '--config=digits',
  '--image_size=16',
  '--eval_image_size=16',
  '--train_batch_size=16',
  '--num_epochs=1.0',
  '--lr_schedule.warmup_epochs=0.1',
  '--model_kwargs.drop_rate=0.3',
  '--model_kwargs.stochdepth_rate=0.2',
  f'--training_steps={STEPS}',
  '--save_checkpoint_interval=5',
  '--log_tensors_interval=1',
  '--test_at_end=0',
  '--compile_quickly',
)
# On CPUs, JAX keeps compiled programs for process 0 alone.
_QUICKLY = '--xla_backend_optimization_level=0'
# Nothing may take longer, in seconds.
_LIMIT = 120
# A disk for a few checkpoints.
_DISK_MIB = 40


class RoundError(Exception):
  """A round is not good."""


class Run:
  """Processes of one run."""

  def __init__(
    self,
    folder: pathlib.Path,
    count: int,
    checkpoints: str | os.PathLike[str],
    environment: Mapping[str, str] | None = None,
  ):
    """Starts `count` processes on two devices in all.

    Args:
      folder: of the round, for their logs; beside it is the dataset.
      count: 1 or 2.
      checkpoints: what to give as `checkpoint_dir`.
      environment: variables in addition.
    """
    self.log_paths, self.processes = [], []
    folder.mkdir(parents=True, exist_ok=True)
    attempt = 1 + len(list(folder.glob('*.0.log')))
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    devices = f'--xla_force_host_platform_device_count={2 // count} {_QUICKLY}'
    # Programs that take no time to compile are kept as well.
    quickly = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    flags = f'{os.environ.get("XLA_FLAGS", "")} {devices}'
    for number in range(count):
      path = folder / f'{attempt}.{number}.log'
      command = [
        *(sys.executable, str(_ROOT / 'experiments/experiment.py')),
        *_SETTINGS,
        f'--checkpoint_dir={checkpoints}',
        f'--data_dir={folder.parent / "data"}',
        '--save_retry_minutes=0.5',
      ]
      if count > 1:
        command += [
          f'--coordinator_address=127.0.0.1:{port}',
          f'--num_processes={count}',
          f'--process_id={number}',
        ]
      with path.open('w') as log:
        self.processes.append(
          subprocess.Popen(
            command,
            env={
              **os.environ,
              **quickly,
              **(environment or {}),
              'XLA_FLAGS': flags,
            },
            stdout=subprocess.DEVNULL,
            stderr=log,
          )
        )
      self.log_paths.append(path)

  def log(self, number: int) -> str:
    """What a process has written so far."""
    return self.log_paths[number].read_text(errors='replace')

  def last_line(self, number: int) -> str:
    """The last line of that."""
    lines = self.log(number).strip().splitlines() or ['']
    # What an error consists of, on as many lines as it has.
    errors = [i for i, x in enumerate(lines) if x.startswith('error: ')]
    return ' '.join(lines[errors[-1] :]) if errors else lines[-1]

  def step(self) -> int:
    """The last step that was logged."""
    steps = re.findall(r' step (\d+)/', self.log(0))
    return int(steps[-1]) if steps else 0

  def wait_for(self, happens: Callable[[], bool]) -> None:
    """Returns when something happens, or when a process has ended.

    Raises:
      RoundError: if nobody writes anything for two minutes.
    """
    size, since = -1, time.monotonic()
    while not happens() and all(p.poll() is None for p in self.processes):
      now = sum(path.stat().st_size for path in self.log_paths)
      if now != size:
        size, since = now, time.monotonic()
      if time.monotonic() - since > _LIMIT:
        raise RoundError(f'nothing happens after {self.last_line(0)!r}')
      time.sleep(0.02)

  def wait_for_end(self, *numbers: int, going_on: bool = False) -> None:
    """Waits for the end of some processes, or of all.

    Args:
      *numbers: of the processes.
      going_on: whether they train until then; if so, two minutes count from
        the end of the first.

    Raises:
      RoundError: if it takes more than two minutes.
    """
    if going_on:
      self.wait_for(lambda: False)
    end = time.monotonic() + _LIMIT
    for number in numbers or range(len(self.processes)):
      try:
        self.processes[number].wait(max(0.0, end - time.monotonic()))
      except subprocess.TimeoutExpired as error:
        raise RoundError(
          f'process {number} hangs after {self.last_line(number)!r}'
        ) from error

  def check(self, number: int, status: int, pattern: str = '') -> None:
    """Checks how a process ended.

    Raises:
      RoundError: if its status or last line is another.
    """
    ended, line = self.processes[number].returncode, self.last_line(number)
    if ended != status or not re.match(pattern, line):
      raise RoundError(f'process {number} ended with {ended}: {line}')

  def kill(self) -> None:
    """Ends what is still there."""
    for process in self.processes:
      if process.poll() is None:
        process.kill()
      process.wait()


def hash_weights(file: bytes) -> str:
  """Hashes the arrays in a file of weights, and nothing else of it."""
  total = hashlib.sha256()
  for name, array in sorted(safetensors.load(file).items()):
    total.update(f'{name} {array.dtype} {array.shape}'.encode())
    total.update(array.tobytes())
  return total.hexdigest()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path):
  """A file system of its own for the checkpoints."""
  folder.mkdir(parents=True)
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={_DISK_MIB}m', 'tmpfs', folder]
  subprocess.run(mount, check=True)
  try:
    yield
  finally:
    subprocess.run(['umount', '--lazy', folder], check=True)


def run_undisturbed(folder: pathlib.Path) -> str:
  """Returns the hash of the weights, the same for one process and for two."""
  hashes = {}
  for count in (2, 1):
    checkpoints = folder / f'undisturbed_{count}' / 'run'
    weights = checkpoints / 'weights.safetensors'
    if not weights.exists():
      run = Run(checkpoints.parent, count, checkpoints)
      try:
        run.wait_for_end(going_on=True)
        for number in range(count):
          run.check(number, 0)
      finally:
        run.kill()
    hashes[count] = hash_weights(weights.read_bytes())
  if hashes[1] != hashes[2]:
    raise RoundError('One process and two end differently, undisturbed.')
  return hashes[1]
