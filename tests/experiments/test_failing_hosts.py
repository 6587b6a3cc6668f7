"""Tests that a disturbed run of two processes ends as an undisturbed one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_PROGRAM = pathlib.Path(__file__).parents[2] / 'benchmarks/failing_hosts.py'


@pytest.mark.slow
def test_two_rounds_are_good(tmp_path):
  """One process killed; the last checkpoint damaged."""
  result = subprocess.run(
    [
      *(sys.executable, str(_PROGRAM), '--rounds=2', '--kinds=kill,damage'),
      *(f'--folder={tmp_path}', f'--output={tmp_path / "rounds"}'),
    ],
    capture_output=True,
    text=True,
    env=os.environ,
  )
  assert result.returncode == 0, result.stderr
  rounds = [json.loads(x) for x in (tmp_path / 'rounds').open()]
  assert {x['kind'] for x in rounds} == {'kill', 'damage'}
  assert all(x['equal'] and x['said'] for x in rounds), rounds
