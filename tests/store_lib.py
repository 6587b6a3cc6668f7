"""Fixtures of the emulated Cloud Storage, for all tests (see `conftest`).

In the test's own process the clients find the store by the environment, which
is as before when the test is over; a command that it starts inherits it.
"""

from collections.abc import Iterator
import os
from unittest import mock
import uuid

import emulated_store
import pytest


@pytest.fixture(scope='session')
def serving() -> Iterator[emulated_store.Store]:
  """One store for all tests of a session; nothing leads to it."""
  with emulated_store.start() as running:
    yield running


@pytest.fixture
def store(
  serving: emulated_store.Store,
) -> Iterator[emulated_store.Store]:
  """The store, undisturbed, with everything leading to it."""
  serving.disturb('lost', 0)
  serving.set_latency(0)
  with mock.patch.dict(os.environ, serving.environment):
    yield serving


@pytest.fixture
def remote_folder(store: emulated_store.Store) -> str:
  """A folder in the bucket that no other test uses.

  TensorFlow remembers for 5 seconds what was where.
  """
  return f'{store.bucket}/{uuid.uuid4().hex[:8]}'
