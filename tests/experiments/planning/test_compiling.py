"""Tests of compiling for devices that are not there."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from experiments import planning
from experiments.planning import chips, compiling, workload
from nfnets import conv
from nfnets.errors import UserError


@pytest.mark.parametrize(
  'message, expected',
  [
    (
      'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, '
      'the total memory required for HLO temporaries (18.25G) exceeds '
      'available HBM (15.75G). HLO module: jit_f.',
      (18.25, 15.75),
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G '
      'of 15.48G hbm. Exceeded hbm capacity by 5.02G.',
      (20.5, 15.48),
    ),
    (
      'RESOURCE_EXHAUSTED: the total memory required for HLO temporaries '
      '(1536.0M) exceeds available HBM (1.00G).',
      (1.5, 1),
    ),
  ],
)
def test_the_compiler_says_how_much_it_wanted(message, expected):
  found = compiling.out_of_memory(message)
  assert [size / 2**30 for size in found] == pytest.approx(expected)


def test_other_errors_are_none_of_memory():
  assert compiling.out_of_memory('INVALID_ARGUMENT: (3G) of (2G)') is None
  assert compiling.out_of_memory('RESOURCE_EXHAUSTED: vmem') is None


def test_a_missing_compiler_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError) as error:
    compiling.devices(chips.get('tpu_v3'))
  assert "pip install 'nfnets[plan]'" in str(error.value)
  assert '\n' not in str(error.value)


def test_no_device_is_looked_for(monkeypatch):
  monkeypatch.setattr(os, 'environ', {'JAX_PLATFORMS': 'tpu'})
  planning.prepare()
  assert os.environ['JAX_PLATFORMS'] == 'cpu'
  assert os.environ['TPU_SKIP_MDS_QUERY'] == '1'


def test_programs_are_those_that_the_device_itself_would_trace(monkeypatch):
  """Compiled for CPUs, which have another form of grouped convolutions."""
  monkeypatch.setattr(compiling, 'devices', lambda chip: jax.devices()[:2])

  def update(kernel, images, key):
    out = conv.conv2d(images, kernel, groups=2)
    noise = jax.random.normal(key)
    mean = jax.lax.pmean(jnp.mean(out), workload.AXIS)
    return kernel + mean + noise

  program = workload.StepSpec(
    update,
    (
      jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32),
      jax.ShapeDtypeStruct((5, 8, 8, 4), jnp.float32),
      jax.ShapeDtypeStruct((2,), jnp.uint32),
    ),
    (False, True, False),
    (0,),
  )
  compiled = compiling.compile_for(chips.get('tpu_v3'), program)
  assert 'feature_group_count=2' in compiled.text
  # Each has five images, and averages with the other.
  assert 'f32[5,8,8,4]' in compiled.text and 'f32[10,' not in compiled.text
  assert 'all-reduce' in compiled.text
  assert 'input_output_alias={ {}: (0, {}' in compiled.text.splitlines()[0]
  assert compiled.fits and compiled.capacity_bytes == int(15.48 * 2**30)
  kernel, images = 4 * 3 * 3 * 2 * 4, 4 * 5 * 8 * 8 * 4
  assert compiled.parts['arguments'] == kernel + images + 8
