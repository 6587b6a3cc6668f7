"""Tests of the folder of compiled programs, and of what JAX does with it."""

import os
import pathlib
import stat
import subprocess
import sys
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import hosts

_SETTINGS = (
  'jax_compilation_cache_dir',
  'jax_compilation_cache_max_size',
  'jax_persistent_cache_min_compile_time_secs',
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The user's cache folder, of JAX without a folder of its own."""
  before = {name: getattr(jax.config, name) for name in _SETTINGS}
  for name, value in zip(_SETTINGS, (None, -1, 0), strict=True):
    jax.config.update(name, value)
  jax_cache.reset_cache()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  yield tmp_path / 'cache' / 'nfnets' / 'compiled'
  for name, value in before.items():
    jax.config.update(name, value)
  jax_cache.reset_cache()


def _compute(scale=2.0):
  """Compiles a program anew, or finds it."""
  x = np.arange(5, dtype=np.float32)
  got = jax.jit(lambda x: jnp.sin(x) * scale)(x)
  np.testing.assert_allclose(got, np.sin(x) * scale, rtol=1e-6)


def _entries(folder):
  return {p: p.read_bytes() for p in sorted(folder.glob('*-cache'))}


def test_the_folder_is_private_and_programs_are_found_in_it(cache):
  hosts.keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir == str(cache)
  assert stat.S_IMODE(cache.stat().st_mode) == 0o700
  hits = []
  jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
  try:
    _compute()
    assert _entries(cache) and '/jax/compilation_cache/cache_hits' not in hits
    _compute()
  finally:
    jax.monitoring.clear_event_listeners()
  assert '/jax/compilation_cache/cache_hits' in hits


def test_a_folder_that_others_can_read_is_closed(cache):
  cache.mkdir(parents=True, mode=0o777)
  cache.chmod(0o777)
  hosts.keep_compiled_programs()
  assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_the_environments_folder_is_taken_as_it_is(cache, tmp_path):
  """Also where another program has written to it, without a bound."""
  folder = tmp_path / 'given'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  _compute()
  assert len(_entries(folder)) == 1
  jax_cache.reset_cache()
  hosts.keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert not cache.exists()
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    _compute(scale=5.0)
  assert len(_entries(folder)) == 2


@pytest.mark.parametrize('kind', ['link', 'file', 'foreign'])
def test_what_is_not_the_users_own_is_not_run(cache, kind, monkeypatch, caplog):
  cache.parent.mkdir(parents=True)
  if kind == 'link':
    (cache.parent / 'elsewhere').mkdir()
    cache.symlink_to(cache.parent / 'elsewhere')
  elif kind == 'file':
    cache.write_text('')
  else:
    cache.mkdir()
    monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
  hosts.keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir is None
  assert 'Compiled programs are not kept' in caplog.text
  assert str(cache) in caplog.text
  _compute()


def test_the_size_is_bounded(cache):
  hosts.keep_compiled_programs()
  assert jax.config.jax_compilation_cache_max_size == 4 * 2**30
  _compute()
  size = sum(len(content) for content in _entries(cache).values())
  jax.config.update('jax_compilation_cache_max_size', 3 * size)
  jax_cache.reset_cache()
  for i in range(6):
    _compute(scale=i + 3.0)
  entries = _entries(cache)
  assert 1 < len(entries) < 6
  assert sum(len(content) for content in entries.values()) <= 3 * size


def test_what_a_killed_run_left_does_not_stop_the_next(cache):
  """A program without the file that says when it was used last."""
  hosts.keep_compiled_programs()
  _compute()
  for path in cache.glob('*-atime'):
    path.unlink()
  jax.config.update('jax_compilation_cache_dir', None)
  jax_cache.reset_cache()
  hosts.keep_compiled_programs()
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    _compute(scale=5.0)
  assert _entries(cache)


_PROGRAM = """
import jax
from experiments import hosts
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
hosts.keep_compiled_programs()
for i in range(5):
  jax.block_until_ready(jax.jit(lambda x: x * i + 1)(2.0))
"""


def _start(program, **environment):
  env = {k: v for k, v in os.environ.items() if 'CACHE' not in k}
  return subprocess.Popen(
    [sys.executable, '-W', 'error', '-c', program],
    cwd=pathlib.Path(__file__).parents[2],
    env={**env, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_processes_can_share_the_folder(tmp_path):
  runs = [_start(_PROGRAM, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
  for run in runs:
    log = run.communicate(timeout=300)[1]
    assert run.returncode == 0, log
    assert log == ''
  assert len(_entries(tmp_path / 'nfnets' / 'compiled')) >= 5
