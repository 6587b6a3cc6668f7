"""Time and memory of a training step that clips each example's gradient.

python benchmarks/per_example.py [--config=digits] [--batch=64]
    [--image_size=0] [--by=norm,unit] [--chunks=1,8,64] [--repeats=5]

Makes whole training steps (forward, backward, optimizer and average) of one
recipe on random images, in float32, without and with `clip_per_example`, at so
many examples' gradients at once, and prints the median seconds and the memory
of each, and their ratios to the plain step. SAM, where a recipe has it, is left
out of all.

`temporary_mib` is the temporary memory that XLA plans for the step on this
machine. The last line of standard output is JSON.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

# For `experiments`, which is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import configs, recipe  # noqa: E402
from experiments import step as step_lib  # noqa: E402


def _prepare(args, by: str, chunk: int):
  """Returns a compiled step, and what makes its arguments."""
  config = configs.load(args.config).experiment_kwargs.config
  config.update(
    bfloat16=False,
    fake_data=True,
    sam_rho=0.0,
    train_batch_size=args.batch,
    clip_per_example=by,
  )
  config.per_example.chunk = chunk
  size = args.image_size or config.image_size
  built = recipe.build(config, jax.random.PRNGKey(0), num_devices=1)
  model, optimizer = built.model, built.optimizer
  init = jax.jit(
    lambda rng: step_lib.init_train_state(model, optimizer, config.use_ema, rng)
  )
  rng = np.random.default_rng(0)
  rows = args.batch * config.augmentation_multiplicity
  batch = {
    'images': rng.integers(256, size=(rows, size, size, 3)).astype('u1'),
    'labels': rng.integers(config.num_classes, size=rows, dtype='i4'),
  }
  step = step_lib.make_train_step(model, optimizer, built.schedule, config)
  key = jax.random.PRNGKey(0)
  state = jax.eval_shape(init, key)
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch, key).compile()
  return compiled, lambda: (init(key), batch, key)


def _measure(args, cases: dict[str, tuple[str, int]]) -> dict[str, dict]:
  """Measures the cases in turn, so that all see the same machine."""
  results, calls = {}, {}
  for name, case in cases.items():
    print(f'compiling {name}', file=sys.stderr, flush=True)
    compiled, make_arguments = _prepare(args, *case)
    memory = compiled.memory_analysis()
    results[name] = {'temporary_mib': memory.temp_size_in_bytes / 2**20}

    def call(compiled=compiled, make_arguments=make_arguments):
      arguments = jax.block_until_ready(make_arguments())
      start = time.perf_counter()
      jax.block_until_ready(compiled(*arguments))
      return time.perf_counter() - start

    calls[name] = call
  times = {name: [] for name in cases}
  for repeat in range(1 + args.repeats):
    for name, call in calls.items():
      seconds = call()
      if repeat:  # The first warms up.
        times[name].append(seconds)
  for name, found in times.items():
    results[name]['seconds'] = statistics.median(found)
  return results


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--config', default='digits', help='name of a recipe')
  parser.add_argument('--batch', type=int, default=64, help='examples')
  parser.add_argument(
    '--image_size', type=int, default=0, help="pixels; 0 is the recipe's"
  )
  parser.add_argument('--by', default='norm', help='norm, unit or both')
  parser.add_argument('--chunks', default='1,8,64')
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  cases = {'plain': ('', 0)}
  for by in args.by.split(','):
    for chunk in args.chunks.split(','):
      cases[f'{by} {chunk}'] = by, int(chunk)
  try:
    results = _measure(args, cases)
  except recipe.ConfigError as error:
    parser.error(str(error))
  for name, values in results.items():
    ratios = (
      f'{key} {value:.3f} ({value / results["plain"][key]:.2f}x)'
      for key, value in values.items()
    )
    print(f'{name:10}', '  '.join(ratios))
  device = jax.devices()[0].device_kind
  facts = {'config': args.config, 'batch': args.batch, 'device': device}
  print(json.dumps({**facts, **results}))


if __name__ == '__main__':
  main()
