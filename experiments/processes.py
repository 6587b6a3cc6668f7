"""Joining the processes of a run on several hosts, and ending with them."""

import os
import sys
from typing import Any
import warnings

from absl import flags, logging
import jax

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
  with warnings.catch_warnings():
    # In a Kubernetes pod, of a package that this run may well not need.
    warnings.simplefilter('ignore')
    try:
      jax.distributed.initialize(
        **given, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT
      )
    except ValueError as error:
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


def describe_failure(error: Exception) -> str:
  """Describes what may be the end of another process; logs it in full."""
  logging.error('%s', error, exc_info=error)
  return (
    f'process {jax.process_index()} of {jax.process_count()} cannot go on: '
    f'{str(error).splitlines()[0][:300]}\nIf this names a connection, another '
    'process has ended; its own messages say why. Start all of them again to '
    'go on from the last checkpoint.'
  )


def fail(error: Any, status: int) -> int:
  """Prints an error; returns the status, or with others ends right here."""
  print(f'error: {error}', file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    # An orderly end would wait for the other processes, which wait for this
    # one; without it they notice within two minutes, and end too.
    os._exit(status)
  return status
