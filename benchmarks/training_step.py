"""Time and memory of a training step with SAM, accumulation and remat.

python benchmarks/training_step.py [--config=f0] [--batch=10] [--image_size=0]
    [--settings=plain,sam,accumulate,remat] [--memory_only]

Makes whole training steps (forward, backward, optimizer and average) of one
recipe on random images, in float32, with each setting in turn, and prints the
median seconds and the memory of each, and their ratios to the plain step. SAM
ascends on a fifth of the batch, `accumulate` computes the batch in two parts.

`kept_gib` is what the forward pass keeps for the backward pass, as JAX writes
the program: activations and standardized kernels. `temporary_gib` is the
temporary memory that XLA plans for the step on this machine. Neither counts
what stays from step to step: parameters, optimizer state and average. With
--memory_only nothing runs. XLA's CPU backend plans for speed, and merges what
remat computes twice; to see the effect on a CPU, set
XLA_FLAGS="--xla_cpu_enable_concurrency_optimized_scheduler=false
--xla_disable_hlo_passes=cse". The last line of standard output is JSON.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

# For `experiments`, which is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import configs, recipe  # noqa: E402
from experiments import step as step_lib  # noqa: E402

_SETTINGS = {
  'plain': {},
  'sam': {'sam_rho': 0.05, 'sam_fraction': 0.2},
  'accumulate': {'accumulate_steps': 2},
  'remat': {'remat': True},
}


def _prepare(args, name: str):
  """Returns a compiled step, what it takes, and the bytes that it keeps."""
  config = configs.load(args.config).experiment_kwargs.config
  config.update(bfloat16=False, fake_data=True)
  config.update(train_batch_size=args.batch, **_SETTINGS[name])
  size = args.image_size or config.image_size
  built = recipe.build(config, jax.random.PRNGKey(0))
  model, optimizer = built.model, built.optimizer
  init = jax.jit(
    lambda rng: step_lib.init_train_state(model, optimizer, config.use_ema, rng)
  )
  rng = np.random.default_rng(0)
  batch = {
    'images': rng.integers(256, size=(args.batch, size, size, 3)).astype('u1'),
    'labels': rng.integers(config.num_classes, size=args.batch, dtype='i4'),
  }
  step = step_lib.make_train_step(model, optimizer, built.schedule, config)
  key = jax.random.PRNGKey(0)
  state = jax.eval_shape(init, key)
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch, key).compile()
  part = args.batch // config.accumulate_steps
  kept = _kept_bytes(model, config, {k: v[:part] for k, v in batch.items()})
  return compiled, lambda: init(key), (batch, key), kept


def _kept_bytes(model, config, batch) -> int:
  """Returns the bytes that the backward pass needs of the forward pass."""

  def loss(params, state, key):
    images = model.normalize(batch['images'].astype(jnp.float32))
    out, _ = model.apply(params, state, key, images, is_training=True)
    return jnp.sum(out['logits'])

  def forward(params, state, key):
    return jax.vjp(lambda p: loss(p, state, key), params)[1]

  key = jax.random.PRNGKey(0)
  params, state = jax.eval_shape(model.init, key)
  kept = jax.eval_shape(forward, params, state, key)

  def count(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

  return count(kept) - count(params)


def _measure(args, names: list[str]) -> dict[str, dict[str, float]]:
  """Measures the settings in turn, so that all see the same machine."""
  results, calls = {}, {}
  for name in names:
    compiled, init, rest, kept = _prepare(args, name)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    results[name] = {
      'kept_gib': kept / 2**30,
      'temporary_gib': temporary / 2**30,
    }

    def call(compiled=compiled, init=init, rest=rest):
      state = jax.block_until_ready(init())
      start = time.perf_counter()
      jax.block_until_ready(compiled(state, *rest))
      return time.perf_counter() - start

    calls[name] = call
  if args.memory_only:
    return results
  times = {name: [] for name in names}
  for repeat in range(1 + args.repeats):
    for name in names:
      seconds = calls[name]()
      if repeat:  # The first warms up.
        times[name].append(seconds)
  for name in names:
    results[name]['seconds'] = statistics.median(times[name])
  return results


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--config', default='f0', help='name of a recipe')
  parser.add_argument('--batch', type=int, default=10, help='images')
  parser.add_argument(
    '--image_size', type=int, default=0, help="pixels; 0 is the recipe's"
  )
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--settings', default=','.join(_SETTINGS))
  parser.add_argument('--memory_only', action='store_true')
  args = parser.parse_args()
  names = args.settings.split(',')
  unknown = set(names) - set(_SETTINGS)
  if unknown:
    parser.error(f'--settings knows {", ".join(_SETTINGS)}, not {unknown}')
  results = _measure(args, names)
  for name, values in results.items():
    print(
      f'{name:10}',
      '  '.join(
        f'{key} {value:.3f}'
        + (
          f' ({value / results["plain"][key]:.2f}x)'
          if 'plain' in results
          else ''
        )
        for key, value in values.items()
      ),
    )
  print(json.dumps({'config': args.config, 'batch': args.batch, **results}))


if __name__ == '__main__':
  main()
