"""Tests of the command that plans a run, without a compiler."""

import json

import pytest

from experiments.planning import chips, compiling, workload
from experiments.tools import plan
from nfnets import network
from nfnets.errors import UserError

_GIB = 2**30
# An update that averages 4 MB.
_TEXT = """\
HloModule jit_f

ENTRY %%main.1 (param.0: f32[1000000]) -> f32[1000000] {
  %%param.0 = f32[1000000]{0} parameter(0)
  %%fusion.1 = f32[8]{0} fusion(%%param.0), metadata={op_name="jvp(N)/nf_block_1"}, backend_config={"estimated_cycles":"%d"}
  ROOT %%all-reduce.1 = f32[1000000]{0} all-reduce(%%fusion.1)
}
"""  # noqa: E501


class Compiler:
  """Compiles nothing; keeps the workloads that it was given.

  20 GiB for 32 images, less 2 for each block that is recomputed. An image takes
  a million cycles, and a tenth more for each of these blocks, and a fifth for
  each part of the batch.
  """

  def __init__(self):
    self.works = []

  def __call__(self, chip, work):
    if work is None:
      return self._compiled(chip, 1, '')
    config = work.recipe.config
    blocks = min(network.count_remat(config.remat), sum(work.depths))
    parts = config.accumulate_steps
    peak = 2 + work.batch / parts / 32 * (18 - 2 * blocks)
    cycles = int(1e6 * work.batch * (1 + 0.1 * blocks + 0.2 * parts))
    self.works.append(work)
    return self._compiled(chip, peak, _TEXT % cycles)

  def _compiled(self, chip, peak, text):
    peak, capacity = int(peak * _GIB), int(chip.capacity_gib * _GIB)
    if peak > capacity:
      return compiling.Compiled(peak, capacity, 3.0)
    parts = {'arguments': _GIB, 'temporary': peak - _GIB, 'code': 0}
    return compiling.Compiled(peak, capacity, 3.0, text or 'HloModule', parts)


@pytest.fixture
def compiler(monkeypatch):
  compiler = Compiler()
  monkeypatch.setattr(compiling, 'compile_for', compiler)
  monkeypatch.setattr(workload.Workload, 'update', lambda work: work)
  monkeypatch.setattr(workload.Workload, 'evaluation', lambda work: None)
  return compiler


@pytest.fixture
def run_plan(run_command):
  """Returns a function that runs the command: (*args) -> Result."""

  def run(*args):
    return run_command('--config=digits', '--fake_data', *args, main=plan.main)

  return run


def test_a_plan_is_a_screen_and_a_line_of_json(compiler, run_plan, tmp_path):
  path = tmp_path / 'plan.json'
  result = run_plan(
    '--device=tpu_v3', '--batch=16', '--devices=8', f'--output={path}'
  )
  assert result.status == 0, result.log
  found = result.json
  assert json.loads(path.read_text()) == found
  assert found['fits'] and found['peak_gib'] == 11
  assert found['capacity_gib'] == 15.48
  assert (found['devices'], found['chips'], found['batch']) == (8, 4, 16)
  assert found['train_batch_size'] == 128
  # 1.2 M cycles for an image, at 0.94 GHz; and each chip sends its 4 MB twice,
  # but for its own quarter.
  sends = 2 * 0.75 * 4e6 / 328e9
  seconds = 16 * 1.2e6 / 0.94e9 + sends
  assert found['step_ms'] == pytest.approx(1e3 * seconds, rel=1e-4)
  assert found['communication_ms'] == pytest.approx(1e3 * sends, rel=1e-3)
  assert found['images_per_second'] == pytest.approx(128 / seconds, rel=1e-3)
  assert found['hours'] == pytest.approx(
    found['steps'] * seconds / 3600, abs=0.01
  )
  assert found['chip_hours'] == pytest.approx(4 * found['hours'], abs=0.05)
  assert found['cycles'] == {'stage 2': int(16 * 1.2e6)}
  lines = result.output.splitlines()[:-1]
  assert len(lines) < 40 and max(map(len, lines)) <= 80
  assert 'estimated' in result.output and 'digits on 8 x tpu_v3' in lines[0]
  assert len(compiler.works) == 1


def test_the_share_of_the_peak_counts_what_is_needed_once(compiler, run_plan):
  plain = run_plan('--device=tpu_v3', '--batch=8', '--quick').json
  again = run_plan('--device=tpu_v3', '--batch=8', '--quick', '--remat').json
  # Recomputing costs time, and is not of use.
  ratio = plain['step_ms'] / again['step_ms']
  assert again['mfu'] / plain['mfu'] == pytest.approx(ratio, rel=1e-3)
  flops = 6 * compiler.works[0].macs * 8
  peak = chips.get('tpu_v3').peak_flops
  assert plain['mfu'] == pytest.approx(
    flops / (plain['step_ms'] / 1e3) / peak, rel=1e-3
  )


@pytest.mark.slow
def test_what_does_not_fit_is_made_to_fit(compiler, run_plan):
  result = run_plan('--device=tpu_v3')
  assert result.status == 0, result.log
  found = result.json
  assert not found['fits'] and found['step_ms'] is None
  assert found['peak_gib'] == 20
  changes = {next(iter(c)): c for c in found['changes']}
  assert all(change['fits'] for change in changes.values())
  # 20 - 2 n <= 15.48; halves of the batch, and its parts, need 11.
  assert changes['remat']['remat'] == 3
  assert changes['accumulate_steps']['accumulate_steps'] == 2
  assert (changes['batch']['batch'], changes['batch']['devices']) == (16, 4)
  # The cheapest first, for each image: 1.2, 1.4 and 1.5 M cycles.
  assert [next(iter(c)) for c in found['changes']] == [
    'batch',
    'accumulate_steps',
    'remat',
  ]
  assert '--remat=3' in result.output and 'DOES NOT FIT' in result.output
  assert len(compiler.works) == 1 + 4 + 1 + 1


@pytest.mark.slow
def test_the_largest_batch_is_found(compiler, run_plan):
  result = run_plan('--device=tpu_v3', '--batch=8', '--search')
  # 2 + 18 b / 32 <= 15.48: 23 images would fit.
  found = result.json['largest_batch']
  assert (found['batch'], found['devices']) == (16, 8)
  assert 'the largest of the batches tried' in result.output


@pytest.mark.parametrize(
  'args, message',
  [
    (['--device=tpu_v9'], 'The devices are tpu_v3, tpu_v4'),
    ([], '--device is missing; it is one of tpu_v3'),
    (['--device=tpu_v3', '--remt=3'], 'Did you mean --remat'),
    (['--device=tpu_v3', '--remat=-3'], 'remat is -3'),
    (['--device=tpu_v3', '--batch=7'], 'which --batch=7 does not divide'),
  ],
)
def test_a_wrong_command_says_why(compiler, run_plan, args, message):
  result = run_plan(*args)
  assert result.status == 2
  assert message in result.log and not compiler.works


def test_a_missing_compiler_is_a_failure(run_plan, monkeypatch):
  def missing(*_):
    raise UserError("pip install 'nfnets[plan]'")

  monkeypatch.setattr(compiling, 'devices', missing)
  result = run_plan('--device=tpu_v5e')
  assert result.status == 1
  assert result.log.endswith("error: pip install 'nfnets[plan]'\n")
