"""What makes tests of whole networks cheap: a small one, compiled quickly."""

from collections.abc import Iterator
import functools

import jax
import pytest
import reference_params

import nfnets


@pytest.fixture(scope='module', autouse=True)
def quickly_compiled() -> Iterator[None]:
  """Has XLA optimize little, which takes it half the time.

  It acts in a module that imports it, and below a conftest.py that does.
  """
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@functools.cache
def digits() -> tuple[nfnets.Model, dict]:
  """Returns a small network, whose programs are shared, and parameters."""
  model = nfnets.create_model('nfnet_digits', 10)
  shapes, _ = jax.eval_shape(lambda rng: model.init(rng, 32), jax.random.key(0))
  return model, reference_params.reference_params(shapes)
