"""What a run needs of its machines: the other processes, signals to end, and a
folder of compiled programs."""

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

# Seconds after which a host that is not heard of counts as lost.
_HEARTBEAT_TIMEOUT = 60
# Seconds that processes wait for each other, at the start and at the end, where
# process 0 may still be writing the last checkpoint.
_JOIN_TIMEOUT = 300
_LEAVE_TIMEOUT = 3600
# What the first line of an error says where a connection has broken.
_BROKEN = ('Gloo', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'CoordinationService')
_ADVICE = 'Start all of them again to go on from the last checkpoint.'
# Those that print the last line if this process is aborted.
_children: list[subprocess.Popen] = []
# The limit for compiled programs. The environment takes 2.5 GB.
_MAX_CACHE_BYTES = 4 * 2**30


def join(**flags: Any) -> None:
  """Connect the processes of a run, if there are several.

  Args:
    **flags: `coordinator_address`, `num_processes` and `process_id`; None where
      the cluster says it.

  Raises:
    UserError: if neither the flags nor the cluster say which.
  """
  given = {k: v for k, v in flags.items() if v is not None}
  # It would take SIGTERM to itself.
  jax.config.update('jax_enable_preemption_service', False)
  # The runtime aborts a process, with a stack as last words, when another is
  # lost. This child prints one line more. It reads until this process ends,
  # from a pipe that nothing inherits, in a session that Ctrl-C does not reach.
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
  # Before that, because others may be lost while this one waits for them.
  atexit.register(jax.distributed.shutdown)
  try:
    with warnings.catch_warnings():
      # In a Kubernetes pod, of a package that this run may well not need.
      warnings.simplefilter('ignore')
      jax.distributed.initialize(
        **given,
        initialization_timeout=_JOIN_TIMEOUT,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_LEAVE_TIMEOUT,
      )
  except (RuntimeError, ValueError) as error:
    # Without an address there is no cluster, and without flags either this
    # is a single process. Anything else must not train as one by mistake.
    if given or 'coordinator_address' not in str(error):
      flags_text = ', '.join(f'--{key}={value}' for key, value in given.items())
      raise UserError(
        f'{flags_text or "The cluster"}: {error} Several processes need '
        '--coordinator_address=HOST:PORT, --num_processes and --process_id '
        '(from 0), where the cluster does not tell them by itself.',
        2,
      ) from error
    _children.pop().kill()
    return
  # Gloo, which connects CPUs, does so at the first collective operation, and
  # waits for 30 s: fewer than may lie between two ends of a compilation.
  try:
    multihost_utils.sync_global_devices('joined')
  except jax.errors.JaxRuntimeError as error:
    fail(describe_failure(error), 1)


def describe_failure(error: Exception) -> str:
  """Describe what may be the end of another process; else log it in full."""
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
  return f'{name} cannot go on: {reason}'


def fail(error: Any, status: int) -> int:
  """Print an error; return the status, or with others end right here."""
  print(f'error: {error}', file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    for child in _children:
      child.kill()
    # An orderly end would wait for the other processes, which wait for this
    # one; without it they notice within two minutes, and end too.
    os._exit(status)
  return status


class StoppedError(Exception):
  """The work was left because the program shall end."""


class Notice:
  """Whether the program has been asked to end; a context manager.

  Inside the context, a first SIGTERM or SIGINT is noted, and a second one ends
  the program at once, with the status that shells give it, 143 or 130. What
  comes within a second counts once: `timeout` sends each signal twice. Clusters
  send SIGTERM before they stop a machine.

  Attributes:
    is_interrupt: whether the first was SIGINT, which Ctrl-C sends.
  """

  def __init__(self):
    self._event = threading.Event()
    self._readers: list[Any] = []
    self.is_interrupt = False

  def is_set(self) -> bool:
    return self._event.is_set()

  def until_set(self, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches of `dataset` until a signal comes.

    Also while it waits for one: a read from a store that fails may last longer
    than a machine that is taken away has left.

    Raises:
      StoppedError: a signal has come.
      UserError: as `batches`.
    """
    if hasattr(batches, 'stop'):  # Not those that nobody reads.
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
    # Python's handlers run in the main thread and between two of its
    # instructions, and compiling a step is one instruction. The number of the
    # signal is written to this pipe at once.
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._previous_fd = signal.set_wakeup_fd(self._writer)
    self._previous = {
      number: signal.signal(number, lambda *_: None)
      for number in (signal.SIGTERM, signal.SIGINT)
      # A shell ignores SIGINT for what it runs in the background.
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
        '%s: ending after this step. A second one ends the program at once.',
        'Ctrl-C' if self.is_interrupt else 'SIGTERM',
      )
      for reader in list(self._readers):
        reader.stop()


def keep_compiled_programs() -> None:
  """Turn on JAX's persistent cache, in a private folder of bounded size.

  It is in the user's cache folder. Where it cannot be used there is a warning
  and no cache: what is in it is run, so it must not be written to by anybody
  else. A folder that JAX_COMPILATION_CACHE_DIR names is taken as it is, and not
  bounded: other programs may share it, and JAX cannot bound what they wrote.
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
    # A program is written first, and then when it was used; JAX needs both of
    # all, and a killed process may have left the first alone.
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
