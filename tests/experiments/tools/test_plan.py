"""Tests of the command that plans a run, without a compiler."""

import json

import pytest

from experiments.planning import chips, compiling, estimate, table
from experiments.tools import plan
from nfnets import base

_GIB = 2**30


class Compiler:
  """Plans without compiling; keeps what was planned.

  20 GiB for 32 images, less 2 for each block that is recomputed. An image takes
  a million cycles, and a tenth more for each of these blocks, and a fifth for
  each part of the batch.
  """

  def __init__(self):
    self.plans = []

  def __call__(self, chip, work, evaluates=True):
    config = work.recipe.config
    blocks = min(base.count_remat(config.remat), sum(work.depths))
    parts = config.accumulate_steps
    peak = 2 + work.batch / parts / 32 * (18 - 2 * blocks)
    update = self._compiled(chip, peak)
    cycles = int(1e6 * work.batch * (1 + 0.1 * blocks + 0.2 * parts))
    self.plans.append(
      estimate.Plan(
        chip,
        work,
        update,
        self._compiled(chip, 1) if evaluates and update.fits else None,
        {'stage 2': cycles} if update.fits and chip.clock_ghz else {},
        reduced_bytes=4_000_000,
      )
    )
    return self.plans[-1]

  def _compiled(self, chip, peak):
    peak, capacity = int(peak * _GIB), int(chip.capacity_gib * _GIB)
    if peak > capacity:
      return compiling.Compiled(peak, capacity, 3.0)
    parts = {'arguments': _GIB, 'temporary': peak - _GIB, 'code': 0}
    return compiling.Compiled(peak, capacity, 3.0, 'HloModule', parts)


@pytest.fixture
def compiler(monkeypatch):
  compiler = Compiler()
  monkeypatch.setattr(estimate, 'plan', compiler)
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
  assert found['step_ms'] == pytest.approx(1e3 * seconds, abs=0.01)
  assert found['communication_ms'] == pytest.approx(1e3 * sends, abs=0.01)
  assert found['images_per_second'] == pytest.approx(128 / seconds, rel=1e-3)
  assert found['hours'] == pytest.approx(
    found['steps'] * seconds / 3600, abs=0.01
  )
  assert found['chip_hours'] == pytest.approx(4 * found['hours'], abs=0.05)
  assert found['cycles'] == {'stage 2': int(16 * 1.2e6)}
  assert found['compile_seconds'] == 6
  lines = result.output.splitlines()[:-1]
  assert len(lines) < 40 and max(map(len, lines)) <= 80
  assert 'estimated' in result.output and 'digits on 8 x tpu_v3' in lines[0]
  assert len(compiler.plans) == 1


def test_the_share_of_the_peak_counts_what_is_needed_once(compiler, run_plan):
  plain = run_plan('--device=tpu_v3', '--batch=8', '--quick').json
  again = run_plan('--device=tpu_v3', '--batch=8', '--quick', '--remat').json
  # Recomputing costs time, and is not of use.
  ratio = plain['step_ms'] / again['step_ms']
  assert again['mfu'] / plain['mfu'] == pytest.approx(ratio, rel=1e-3)
  flops = 6 * compiler.plans[0].work.macs * 8
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
  assert len(compiler.plans) == 1 + 3 + 1 + 1


@pytest.mark.slow
def test_the_largest_batch_is_found(compiler, run_plan):
  result = run_plan('--device=tpu_v3', '--batch=8', '--search')
  assert result.status == 0, result.log
  # 2 + 18 b / 32 <= 15.48: 23 images, of which eight go together.
  assert result.json['largest_batch']['batch'] == 16
  assert result.json['largest_batch']['devices'] == 8
  result = run_plan('--device=tpu_v3', '--batch=64', '--search', '--remat')
  assert result.json['largest_batch']['batch'] == 48


def test_gpus_are_planned_for_memory_alone(compiler, run_plan):
  found = run_plan('--device=h100', '--quick')
  assert found.json['fits'] and found.json['capacity_gib'] == 60
  assert found.json['step_ms'] is found.json['mfu'] is None
  assert 'cycles' not in found.output.partition('{')[0]


@pytest.mark.parametrize(
  'args, message',
  [
    (['--device=tpu_v9'], 'The devices are tpu_v3, tpu_v4'),
    ([], '--device is missing; it is one of tpu_v3'),
    (['--device=tpu_v3', '--remt=3'], 'Did you mean --remat'),
    (['--device=tpu_v3', '--remat=-3'], 'remat is -3'),
    (['--device=tpu_v3', '--batch=7'], 'which --batch=7 does not divide'),
    (['--all'], 'Unknown arguments: --config=digits'),
  ],
)
def test_a_wrong_command_says_why(compiler, run_plan, args, message):
  result = run_plan(*args)
  assert result.status == 2
  assert message in result.log and not compiler.plans


def test_a_missing_compiler_is_a_failure(run_plan, monkeypatch):
  def missing(*_):
    raise compiling.CompilerMissingError("pip install 'nfnets[plan]'")

  monkeypatch.setattr(compiling, 'devices', missing)
  result = run_plan('--device=tpu_v5e')
  assert result.status == 1
  assert result.log.endswith("error: pip install 'nfnets[plan]'\n")


def test_the_table_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
  rows = [('f0', 'tpu_v3', ''), ('f1', 'tpu_v3', ''), ('f1', 'tpu_v5e', '')]
  monkeypatch.setattr(table, 'rows', lambda: iter(rows))
  path, started = tmp_path / 'table.json', []

  class Process:
    returncode, stderr = 0, ''
    stdout = json.dumps(
      {'fits': True, 'peak_gib': 2.26, 'step_ms': 60.38, 'mfu': 0.36}
    )

  def run(command, **_):
    started.append(command[2:4])
    if len(started) == 2:
      raise KeyboardInterrupt
    return Process

  monkeypatch.setattr(table.subprocess, 'run', run)
  with pytest.raises(KeyboardInterrupt):
    table.make(path, print)
  table.make(path, print)
  assert [config for config, _ in started] == [
    '--config=f0',
    '--config=f1',
    '--config=f1',
    '--config=f1',
  ]
  assert len(json.loads(path.read_text())) == 3
  text = table.render(path)
  assert '| f0 | 2.3 GiB, 60 ms, 36 % |  |' in text
  # The paper measured 73.3 ms.
  assert '| f0 | 60.4 | 73.3 | 1.21 |' in text


def test_the_table_says_with_what_a_recipe_fits(tmp_path):
  place = {'config': 'f5', 'device': 'tpu_v3', 'fits': True, 'mfu': 0.5}
  rows = [
    {**place, 'setting': '', 'fits': False, 'peak_gib': 15.9, 'step_ms': None},
    {**place, 'setting': '--remat=6', 'peak_gib': 14.0, 'step_ms': 1100.0},
    {**place, 'setting': '--remat=9', 'peak_gib': 13.0, 'step_ms': 1200.0},
  ]
  path = tmp_path / 'table.json'
  path.write_text(json.dumps(rows[:1]))
  assert '| f5 | 15.9 GiB: no |' in table.render(path)
  path.write_text(json.dumps(rows))
  cell = '15.9 GiB: no; `--remat=6`: 14.0 GiB, 1,100 ms, 50 %'
  assert f'| f5 | {cell} |' in table.render(path)


def test_the_table_is_of_all_variants_and_devices():
  rows = list(table.rows())
  assert len(rows) == len(set(rows))
  names = {f'f{i}{plus}' for i in range(8) for plus in ('', '+')} | {'f6:sam'}
  plain = {(name, device) for name, device, setting in rows if not setting}
  assert plain == {(name, device) for name in names for device in chips.CHIPS}
