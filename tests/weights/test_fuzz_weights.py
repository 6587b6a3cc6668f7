"""Damaged files are refused or read, and nothing else happens."""

import fuzz_weights
import pytest


@pytest.mark.slow
@pytest.mark.parametrize('family', fuzz_weights.FAMILIES)
def test_damaged_files_crash_nothing_and_take_little_memory(family):
  """In a process of its own, whose memory is limited."""
  result = fuzz_weights.run([family], mutations=4000, seed=8)[family]
  assert result['read'] > 80 and result['refused'] > 2000
  assert result['read'] + result['refused'] == 4000
  assert result['other'] == 0
  assert result['peak_mib'] < 64
