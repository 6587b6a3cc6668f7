"""Tests of what is put in the place of JAXline's own functions."""

import jax
from jaxline import utils
import numpy as np

from experiments import jaxline_compat


def test_jaxline_uses_the_replacements():
  assert utils.bcast_local_devices is jaxline_compat.bcast_local_devices
  assert utils.get_first is jaxline_compat.get_first


def test_broadcast_puts_one_copy_on_each_device():
  n = jax.local_device_count()
  tree = {'a': np.arange(6.0).reshape(2, 3), 'b': 5}
  spread = utils.bcast_local_devices(tree)
  assert spread['a'].shape == (n, 2, 3) and spread['b'].shape == (n,)
  shards = spread['a'].addressable_shards
  assert {s.device for s in shards} == set(jax.local_devices())
  for shard in shards:
    np.testing.assert_array_equal(np.asarray(shard.data)[0], tree['a'])


def test_broadcast_arrays_need_no_copy_to_be_used_under_pmap():
  n = jax.local_device_count()
  spread = utils.bcast_local_devices(np.ones(3))
  doubled = jax.pmap(lambda x: 2 * x, axis_name=jaxline_compat.AXIS)(spread)
  assert doubled.sharding.is_equivalent_to(spread.sharding, 2)
  assert doubled.shape == (n, 3)


def test_the_first_part_is_a_copy_that_outlives_its_source():
  spread = utils.bcast_local_devices({'a': np.arange(4.0)})
  first = utils.get_first(spread)
  add = jax.pmap(lambda x: x + 1, donate_argnums=0)
  add(spread['a'])
  np.testing.assert_array_equal(first['a'], np.arange(4.0))


def test_reading_the_first_part_runs_nothing_on_the_devices():
  # A shape of its own, for which nothing has been compiled before.
  spread = utils.bcast_local_devices(np.arange(91.0))
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event)
  )
  try:
    first = utils.get_first(spread)
  finally:
    jax.monitoring.clear_event_listeners()
  assert not [e for e in compiled if 'compile' in e or 'trace' in e]
  assert isinstance(first, np.ndarray)


def test_draws_do_not_follow_from_the_process(monkeypatch):
  """A device draws the same, whichever process it belongs to."""
  mode = 'unique_host_unique_device'
  first = utils.host_id_devices_for_rng(mode)
  monkeypatch.setattr(jax, 'process_index', lambda: 3)
  np.testing.assert_array_equal(utils.host_id_devices_for_rng(mode), first)
  # Where the devices of a host draw the same, hosts still differ.
  others = utils.host_id_devices_for_rng('unique_host_same_device')
  np.testing.assert_array_equal(others, 3)
