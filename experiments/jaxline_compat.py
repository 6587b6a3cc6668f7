"""What JAXline 0.0.8 needs on today's JAX; nothing else knows its insides.

JAXline is finished, not maintained. Importing this module replaces

- `utils.bcast_local_devices`, which calls `jax.device_put_sharded`, gone since;
- `utils.get_first`, which indexes an array that is spread over the devices, so
  that all of them take part in reading from the first;
- `utils.host_id_devices_for_rng`, so that what a device draws follows from its
  number among all devices, and not from the process that it belongs to as well;
- `jax.tree_map`, which `utils.InMemoryCheckpointer` calls, gone since;
- `train._log_outputs`, which prints a dictionary where a line can be read.
"""

from typing import Any

# Before JAXline imports TensorFlow, which would announce itself.
import nfnets.data  # noqa: F401

# isort: split

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxline import train, utils
import ml_collections
import numpy as np

from experiments.step import AXIS


def shard_local_devices(tree: Any) -> Any:
  """Put [devices, ...] arrays of the host on this host's devices, in order.

  Returns at once; the copies go on in the background.
  """
  mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def bcast_local_devices(tree: Any) -> Any:
  """Copy a tree to each of this host's devices: [...] to [devices, ...]."""
  n = jax.local_device_count()
  return shard_local_devices(
    jax.tree.map(
      lambda x: np.broadcast_to(np.asarray(x)[None], (n, *np.shape(x))),
      jax.device_get(tree),
    )
  )


def get_first(tree: Any) -> Any:
  """Copy the first device's part to the host: [devices, ...] to [...]."""
  # A copy, not a view: the next step may be given the device's memory.
  return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)


def host_id_devices_for_rng(mode: str = 'unique_host_unique_device'):
  """Return a number for each local device, which its draws follow from."""
  numbers = _host_id_devices_for_rng(mode)
  # JAXline adds the number of the device, which is another on every host.
  return 0 * numbers if mode == 'unique_host_unique_device' else numbers


def log_train_metrics_with(log_fn) -> None:
  """Have (step, metrics) given to `log_fn` every `log_tensors_interval`."""
  train._log_outputs = log_fn


def init_rng(config: ml_collections.ConfigDict) -> jax.Array:
  """Return the key that training gives to the experiment with this config."""
  rng = jax.random.PRNGKey(config.random_seed)
  return rng if config.legacy_random_seed_behavior else jax.random.split(rng)[1]


_host_id_devices_for_rng = utils.host_id_devices_for_rng
jax.tree_map = jax.tree.map
utils.host_id_devices_for_rng = host_id_devices_for_rng
utils.bcast_local_devices = bcast_local_devices
utils.get_first = get_first
