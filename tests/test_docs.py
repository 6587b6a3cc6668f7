"""Runs the commands of README and docs, as they stand there.

Blocks of `bash` and `python` are run in the order of the pages, in a copy of
the repository, after a short run in the folder that ./run.sh leaves. Of blocks
marked with what they need, such as ImageNet, only the options are checked.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import tiny_imagenet

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGES = (
  'README.md',
  'docs/training.md',
  'docs/hosts.md',
  'docs/datasets.md',
  'docs/weights.md',
  'docs/finetuning.md',
  'docs/clipping.md',
  'docs/agc.md',
  'docs/inference.md',
  'docs/runtimes.md',
  'docs/demo.md',
  'docs/many_machines.md',
  'docs/looking.md',
  'docs/buckets.md',
  'docs/planning.md',
  'docs/private.md',
  'docs/signal.md',
  'docs/benchmarks.md',
  'docs/design.md',
)
# What ./run.sh does, with fewer epochs.
_DIGITS = 'python experiments/experiment.py --config=digits --num_epochs=4'
_BLOCK = re.compile(r'^```(\w+)(?: needs: ([^\n]+))?\n(.*?)^```$', re.M | re.S)


def test_all_pages_and_all_of_their_blocks_are_known():
  pages = {'README.md', *(f'docs/{p.name}' for p in _ROOT.glob('docs/*.md'))}
  assert pages - set(_PAGES) == {'docs/api.md', 'docs/models.md'}
  for page in _PAGES:
    text = (_ROOT / page).read_text()
    fences = re.findall(r'^```(.*)$', text, re.M)[::2]
    known = r'(bash|python)( needs: .+)?|text'
    assert all(re.fullmatch(known, f) for f in fences), (page, fences)


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
  """A copy of the files, a tiny ImageNet and a run; returns the environment."""
  folder = tmp_path_factory.mktemp('docs')
  skipped = shutil.ignore_patterns('.*', '__pycache__', 'runs', '*.egg-info')
  shutil.copytree(_ROOT, folder / 'clone', ignore=skipped)
  data_dir = folder / 'tensorflow_datasets'
  tiny_imagenet.make(str(data_dir))
  paths = f'{pathlib.Path(sys.executable).parent}{os.pathsep}'
  env = {
    **os.environ,
    'PATH': paths + os.environ['PATH'],
    'TFDS_DATA_DIR': str(data_dir),
  }
  _run('bash', _DIGITS, folder / 'clone', env)
  return folder / 'clone', env


@pytest.mark.slow
def test_commands_run_as_they_stand_there(clone, subtests):
  folder, env = clone
  helps: dict[str, str] = {}
  for page in _PAGES:
    for language, needs, text in _BLOCK.findall((_ROOT / page).read_text()):
      if language == 'text':
        continue
      with subtests.test(page=page, text=text):
        if needs:
          _look_up_options(text, folder, env, helps)
        else:
          _run(language, text, folder, env)


def _run(language: str, text: str, folder: pathlib.Path, env: dict) -> None:
  # Set-up and tests run these pages in turn.
  lines = text.splitlines()
  text = '\n'.join(
    x for x in lines if not x.startswith(('./run.sh', 'source '))
  )
  program = ['bash', '-e'] if language == 'bash' else [sys.executable]
  result = subprocess.run(
    [*program, '-c', text], cwd=folder, env=env, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr[-3000:]


def _look_up_options(
  text: str, folder: pathlib.Path, env: dict, helps: dict[str, str]
) -> None:
  """Checks that --help of each program has the options that are given.

  Args:
    text: of a block.
    folder: where the programs are.
    env: the environment.
    helps: what `--help` of each program printed; is filled here.
  """
  for command in text.replace('\\\n', ' ').splitlines():
    program = re.search(
      r'python (-m [\w.]+|[\w/]+\.py(?: (?:lr|signal|sweep)\b)?)', command
    )
    if program is None:
      continue
    if program[1] not in helps:
      result = subprocess.run(
        [sys.executable, *program[1].split(), '--help'],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
      )
      assert result.returncode == 0, result.stderr[-3000:]
      helps[program[1]] = result.stdout + result.stderr
    for option in re.findall(r' (--\w+)', command[program.end() :]):
      assert option in helps[program[1]], option
