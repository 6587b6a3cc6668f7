"""The parts of accelerator.py on whole networks.

python benchmarks/accelerator_networks.py PART SIZES

PART is 'device', 'steps' or 'lowering', SIZES what accelerator.py gives, in
JSON. Prints a line of JSON for each measurement.
"""

from concurrent import futures
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import types

import accelerator_timing as timing
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

# For `experiments`, which is not installed.
_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))
if importlib.util.find_spec('tensorflow') is None:
  # So that the parts of it that need none can be imported.
  package = types.ModuleType('experiments')
  package.__path__ = [str(_ROOT / 'experiments')]
  sys.modules['experiments'] = package

from experiments import configs  # noqa: E402
from experiments import step as step_lib  # noqa: E402
import nfnets  # noqa: E402
from nfnets import conv, optim  # noqa: E402

_SIZES = json.loads(sys.argv[2])


def _peak() -> float:
  """Returns the operations per second of the fastest matrix product."""
  best = 0.0
  for n in _SIZES['matmul']:
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    fn = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = timing.median_seconds(
      timing.loop(fn, x, x), _SIZES['seconds'] / 4
    )
    best = max(best, 2 * n**3 / seconds)
  return best


def _gib(compiled) -> float:
  """Returns the memory that a program plans for, with its arguments."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  ) / 2**30


@functools.cache
def _model():
  """Returns F0, its settings, and the multiply-adds of an image by its size."""
  config = configs.load('f0').experiment_kwargs.config
  model = nfnets.create_model('nfnet_f0', **config.model_kwargs)

  def multiply_adds(size):
    network = nfnets.nfnet.NFNet(1000, variant='F0')
    return network.count_flops(size, size)[1]

  counts = {
    size: hk.testing.transform_and_run(multiply_adds)(size)
    for size in (_SIZES['train_size'], _SIZES['test_size'])
  }
  return model, config, counts


def _training(batch: int):
  """Returns (compiled step, function that makes so many steps)."""
  model, config, _ = _model()
  size = _SIZES['train_size']
  optimizer = optim.make_optimizer(
    config.optimizer.name, 0.1, **config.optimizer.kwargs
  )
  step = step_lib.make_train_step(model, optimizer, lambda _: 0.1, config)
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(size, size, 3, batch), dtype=np.uint8)
  if not config.transpose:
    images = images.transpose(3, 0, 1, 2)
  data = jax.device_put(
    {
      'images': images,
      'labels': rng.integers(1000, size=batch, dtype=np.int32),
      'mix_labels': rng.integers(1000, size=batch, dtype=np.int32),
      'ratio': rng.random(batch, np.float32),
    }
  )
  key = jax.random.PRNGKey(0)
  init = functools.partial(
    step_lib.init_train_state, model, optimizer, config.use_ema
  )
  compiled = (
    jax.jit(step, donate_argnums=0)
    .lower(jax.eval_shape(init, key), data, key)
    .compile()
  )

  def run(count, state=[]):  # noqa: B006  (goes on from the last call's)
    if not state:
      state.append(jax.jit(init)(key))
    for _ in range(count):
      state[0], _ = compiled(state[0], data, key)
    jax.block_until_ready(state[0])

  return compiled, run


def _inference(batch: int):
  """Returns (compiled function, function that calls it so many times)."""
  model, _, _ = _model()
  params, _ = jax.jit(model.init)(jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  size = _SIZES['test_size']
  images = jnp.zeros((batch, size, size, 3), jnp.bfloat16)

  def logits(params, images):
    out, _ = model.apply(params, {}, None, images, is_training=False)
    return out['logits']

  compiled = jax.jit(logits).lower(params, images).compile()
  return compiled, timing.loop(compiled, params, images)


def _measure_network(what: str, batch: int, prepare, peak: float, **facts):
  """Prints the speed and memory of one program; or that it does not fit.

  Args:
    what: 'train' or 'infer'.
    batch: images.
    prepare: returns (compiled program, function that runs it so many times).
    peak: operations per second.
    **facts: are printed, too.
  """
  size = _SIZES['train_size' if what == 'train' else 'test_size']
  operations = 2 * batch * _model()[2][size] * (3 if what == 'train' else 1)
  facts = {'what': what, 'batch': batch, 'image_size': size, **facts}
  try:
    compiled, run = prepare()
    seconds = timing.median_seconds(run, _SIZES['seconds'])
  except Exception as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    timing.emit(**facts, fits=False)
    return
  timing.emit(
    **facts,
    fits=True,
    images_per_second=round(batch / seconds, 2),
    share_of_peak=round(operations / seconds / peak, 4),
    gib=round(_gib(compiled), 3),
  )


def _run_steps() -> None:
  peak = _peak()
  timing.emit(peak_tflops=round(peak / 1e12, 3))
  _model()
  programs = list(
    itertools.product(
      _SIZES['batches'], (('train', _training), ('infer', _inference))
    )
  )
  # All are compiled at once, which is what takes the time.
  with futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
    prepared = [pool.submit(make, batch) for batch, (_, make) in programs]
    futures.wait(prepared)
  for (batch, (what, _)), future in zip(programs, prepared, strict=True):
    _measure_network(what, batch, future.result, peak)


def _run_lowering() -> None:
  peak = _peak()
  batch = _SIZES['batches'][0]
  for name in ('plain', 'split'):
    with conv.lowering(name):
      prepare = functools.partial(_training, batch)
      _measure_network('train', batch, prepare, peak, lowering=name)


def _run_device() -> None:
  timing.emit(
    platform=jax.default_backend(),
    device=jax.devices()[0].device_kind,
    jax=jax.__version__,
  )


if __name__ == '__main__':
  parts = {
    'device': _run_device,
    'steps': _run_steps,
    'lowering': _run_lowering,
  }
  parts[sys.argv[1]]()
