"""Settings of all tests, before any of them starts JAX.

That this file is here puts its folder on the path, too: `import golden_lib`
works in the tests below.
"""

import atexit
import os
import shutil
import signal
import tempfile

from store_lib import remote_folder, serving, store  # noqa: F401

# Compiling is most of what the tests wait for; where rounding matters, they ask
# for more. And several devices on one CPU, for those that train.
os.environ['XLA_FLAGS'] = (
  '--xla_backend_optimization_level=0 '
  '--xla_force_host_platform_device_count=4 ' + os.environ.get('XLA_FLAGS', '')
)

# A shell has what it runs in the background ignore interrupts, which some tests
# send, to processes that inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs that took a while to compile are kept for the rest of the session,
# also for the processes that tests start and for xdist's, which inherit the
# folder; never for the next session, and never among the user's own.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _cache = tempfile.mkdtemp(prefix='nfnets_compiled_')
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
