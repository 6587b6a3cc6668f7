"""Tests that a disturbed run of two processes ends as an undisturbed one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_PROGRAM = pathlib.Path(__file__).parents[2] / 'benchmarks/failing_hosts.py'


@pytest.mark.slow
def test_a_round_is_good(tmp_path):
  """One process is killed; those that go on end as if it had not been."""
  result = subprocess.run(
    [
      *(sys.executable, str(_PROGRAM), '--rounds=1', '--kinds=kill'),
      *(f'--folder={tmp_path}', f'--output={tmp_path / "rounds"}'),
    ],
    capture_output=True,
    text=True,
    env=os.environ,
  )
  assert result.returncode == 0, result.stderr
  [found] = (json.loads(x) for x in (tmp_path / 'rounds').open())
  assert found['kind'] == 'kill' and found['equal'] and found['said'], found
