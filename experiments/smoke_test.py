"""Tries everything once, and trains `digits` to the end.

Imports every module, runs each family of recipes in its small form, then trains
the digits with the command that people use. Ends with one line of JSON on
standard output.
"""

import importlib
import json
import pathlib
import pkgutil
import subprocess
import sys
import tempfile
import time
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

_FAMILIES = (
  'f0',
  'nf_regnet_b0',
  'nf_resnet50',
  'resnet50',
  'skipinit_resnet50',
  'fixup_resnet50',
)
# Packages of extras, which run.sh does not install, and their modules need.
_OF_EXTRAS = (
  'dp_accounting',
  'gradio',
  'libtpu',
  'onnx',
  'onnxruntime',
  'openvino',
  'optuna',
)
# The recipe reaches 98 to 99 %.
_LEAST_TOP_1 = 0.97


def _say(text: str) -> None:
  print(f'smoke test: {text}', file=sys.stderr, flush=True)


def _import_everything() -> int:
  """Imports the modules of the project; returns how many."""
  names = []
  for package in ('nfnets', 'experiments'):
    path = [str(_ROOT / package)]
    names += [m.name for m in pkgutil.walk_packages(path, f'{package}.')]
  count = 0
  for name in names:
    try:
      importlib.import_module(name)
      count += 1
    except ModuleNotFoundError as error:
      if str(error.name).partition('.')[0] not in _OF_EXTRAS:
        raise
  return count


def _run(folder: str, config: str) -> dict[str, Any]:
  """Runs the command in a folder of its own; returns what it ends with."""
  command = [
    sys.executable,
    str(_ROOT / 'experiments' / 'experiment.py'),
    f'--config={config}',
    f'--checkpoint_dir={folder}/{config}',
  ]
  result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
  if result.returncode:
    _say(f'failed: {" ".join(command)}')
    sys.exit(1)
  return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
  """Runs the smoke test; exits with status 1 if it fails."""
  start = time.time()
  _say(f'imported {_import_everything()} modules')
  with tempfile.TemporaryDirectory() as folder:
    for config in _FAMILIES:
      _say(f'{config}:small, on random images')
      _run(folder, f'{config}:small')
    _say('training on 1,437 handwritten digits')
    trained = _run(folder, 'digits')
  top_1 = trained['test_top_1_acc']
  _say(f'top-1 on the {trained["test_num_examples"]} test digits: {top_1:.1%}')
  if top_1 < _LEAST_TOP_1:
    _say(f'failed: that should be {_LEAST_TOP_1:.0%} or more')
    sys.exit(1)
  results = {
    'digits_test_top_1': top_1,
    'digits_steps': trained['step'],
    'seconds': round(time.time() - start, 1),
  }
  print(json.dumps(results))


if __name__ == '__main__':
  main()
