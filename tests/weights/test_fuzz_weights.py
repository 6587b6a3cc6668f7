"""Damaged files are refused or read, and nothing else happens."""

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
@pytest.mark.parametrize('family', fuzz_weights.FAMILIES)
def test_damaged_files_crash_nothing_and_take_little_memory(family):
  """In a process of its own, whose memory is limited."""
  result = fuzz_weights.run([family], mutations=4000, seed=8)[family]
  assert result['read'] > 80 and result['refused'] > 2000
  assert result['read'] + result['refused'] == 4000
  assert result['other'] == 0
  assert result['peak_mib'] < 64
