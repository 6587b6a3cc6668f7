"""Tries everything once, and trains `digits` to the end.

Imports every module, has each other family make an update and an evaluation,
and trains an NFNet on the digits with the command that people use, which leaves
its results in runs/digits (where there is something already, in
runs/smoke_test). Ends with one line of JSON on standard output.
"""

import importlib
import json
import pathlib
import pkgutil
import shutil
import subprocess
import sys
import time
import types

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from experiments import configs  # noqa: E402

# The NFNets are not here, because one is trained on the digits.
_FAMILIES = (
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


def _print(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _import_everything() -> int:
  """Import the modules of the project; return how many."""
  count = 0
  for package in ('nfnets', 'experiments'):
    path = [str(_ROOT / package)]
    for module in pkgutil.walk_packages(path, f'{package}.'):
      try:
        importlib.import_module(module.name)
        count += 1
      except ModuleNotFoundError as error:
        if str(error.name).partition('.')[0] not in _OF_EXTRAS:
          raise
  return count


def _try_family(name: str) -> None:
  """Make an update and an evaluation of a small network."""
  import jax

  from experiments import jaxline_compat, loop

  start = time.monotonic()
  config = configs.load(f'{name}:small')
  config.training_steps = 1
  rng = jaxline_compat.init_rng(config)
  module = loop.Experiment('train', rng, config.experiment_kwargs.config)
  train_step_rng = module.initialize_train_step_rng(rng)
  state = types.SimpleNamespace(global_step=0, train_step_rng=train_step_rng)
  module.train_loop(config, state, ())
  loss = module.measure()['eval_loss']
  if not jax.numpy.isfinite(loss):
    raise ValueError(f'{name}: the loss after one update is {loss}')
  seconds = time.monotonic() - start
  _print(f'  {name}: one update, one evaluation ({seconds:.0f} s)')


def main() -> None:
  """Run the smoke test; exit with status 1 if it fails."""
  start = time.monotonic()
  _print('smoke test: importing everything')
  _print(f'  {_import_everything()} modules')
  import jax

  jax.config.update('jax_disable_most_optimizations', True)
  _print('smoke test: each other family, small, on random images')
  for name in _FAMILIES:
    _try_family(name)
  folder = 'runs/digits'
  if (_ROOT / folder).exists():
    folder = 'runs/smoke_test'
    shutil.rmtree(_ROOT / folder, ignore_errors=True)
  _print(f'smoke test: an NFNet on handwritten digits, in {folder}')
  # The command that the README has.
  args = '--config=digits', f'--checkpoint_dir={folder}'
  command = [sys.executable, _ROOT / 'experiments' / 'experiment.py', *args]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
  if done.returncode:
    sys.exit(f'smoke test: failed: {" ".join(map(str, command))}')
  trained = json.loads(done.stdout.splitlines()[-1])
  top_1 = trained['test_top_1_acc']
  if top_1 < _LEAST_TOP_1:
    sys.exit(
      f'smoke test: failed: accuracy {top_1:.1%}, below {_LEAST_TOP_1:.0%}'
    )
  _print(
    '\nEverything works. Next (after source .venv/bin/activate):\n'
    '  python examples/write_digits.py --folder=digits --count=2\n'
    f'  python -m nfnets.classify --weights={folder} --top=3 digits/\n'
    f'  python -m nfnets.report {folder}'
  )
  results = {
    'digits_test_top_1': top_1,
    'digits_steps': trained['step'],
    'checkpoint_dir': folder,
    'seconds': round(time.monotonic() - start, 1),
  }
  print(json.dumps(results))


if __name__ == '__main__':
  main()
