"""Joining the processes of a run on several hosts, and ending with them."""

from collections.abc import Callable
import contextlib
import ctypes
import os
import socket
import sys
import threading
import time
from typing import Any
import warnings

from absl import flags, logging
import jax
from jax._src import distributed
from jax.experimental import multihost_utils

_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'host:port of process 0, for several hosts.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes there are.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'The number of this process, from 0.', lower_bound=0
)

# Seconds after which a host that is not heard of counts as lost.
_HEARTBEAT_TIMEOUT = 60
# Seconds that processes wait for each other, at the start and at the end, where
# process 0 may still be writing the last checkpoint.
_JOIN_TIMEOUT = 300
_LEAVE_TIMEOUT = 3600
# What the first line of an error says where a connection has broken.
_BROKEN = ('Gloo', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'CoordinationService')

# Of several threads that find out that this is the end, one says so.
_end_lock = threading.Lock()
_joined = threading.Event()


def join() -> None:
  """Connects the processes of a run, if there are several.

  Raises:
    ValueError: if the flags or the cluster do not say which.
  """
  flags_given = {
    'coordinator_address': _COORDINATOR.value,
    'num_processes': _NUM_PROCESSES.value,
    'process_id': _PROCESS_ID.value,
  }
  given = {k: v for k, v in flags_given.items() if v is not None}
  # It would take SIGTERM to itself.
  jax.config.update('jax_enable_preemption_service', False)
  with warnings.catch_warnings(), _clients_that_call(_end_alone):
    # In a Kubernetes pod, of a package that this run may well not need.
    warnings.simplefilter('ignore')
    try:
      jax.distributed.initialize(
        **given,
        initialization_timeout=_JOIN_TIMEOUT,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_LEAVE_TIMEOUT,
      )
    except (RuntimeError, ValueError) as error:
      if jax.distributed.is_initialized():  # All but connected.
        _end_alone()
      # Without an address there is no cluster, and without flags either this
      # is a single process. Anything else must not train as one by mistake.
      if given or 'coordinator_address' not in str(error):
        flags_text = ', '.join(
          f'--{key}={value}' for key, value in given.items()
        )
        raise ValueError(
          f'{flags_text or "The cluster"}: {error} Several processes need '
          '--coordinator_address=HOST:PORT, --num_processes and --process_id '
          '(from 0), where the cluster does not tell them by itself.'
        ) from error
      return
  _joined.set()
  # Gloo, which connects CPUs, does so at the first collective operation, and
  # waits for 30 s: fewer than may lie between two ends of a compilation.
  try:
    multihost_utils.sync_global_devices('joined')
  except jax.errors.JaxRuntimeError as error:
    fail(describe_failure(error), 1)


def describe_failure(error: Exception) -> str:
  """Describes what may be the end of another process; else logs it in full."""
  who = f'process {jax.process_index()} of {jax.process_count()}'
  what = str(error).splitlines()[0][:300] if str(error) else repr(error)
  if isinstance(error, jax.errors.JaxRuntimeError) and any(
    word in what for word in _BROKEN
  ):
    return f'{who} has lost another, {_ADVICE} ({what})'
  logging.error('%s', error, exc_info=error)
  return f'{who} cannot go on: {what}'


_ADVICE = (
  'whose own messages say why. Start all of them again to go on from the last '
  'checkpoint.'
)


def fail(error: Any, status: int) -> int:
  """Prints an error; returns the status, or with others ends right here."""
  if jax.distributed.is_initialized():
    # An orderly end would wait for the other processes, which wait for this
    # one; without it they notice within two minutes, and end too.
    _end(error, status)
  print(f'error: {error}', file=sys.stderr, flush=True)
  return status


def _end(error: Any, status: int) -> None:
  _end_lock.acquire()  # For good.
  print(f'error: {error}', file=sys.stderr, flush=True)
  os._exit(status)


def _end_alone(*_) -> None:
  """Ends the program because another process is not there."""
  state = distributed.global_state
  address, number = state.coordinator_address, state.process_id
  who = f'process {number} of {state.num_processes}'
  if not _joined.is_set():
    _end(
      f'{who} has not found all the others at {address}, which is process 0, '
      f'within {_JOIN_TIMEOUT} s.',
      1,
    )
  if number == 0:
    what = f'another, which was silent for {_HEARTBEAT_TIMEOUT} s,'
  elif _answers(address):
    what = 'process 0, or another that process 0 names,'
  else:
    what = f'process 0, at {address},'
  _end(f'{who} has lost {what} {_ADVICE}', 1)


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(':')
  time.sleep(2)  # One that ends may close this last.
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
  except OSError:
    return False
  return True


@contextlib.contextmanager
def _clients_that_call(function: Callable[..., None]):
  """Has the runtime's client call a function when a process is lost.

  By itself the client, which finds that out by a broken connection or by
  silence, ends the program with its own stack as the last words. It takes a
  function instead, which JAX does not give it.
  """
  runtime, name = distributed._jax, 'get_distributed_runtime_client'
  original = getattr(runtime, name)

  def make(*args, **kwargs):
    _call_where_cpp_cannot(function)
    return original(*args, missed_heartbeat_callback=function, **kwargs)

  setattr(runtime, name, make)
  try:
    yield
  finally:
    setattr(runtime, name, original)


def _call_where_cpp_cannot(function: Callable[[], None]) -> None:
  """Calls a function where C++ would abort because it could not call it.

  jaxlib 0.10 cannot make a Python object of the argument, an absl::Status, and
  so throws a std::bad_cast that nothing catches.
  """
  try:
    cpp = ctypes.CDLL('libstdc++.so.6')
    exception_type = getattr(cpp, '__cxa_current_exception_type')
    set_terminate = cpp._ZSt13set_terminatePFvvE
  except (OSError, AttributeError):
    return  # Not on Linux, say. The stack remains.
  handler_type = ctypes.CFUNCTYPE(None)
  set_terminate.argtypes, set_terminate.restype = [handler_type], handler_type
  exception_type.restype = ctypes.c_void_p

  def terminate():
    type_info = exception_type()
    # A type_info is a table of functions and a name.
    name = ctypes.sizeof(ctypes.c_void_p)
    if type_info and (
      ctypes.c_char_p.from_address(type_info + name).value == b'St8bad_cast'
    ):
      function()
    previous()

  handler = handler_type(terminate)
  _kept.append(handler)
  previous = set_terminate(handler)


# What C++ may call must not be collected.
_kept = []
