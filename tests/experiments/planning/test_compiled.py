"""What the TPU compiler makes of an update in bfloat16.

The network is small, and has all that the published ones have. The compiler is
not in the environment of the tests, where JAX would look for a TPU at every
start: it is installed for these alone.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

from experiments import configs, planning
from experiments.planning import chips, compiling, hlo, workload

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def work():
  config = configs.load('f0')
  ours = config.experiment_kwargs.config
  ours.update(
    model='nfnet_digits',
    image_size=32,
    eval_image_size=32,
    remat=2,
    accumulate_steps=2,
  )
  return workload.build(config, 2, 16)


@pytest.fixture(scope='module')
def libtpu(tmp_path_factory):
  """Makes the compiler importable, or skips."""
  if importlib.util.find_spec('libtpu') is not None:
    yield
    return
  folder = str(tmp_path_factory.mktemp('libtpu'))
  pip = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--target']
  done = subprocess.run(
    [*pip, folder, 'libtpu==0.0.52'], capture_output=True, text=True
  )
  if done.returncode:
    pytest.skip(f'libtpu cannot be installed: {done.stderr[-200:]}')
  sys.path.insert(0, folder)
  yield
  sys.path.remove(folder)
  shutil.rmtree(folder)


@pytest.fixture(scope='module')
def compiled(work, libtpu):
  before = dict(os.environ)
  planning.prepare()  # The compiler, which is no Python, reads these.
  yield compiling.compile_for(chips.get('tpu_v3'), work.update())
  for key in os.environ.keys() - before.keys():
    del os.environ[key]
  os.environ.update(before)


@pytest.fixture(scope='module')
def read(compiled):
  return hlo.HloText(compiled.text)


def test_no_convolution_computes_in_float32(compiled):
  dtypes = dict(re.findall(r'%([\w.\-]+) = (\w+)\[', compiled.text))
  operands = re.findall(
    r' (?:convolution|dot)\(%([\w.\-]+), %([\w.\-]+)\)', compiled.text
  )
  assert len(operands) > 50
  assert {dtypes[name] for pair in operands for name in pair} == {'bf16'}


def test_nothing_goes_to_the_host_or_comes_from_there(compiled):
  transfers = r' (infeed|outfeed|send|recv)(-done)?\(|is_host_transfer=true'
  assert not re.search(transfers, compiled.text)


def test_all_of_the_state_is_donated(compiled, work):
  header = compiled.text.partition('\n')[0]
  donated = len(re.findall(r'\{[\d, ]*\}, (?:may|must)-alias\)', header))
  # A counter or two may have places of their own.
  assert 0 <= len(jax.tree.leaves(work.state)) - donated <= 2


def test_parts_are_computed_in_a_loop(read, work):
  lines = list(read.walk(read.entry))
  assert any(' while(' in line for line, _ in lines)
  assert {n for line, n in lines if 'estimated_cycles' in line} == {1, 2}
  cycles = read.cycles(work.depths)
  stages = {f'stage {i}' for i in (1, 2, 3, 4)}
  assert {'stem', 'head', 'optimizer', *stages} <= set(cycles)
  assert cycles.get('other', 0) < 0.05 * sum(cycles.values())


def test_devices_average_the_gradient_and_little_more(read, work):
  extra = read.reduced_bytes() - work.bytes['parameters']
  assert 0 <= extra < 1000


def test_memory_is_accounted_for(compiled, work):
  assert compiled.fits
  kept = sum(work.bytes.values())
  # Arrays as small as these are padded to the tiles of the memory.
  assert kept <= compiled.parts['arguments'] < 1.6 * kept
