"""Times NFNet-F0 with `nfnets.conv`'s lowering beside XLA's own convolution.

python benchmarks/conv_lowering.py [--timm_python=/path/to/python]

Prints the seconds of a training step (forward and backward) and of inference,
float32, for both forms in turn, their ratios, and the peak memory of a whole
training step with optimizer and EMA. With the Python of an environment that has
timm and PyTorch, its `dm_nfnet_f0` is timed in between, too. The last line of
standard output is JSON.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

# For `experiments`, which is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import nfnets  # noqa: E402
from nfnets import conv, utils  # noqa: E402

_TIMM = """
import statistics, sys, time, timm, torch
batch, train_size, test_size, repeats = map(int, sys.argv[1:])
model = timm.create_model('dm_nfnet_f0').to(memory_format=torch.channels_last)
def images(size):
  x = torch.randn(batch, 3, size, size)
  return x.to(memory_format=torch.channels_last)
def train():
  loss = torch.nn.functional.cross_entropy(model(x), torch.arange(batch))
  loss.backward()
def infer():
  with torch.inference_mode():
    model(x)
runs = (('train', train_size, train), ('infer', test_size, infer))
for name, size, fn in runs:
  model.train(name == 'train')
  x = images(size)
  fn()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    fn()
    times.append(time.perf_counter() - start)
  print(name, statistics.median(times))
"""


def _timed(fn, *args) -> float:
  """Returns the seconds of one call."""
  start = time.perf_counter()
  jax.block_until_ready(fn(*args))
  return time.perf_counter() - start


def _compile(lowering: str, batch: int, train_size: int, test_size: int):
  """Returns {'train': call, 'infer': call} of F0 in one form."""
  model = nfnets.create_model('nfnet_f0')
  params, state = model.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  labels = jax.nn.one_hot(jnp.arange(batch), 1000)

  def images(size):
    shape = (batch, size, size, 3)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  def loss(params, images):
    key = jax.random.key(1)
    out, _ = model.apply(params, state, key, images, is_training=True)
    return jnp.mean(utils.softmax_cross_entropy(out['logits'], labels))

  def infer(params, images):
    out, _ = model.apply(params, state, None, images, is_training=False)
    return out['logits']

  calls = {}
  with conv.lowering(lowering):
    for name, fn, size in (
      ('train', jax.grad(loss), train_size),
      ('infer', infer, test_size),
    ):
      x = images(size)
      compiled = jax.jit(fn).lower(params, x).compile()
      _timed(compiled, params, x)  # Warms up.
      calls[name] = lambda c=compiled, x=x: _timed(c, params, x)
  return calls


def _measure_step_memory(lowering: str, batch: int) -> None:
  """Makes two whole training steps of F0 and prints their memory, in bytes."""
  from experiments import step as step_lib
  from experiments.configs import nfnet
  from nfnets import optim

  config = nfnet.get_config('f0').experiment_kwargs.config
  config.bfloat16 = False
  model = nfnets.create_model('nfnet_f0', **config.model_kwargs)
  optimizer = optim.sgd_agc(0.1)
  state = jax.jit(
    lambda rng: step_lib.init_train_state(model, optimizer, True, rng)
  )(jax.random.key(0))
  step = step_lib.make_train_step(model, optimizer, lambda _: 0.1, config)
  shape = (batch, config.image_size, config.image_size, 3)
  images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
  data = {'images': images, 'labels': np.arange(batch)}
  rng = jax.random.PRNGKey(0)
  with conv.lowering(lowering):
    lowered = jax.jit(step, donate_argnums=0).lower(state, data, rng)
  compiled = lowered.compile()
  analysis = compiled.memory_analysis()
  for _ in range(2):
    state, _ = compiled(state, data, rng)
  jax.block_until_ready(state)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  program = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
  print(json.dumps({'process': peak, 'program': program}))


def _output(command: list[str]) -> str:
  result = subprocess.run(
    command, stdout=subprocess.PIPE, text=True, check=True
  )
  return result.stdout


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--train_size', type=int, default=192, help='pixels')
  parser.add_argument('--test_size', type=int, default=256, help='pixels')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--timm_python', help='a Python with timm and PyTorch')
  parser.add_argument('--memory_of', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.memory_of:
    _measure_step_memory(args.memory_of, args.batch)
    return

  sizes = (args.batch, args.train_size, args.test_size)
  calls = {name: _compile(name, *sizes) for name in ('plain', 'split')}
  times = {name: {'train': [], 'infer': []} for name in calls}
  for what in ('train', 'infer'):
    for _ in range(args.repeats):  # In turn, so that both see the same noise.
      for name in calls:
        times[name][what].append(calls[name][what]())
  medians = {
    name: {what: statistics.median(t) for what, t in of.items()}
    for name, of in times.items()
  }
  if args.timm_python:
    command = [args.timm_python, '-c', _TIMM, *map(str, sizes)]
    output = subprocess.run(
      [*command, str(args.repeats)],
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    ).stdout
    medians['timm'] = {
      line.split()[0]: float(line.split()[1]) for line in output.splitlines()
    }

  results = {'seconds': medians, 'batch': args.batch}
  for name in medians:
    if name != 'split':
      results[f'{name}_over_split'] = {
        what: medians[name][what] / medians['split'][what]
        for what in ('train', 'infer')
      }
  results['step_bytes'] = {}
  for name in ('plain', 'split'):
    command = [sys.executable, __file__, f'--memory_of={name}']
    command.append(f'--batch={args.batch}')
    results['step_bytes'][name] = json.loads(_output(command).splitlines()[-1])

  _say(f'NFNet-F0, float32, batch {args.batch}, {jax.devices()[0].device_kind}')
  for what, size in (('train', args.train_size), ('infer', args.test_size)):
    _say(f'{what}, {size} px:')
    for name, of in medians.items():
      ratio = of[what] / medians['split'][what]
      _say(f'  {name:6}{of[what]:8.3f} s  {ratio:6.2f} of split')
  for name, of in results['step_bytes'].items():
    _say(
      f'whole training step, {name}: {of["program"] / 2**30:.2f} GiB for the '
      f'program, {of["process"] / 2**30:.2f} GiB at most for the process'
    )
  print(json.dumps(results))


if __name__ == '__main__':
  main()
