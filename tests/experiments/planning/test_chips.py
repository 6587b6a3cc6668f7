"""Tests of the table of devices."""

import pytest

from experiments.planning import chips
from nfnets.errors import UserError

# As Google publishes them, per chip: 10^12 operations per second in bfloat16,
# and GiB of memory.
_PUBLISHED = {
  'tpu_v3': (123, 32),
  'tpu_v4': (275, 32),
  'tpu_v5e': (197, 16),
  'tpu_v5p': (459, 95),
  'tpu_v6e': (918, 32),
}


@pytest.mark.parametrize('name', _PUBLISHED)
def test_clocks_and_units_give_the_published_peaks(name):
  chip = chips.get(name)
  tera, memory = _PUBLISHED[name]
  peak = chip.peak_flops * chip.devices_per_chip
  assert peak == pytest.approx(1e12 * tera, rel=5e-3)
  assert chip.memory_gib * chip.devices_per_chip == memory


@pytest.mark.parametrize('name', chips.CHIPS)
def test_programs_get_most_of_the_memory(name):
  chip = chips.get(name)
  # What v5p has are 95 GiB and some.
  assert 0.75 <= chip.capacity_gib / chip.memory_gib < 1.01


def test_an_unknown_device_is_answered_with_those_that_there_are():
  with pytest.raises(UserError) as error:
    chips.get('tpu_v5x')
  assert 'Did you mean tpu_v5' in str(error.value)
  assert 'tpu_v3, tpu_v4, tpu_v5e' in str(error.value)
