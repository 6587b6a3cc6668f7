"""Damaged files are refused or read, and nothing else happens."""

import json
import subprocess
import sys

import fuzz_weights
import pytest


# Of pickletools, which changes the pickles.
@pytest.mark.filterwarnings('ignore:invalid escape sequence')
@pytest.mark.parametrize('family', fuzz_weights.FAMILIES)
def test_damaged_files_are_refused_or_read(family):
  result = fuzz_weights.fuzz(family, mutations=500, seed=7)
  assert result['read'] > 10 and result['refused'] > 250
  assert result['read'] + result['refused'] == 500
  assert result['other'] == 0


@pytest.mark.slow
def test_damaged_files_crash_nothing_and_take_little_memory():
  """In processes of their own, whose memory is limited."""
  out = subprocess.run(
    [sys.executable, fuzz_weights.__file__, '--mutations=4000', '--seed=8'],
    stdout=subprocess.PIPE,
    check=True,
    timeout=500,
  ).stdout
  results = json.loads(out.splitlines()[-1])
  assert results.keys() == set(fuzz_weights.FAMILIES)
  for result in results.values():
    assert result['read'] > 80 and result['refused'] > 2000
    assert result['read'] + result['refused'] == 4000
    assert result['other'] == 0
    assert result['peak_mib'] < 64
