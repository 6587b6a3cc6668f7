"""Processes of a run, signals to stop, and the cache of compiled programs."""

import atexit
from collections.abc import Iterator
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import Any
import warnings

from absl import logging
import filelock
import jax
from jax.experimental import multihost_utils

from nfnets import messages, paths
from nfnets.errors import UserError

# Seconds without a heartbeat after which a host is lost.
_HEARTBEAT_TIMEOUT = 60
# Seconds that processes wait for each other at the start, and at the end, where
# process 0 may be writing the last checkpoint.
_JOIN_TIMEOUT = 300
_LEAVE_TIMEOUT = 3600
# Words in messages about broken connections.
_BROKEN = ('Gloo', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'CoordinationService')
_ADVICE = 'Start all of them again to go on from the last checkpoint.'
# They print the last line if this process is aborted.
_children: list[subprocess.Popen] = []
# The limit for compiled programs. The environment takes 2.5 GB.
_MAX_CACHE_BYTES = 4 * 2**30


def join(**flags: Any) -> None:
  """Connect the processes of a run, if there are several.

  Args:
    **flags: `coordinator_address`, `num_processes` and `process_id`. None: set
      by the cluster.

  Raises:
    UserError: if flags are missing and the cluster does not set them.
  """
  given = {k: v for k, v in flags.items() if v is not None}
  # It would handle SIGTERM itself.
  jax.config.update('jax_enable_preemption_service', False)
  # If a process is lost, the runtime aborts the others and prints a stack. This
  # child then prints one more line. It reads a pipe until this process ends, in
  # a session that Ctrl-C does not reach.
  child = subprocess.Popen(
    [
      *('sh', '-c', 'read _; echo "$0" >&2'),
      'error: this process has lost or never found another, whose own messages '
      f'say why, or was itself ended. {_ADVICE}',
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    start_new_session=True,
  )
  _children.append(child)
  atexit.register(child.kill)
  # Runs before the kill, because others may be lost during the shutdown.
  atexit.register(jax.distributed.shutdown)
  try:
    with warnings.catch_warnings():
      # In Kubernetes, it warns about a package that is rarely needed.
      warnings.simplefilter('ignore')
      jax.distributed.initialize(
        **given,
        initialization_timeout=_JOIN_TIMEOUT,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_LEAVE_TIMEOUT,
      )
  except (RuntimeError, ValueError) as error:
    # Without flags and without a cluster, this is a single process. In any
    # other case, continuing as a single process would be wrong.
    if given or 'coordinator_address' not in str(error):
      flags_text = ', '.join(f'--{key}={value}' for key, value in given.items())
      raise UserError(
        f'{flags_text or "The cluster"}: {error} Several processes need '
        '--coordinator_address=HOST:PORT, --num_processes and --process_id '
        '(from 0), unless the cluster sets them.',
        2,
      ) from error
    _children.pop().kill()
    return
  # Gloo (CPUs) connects at the first collective operation with a timeout of 30
  # s. Compilation times may differ by more, so connect before it.
  try:
    multihost_utils.sync_global_devices('joined')
  except jax.errors.JaxRuntimeError as error:
    fail(describe_failure(error), 1)


def describe_failure(error: Exception) -> str:
  """Describe the loss of another process; log other errors in full."""
  name = f'process {jax.process_index()} of {jax.process_count()}'
  reason = messages.one_line(error)
  if isinstance(error, jax.errors.JaxRuntimeError) and any(
    word in reason for word in _BROKEN
  ):
    return (
      f'{name} has lost another, whose own messages say why. {_ADVICE} '
      f'({reason})'
    )
  logging.error('%s', error, exc_info=error)
  return f'{name} cannot continue: {reason}'


def fail(error: Any, status: int) -> int:
  """Print an error; return the status, or exit if there are other processes."""
  print(f'error: {error}', file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    for child in _children:
      child.kill()
    # A normal exit would wait for the other processes, which wait for this one.
    # They notice this exit within two minutes and stop.
    os._exit(status)
  return status


class StoppedError(Exception):
  """Work was interrupted because the program was asked to stop."""


class Notice:
  """Context manager that records requests to stop the program.

  The first SIGTERM or SIGINT is recorded. A second one ends the program at once
  with the usual status, 143 or 130. Signals within a second count once, because
  `timeout` sends each signal twice. Clusters send SIGTERM before they stop a
  machine.

  Attributes:
    is_interrupt: whether the first signal was SIGINT (Ctrl-C).
  """

  def __init__(self):
    self._event = threading.Event()
    self._readers: list[Any] = []
    self.is_interrupt = False

  def is_set(self) -> bool:
    return self._event.is_set()

  def until_set(self, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches until a signal arrives.

    A signal also ends the wait for a batch, because retries of a failing read
    may take longer than the notice period of a machine.

    Raises:
      StoppedError: if a signal arrived.
      UserError: as `batches`.
    """
    if hasattr(batches, 'stop'):  # Random batches have none.
      self._readers.append(batches)
    try:
      if self.is_set():
        raise StoppedError
      for batch in batches:
        if self.is_set():
          raise StoppedError
        yield batch
    except UserError as error:
      if self.is_set():
        raise StoppedError from error
      raise
    finally:
      if batches in self._readers:
        self._readers.remove(batches)

  def __enter__(self) -> 'Notice':
    # Python runs signal handlers between instructions of the main thread, and
    # compiling a step is one instruction. The pipe gets the signal at once.
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._previous_fd = signal.set_wakeup_fd(self._writer)
    self._previous = {
      number: signal.signal(number, lambda *_: None)
      for number in (signal.SIGTERM, signal.SIGINT)
      # Shells ignore SIGINT in background commands.
      if signal.getsignal(number) != signal.SIG_IGN
    }
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler or signal.SIG_DFL)
    signal.set_wakeup_fd(self._previous_fd)
    os.close(self._writer)  # Ends the thread.
    self._thread.join()
    os.close(self._reader)

  def _listen(self) -> None:
    first = 0.0
    while read := os.read(self._reader, 1):
      (number,) = read
      if number not in self._previous:
        continue
      if self._event.is_set():
        if time.monotonic() - first > 1:
          os._exit(128 + number)
        continue
      first = time.monotonic()
      self.is_interrupt = number == signal.SIGINT
      self._event.set()
      logging.info(
        '%s: stopping after this step. A second one stops the program at once.',
        'Ctrl-C' if self.is_interrupt else 'SIGTERM',
      )
      for reader in list(self._readers):
        reader.stop()


def keep_compiled_programs() -> None:
  """Enable JAX's persistent cache in a private folder of limited size.

  The folder is in the user's cache folder. Others must not write to it, because
  its content is executed. If it is not usable, this logs a warning. A folder in
  JAX_COMPILATION_CACHE_DIR is used as it is, without a limit, because other
  programs may share it.
  """
  if jax.config.jax_compilation_cache_dir:
    return
  folder = paths.cache_folder('compiled')
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
      raise PermissionError(f'{folder} is not a folder of yours')
    folder.chmod(0o700)
    # JAX needs two files per program, and a killed process may have written
    # only the first.
    with filelock.FileLock(folder / '.lockfile', timeout=10):
      for program in folder.glob('*-cache'):
        used = program.name.removesuffix('-cache') + '-atime'
        if not program.with_name(used).exists():
          program.unlink()
  except OSError as error:
    logging.warning('Compiled programs are not kept: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_compilation_cache_max_size', _MAX_CACHE_BYTES)
