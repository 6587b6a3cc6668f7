"""Mistakes on the command line are answered before JAX is imported."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Runs a command, and then says which of the large packages it has imported.
_PROGRAM = """
import atexit, runpy, sys
large = {'jax', 'tensorflow', 'haiku', 'orbax', 'matplotlib'}
atexit.register(lambda: print('IMPORTED', *sorted(large & set(sys.modules))))
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith('.py') else runpy.run_module
run(sys.argv[0], run_name='__main__')
"""
_EXPERIMENT = 'experiments/experiment.py'


@pytest.mark.parametrize(
  'command, status, message',
  [
    ([_EXPERIMENT, '--help'], 0, '--train_batch_size=4096'),
    ([_EXPERIMENT, '--config=f99'], 2, "There is no config 'f99'"),
    ([_EXPERIMENT, '--config=f0', '--traning_steps=1'], 2, '--training_steps'),
    ([_EXPERIMENT, '--config=f0', '--jaxline_mod=x'], 2, '--jaxline_mode'),
    ([_EXPERIMENT, '--config=f0', '--lr=high'], 2, '--lr=high'),
    ([_EXPERIMENT, '--config=finetune', '--data=/no'], 1, 'no folder /no.'),
    ([_EXPERIMENT, '--config=finetune', '--data=no'], 1, "dataset 'no'"),
    ([_EXPERIMENT, '--config=digits', '--weights=/no'], 1, '/no: there is no'),
    (
      [_EXPERIMENT, '--config=f0', '--jaxline_mode=eval'],
      *(1, 'No checkpoint in runs/f0/latest'),
    ),
    *(
      ([f'nfnets.{name}', '--help'], 0, 'usage: python -m nfnets.')
      for name in ('classify', 'embed', 'report', 'card', 'export', 'demo')
    ),
    (['nfnets.classify', '--weihgts=x', 'x.png'], 2, 'Did you mean --weights?'),
    (['nfnets.classify', '--weights=/no', 'x.png'], 1, '/no: there is no'),
    (['nfnets.probe', '--weights=nfnet_f0', '--data=/no'], 1, 'no folder /no.'),
    (['nfnets.report', '/no'], 1, 'there is no /no/run.json'),
    (['experiments/tools/plan.py', '--help'], 0, '--device'),
    (['experiments/tools/plan.py', '--config=f99'], 2, "no config 'f99'"),
    (
      ['experiments/tools/show_batch.py', '--config=f99', '--output=x.png'],
      *(2, "There is no config 'f99'"),
    ),
    (['experiments/tools/plot_runs.py', '/no'], 1, 'no training run in /no'),
    (
      ['experiments/tools/extract_weights.py', '/no', '--output=x.npz'],
      *(1, 'there is no checkpoint in /no/latest'),
    ),
    (['experiments/tools/study.py', '--help'], 0, 'sweep'),
  ],
)
def test_help_and_mistakes_need_neither_jax_nor_tensorflow(
  command, status, message, tmp_path
):
  if command[0].endswith('.py'):
    command = [str(_ROOT / command[0]), *command[1:]]
  result = subprocess.run(
    [
      sys.executable,
      '-c',
      f'import sys; sys.path[0] = {str(_ROOT)!r}{_PROGRAM}',
    ]
    + command,
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  *output, imported = result.stdout.splitlines()
  assert result.returncode == status, result.stderr
  assert message in '\n'.join(output) + result.stderr
  assert 'Traceback' not in result.stderr
  assert imported == 'IMPORTED'
  assert not list(tmp_path.iterdir())
