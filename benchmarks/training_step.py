"""Measures time and memory of a training step with different settings.

python benchmarks/training_step.py [--config=f0] [--batch=10] [--image_size=0]
    [--settings=plain,sam,accumulate,remat,norm:8] [--memory_only]

Runs whole training steps (forward, backward, optimizer and average) of a recipe
on random images in float32, with the settings in turn, and prints median
seconds and memory. `sam` ascends on a fifth of the batch, `accumulate` splits
the batch in two, and `norm:8` or `unit:8` clips per-example gradients, eight
examples at a time. An image size of 0 is the recipe's.

`kept_gib` is the memory of the activations and standardized kernels that JAX
stores for the backward pass. `temporary_gib` is the temporary memory in XLA's
plan of the step. Both exclude parameters, optimizer state and average. With
--memory_only nothing runs. XLA's CPU backend merges recomputation, which undoes
remat. To see the effect of remat on a CPU, set
XLA_FLAGS="--xla_cpu_enable_concurrency_optimized_scheduler=false
--xla_disable_hlo_passes=cse". The last line of standard output is JSON.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

from experiments import configs, recipe
from experiments import step as step_lib

_SETTINGS = {
  'plain': {},
  'sam': {'sam_rho': 0.05, 'sam_fraction': 0.2},
  'accumulate': {'accumulate_steps': 2},
  'remat': {'remat': True},
}


def compile_step(config, batch_size: int, size: int):
  """Return a recipe's model, its compiled step, and the step's arguments.

  The first argument is a function that makes a train state.
  """
  key, rng = jax.random.PRNGKey(0), np.random.default_rng(0)
  config.update(fake_data=True, train_batch_size=batch_size)
  built = recipe.build(config, key, num_devices=1)
  init = functools.partial(
    step_lib.init_train_state, built.model, built.optimizer, config.use_ema
  )
  images = rng.integers(256, size=(batch_size, size, size, 3), dtype='u1')
  if config.transpose:
    images = images.transpose(1, 2, 3, 0)
  labels = rng.integers(config.num_classes, size=batch_size, dtype='i4')
  batch = jax.device_put({'images': images, 'labels': labels})
  step = step_lib.make_train_step(
    built.model, built.optimizer, built.schedule, config
  )
  state = jax.eval_shape(init, key)
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch, key).compile()
  return built.model, compiled, (lambda: jax.jit(init)(key), batch, key)


def _prepare(args, name: str):
  """Return the memory of a step, and a function that times it."""
  config = configs.load(args.config).experiment_kwargs.config
  config.update(bfloat16=False, transpose=False)
  by, _, chunk = name.partition(':')
  if chunk:
    config.update(clip_per_example=by, sam_rho=0.0)
    config.per_example.chunk = int(chunk)
  else:
    config.update(_SETTINGS[name])
  model, compiled, (init, batch, key) = compile_step(
    config, args.batch, args.image_size or config.image_size
  )
  images = batch['images'][: args.batch // config.accumulate_steps]

  def forward(params, state):
    def loss(params):
      x = model.normalize(images.astype(jnp.float32))
      out, _ = model.apply(params, state, key, x, is_training=True)
      return jnp.sum(out['logits'])

    return jax.vjp(loss, params)[1]

  def count(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

  params, state = jax.eval_shape(model.init, key)
  kept = count(jax.eval_shape(forward, params, state)) - count(params)
  temporary = compiled.memory_analysis().temp_size_in_bytes
  memory = {'kept_gib': kept / 2**30, 'temporary_gib': temporary / 2**30}

  def call():
    state = jax.block_until_ready(init())
    start = time.perf_counter()
    jax.block_until_ready(compiled(state, batch, key))
    return time.perf_counter() - start

  return memory, call


def main() -> None:
  args = timing.arguments(
    *(__doc__,),
    **{'config': 'f0', 'batch': 10, 'image_size': 0, 'repeats': 5},
    **{'settings': ','.join(_SETTINGS), 'memory_only': False},
  )
  prepared = {name: _prepare(args, name) for name in args.settings.split(',')}
  results = {name: memory for name, (memory, _) in prepared.items()}
  if not args.memory_only:
    calls = {name: call for name, (_, call) in prepared.items()}
    for name, seconds in timing.medians(calls, args.repeats).items():
      results[name]['seconds'] = seconds
  timing.table(results)
  timing.emit(config=args.config, batch=args.batch, **results)


if __name__ == '__main__':
  main()
