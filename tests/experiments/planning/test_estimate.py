"""Tests of what follows from compiled programs."""

import pytest

from experiments import configs
from experiments.planning import chips, compiling, estimate, workload

_GIB = 2**30
_PROGRAM = """\
HloModule jit_f

ENTRY %main.1 (param.0: f32[1000]) -> f32[1000] {
  %param.0 = f32[1000]{0} parameter(0)
  %fusion.1 = f32[8]{0} fusion(%param.0), metadata={op_name="jit(f)/jvp(NFNet)/nf_block_1/conv1/add"}, backend_config={"estimated_cycles":"940000"}
  ROOT %all-reduce.1 = f32[1000]{0} all-reduce(%fusion.1), metadata={op_name="jit(f)/psum"}
}
"""  # noqa: E501


@pytest.fixture(scope='module')
def work():
  config = configs.load('digits')
  config.experiment_kwargs.config.update(fake_data=True, use_ema=True)
  return workload.build(config, 2, 8)


def _plan(work, monkeypatch, update_gib, evaluation_gib):
  """Plans with programs of so much memory."""

  def compile_for(chip, program):
    peak = int(_GIB * (update_gib if program.donated else evaluation_gib))
    parts = {'arguments': 1, 'temporary': peak - 1, 'code': 0}
    return compiling.Compiled(peak, 16 * _GIB, 2.0, _PROGRAM, parts)

  monkeypatch.setattr(compiling, 'compile_for', compile_for)
  return estimate.plan(chips.get('tpu_v3'), work)


def test_evaluation_has_what_training_keeps_beside_it(work, monkeypatch):
  plan = _plan(work, monkeypatch, 10, 9)
  kept = work.bytes['optimizer'] + work.bytes['averages']
  assert kept > 2e6
  assert plan['eval_peak_gib'] == pytest.approx(9 + kept / _GIB, abs=6e-4)
  assert plan['fits']
  # What is kept decides: a megabyte is left.
  assert not _plan(work, monkeypatch, 10, 16 - 1 / 1024)['fits']


def test_what_does_not_fit_is_not_evaluated(work, monkeypatch):
  plan = _plan(work, monkeypatch, 17, 1)
  assert 'eval_peak_gib' not in plan and not plan['fits']


def test_cycles_and_what_is_averaged_are_read(work, monkeypatch):
  plan = _plan(work, monkeypatch, 10, 9)
  assert plan['cycles'] == {'stage 2': 940_000}
  # On one chip nothing leaves it.
  assert plan['chips'] == 1 and plan['communication_ms'] == 0
  assert plan['step_ms'] == pytest.approx(1)
