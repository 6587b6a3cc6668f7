"""Damaged files are refused or read, and nothing else happens."""

import json
import subprocess
import sys

import fuzz_weights
import pytest


@pytest.mark.parametrize('family', fuzz_weights.FAMILIES)
def test_damaged_files_are_refused_or_read(family):
  out = subprocess.run(
    [
      sys.executable,
      fuzz_weights.__file__,
      f'--families={family}',
      '--mutations=1000',
      '--seed=7',
    ],
    stdout=subprocess.PIPE,
    check=True,
    timeout=300,
  ).stdout
  result = json.loads(out.splitlines()[-1])[family]
  assert result['read'] > 20 and result['refused'] > 500
  assert result['read'] + result['refused'] == 1000
  assert result['other'] == 0
  assert result['peak_mib'] < 64
