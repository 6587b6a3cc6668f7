"""Python in a process of its own, for tests that end one or change its user."""

import os
import subprocess
import sys


def run_python(code, *args, **environment):
  """Runs code that can import what the tests can; returns what came out."""
  environment = {'PYTHONPATH': os.pathsep.join(sys.path), **environment}
  return subprocess.run(
    [sys.executable, '-c', code, *map(str, args)],
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
