"""What one accelerator makes of NFNet-F0, in eight minutes.

python benchmarks/accelerator.py [--timm_python=/path/to/python] [--minutes=8]

Measures, in bfloat16 on the first device that JAX finds,

  peak      the fastest of some matrix products: what a share of the peak is of
  steps     F0's whole training step (forward, backward, AGC, optimizer and
            average; 192 px) and its inference (256 px): images per second,
            share of the peak and memory, for batches of 32 to 512 images
  lowering  the training step with convolutions as `nfnets.conv` has them on
            accelerators ('plain') and as it has them on CPUs ('split')
  convs     the grouped 3x3 convolutions of F0's stages: as they are, group by
            group, and as one dense convolution with zeros between the groups;
            NHWC and NCHW; milliseconds of the forward pass and both gradients
  input     images per second that the input pipeline makes for the F0 recipe
            on this machine's CPU, where TensorFlow is installed
  timm      timm's dm_nfnet_f0 by PyTorch: training step (SGD with momentum,
            timm's AGC and average of the weights) and inference, channels
            last, autocast to bfloat16 and torch.compile; three batches

each part in a process of its own. A part that its share of the time does not
suffice for ends with what it has, and `left_out` names it. Multiply-adds count
as two operations; a training step counts as three forward passes. Memory is
what the program plans for, with its arguments; PyTorch's is what it had
allocated at most. Times are medians of several runs. On a CPU everything is
made small, to see that it runs. The last line of standard output is JSON.
"""

import argparse
from concurrent import futures
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types

# For `experiments`, which is not installed.
_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

# Each part, and its share of the time.
_PARTS = {'steps': 4, 'convs': 1, 'timm': 4, 'lowering': 2, 'input': 1}
_FULL = {
  'batches': (128, 32, 256, 64, 512),
  'train_size': 192,
  'test_size': 256,
  'conv_batch': 64,
  'matmul': (4096, 8192),
  'seconds': 1.0,
}
_SMALL = {
  'batches': (2,),
  'train_size': 32,
  'test_size': 32,
  'conv_batch': 1,
  'matmul': (512,),
  'seconds': 0.05,
}
# Of F0's stages at 192 px: side of the map, channels, groups of the 3x3
# convolutions in a stage's later blocks.
_CONVS = ((48, 128, 1), (24, 256, 2), (12, 768, 6), (6, 768, 6))
_REPEATS = 5


def _emit(**result) -> None:
  print(json.dumps(result), flush=True)


def _median_seconds(run, seconds: float) -> float:
  """Returns the median time of a call, of several groups of calls.

  Args:
    run: makes that many calls and waits for the last one.
    seconds: how long a group takes, about.
  """
  run(1)  # Compiles what is left to compile, and warms up.
  start = time.perf_counter()
  run(1)
  count = max(1, int(seconds / (time.perf_counter() - start)))
  times = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    run(count)
    times.append((time.perf_counter() - start) / count)
  return statistics.median(times)


def _loop(fn, *args):
  """Returns a function that calls a compiled one so many times."""
  import jax

  def run(count):
    for _ in range(count):
      out = fn(*args)
    jax.block_until_ready(out)

  return run


def _device() -> dict[str, str]:
  import jax

  return {
    'platform': jax.default_backend(),
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }


def _sizes() -> dict:
  import jax

  return _SMALL if jax.default_backend() == 'cpu' else _FULL


def _peak() -> float:
  """Returns the operations per second of the fastest matrix product."""
  import jax
  import jax.numpy as jnp

  best = 0.0
  for n in _sizes()['matmul']:
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    fn = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = _median_seconds(_loop(fn, x, x), _sizes()['seconds'] / 4)
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


def _do_without_tensorflow() -> None:
  """Makes the parts of `experiments` that need none importable without it."""
  if importlib.util.find_spec('tensorflow') is None:
    package = types.ModuleType('experiments')
    package.__path__ = [str(_ROOT / 'experiments')]
    sys.modules['experiments'] = package


@functools.cache
def _model():
  """Returns F0, its settings, and the multiply-adds of an image by its size."""
  from experiments import configs
  import nfnets

  config = configs.load('f0').experiment_kwargs.config
  model = nfnets.create_model('nfnet_f0', **config.model_kwargs)

  def multiply_adds(size):
    network = nfnets.nfnet.NFNet(1000, variant='F0')
    return network.count_flops(size, size)[1]

  import haiku as hk

  counts = {
    size: hk.testing.transform_and_run(multiply_adds)(size)
    for size in (_sizes()['train_size'], _sizes()['test_size'])
  }
  return model, config, counts


def _training(batch: int):
  """Returns (compiled step, function that makes so many steps)."""
  import jax
  import numpy as np

  from experiments import step as step_lib
  from nfnets import optim

  model, config, _ = _model()
  size = _sizes()['train_size']
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
  import jax
  import jax.numpy as jnp

  model, _, _ = _model()
  params, _ = jax.jit(model.init)(jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  size = _sizes()['test_size']
  images = jnp.zeros((batch, size, size, 3), jnp.bfloat16)

  def logits(params, images):
    out, _ = model.apply(params, {}, None, images, is_training=False)
    return out['logits']

  compiled = jax.jit(logits).lower(params, images).compile()
  return compiled, _loop(compiled, params, images)


def _measure_network(what: str, batch: int, prepare, peak: float, **facts):
  """Prints the speed and memory of one program; or that it does not fit.

  Args:
    what: 'train' or 'infer'.
    batch: images.
    prepare: returns (compiled program, function that runs it so many times).
    peak: operations per second.
    **facts: are printed, too.
  """
  size = _sizes()['train_size' if what == 'train' else 'test_size']
  operations = 2 * batch * _model()[2][size] * (3 if what == 'train' else 1)
  facts = {'what': what, 'batch': batch, 'image_size': size, **facts}
  try:
    compiled, run = prepare()
    seconds = _median_seconds(run, _sizes()['seconds'])
  except Exception as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    _emit(**facts, fits=False)
    return
  _emit(
    **facts,
    fits=True,
    images_per_second=round(batch / seconds, 2),
    share_of_peak=round(operations / seconds / peak, 4),
    gib=round(_gib(compiled), 3),
  )


def _run_steps() -> None:
  peak = _peak()
  _emit(peak_tflops=round(peak / 1e12, 3))
  _model()
  programs = list(
    itertools.product(
      _sizes()['batches'], (('train', _training), ('infer', _inference))
    )
  )
  # All are compiled at once, which is what takes the time.
  with futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
    prepared = [pool.submit(make, batch) for batch, (_, make) in programs]
    futures.wait(prepared)
  for (batch, (what, _)), future in zip(programs, prepared, strict=True):
    _measure_network(what, batch, future.result, peak)


def _run_lowering() -> None:
  from nfnets import conv

  peak = _peak()
  batch = _sizes()['batches'][0]
  for name in ('plain', 'split'):
    with conv.lowering(name):
      prepare = functools.partial(_training, batch)
      _measure_network('train', batch, prepare, peak, lowering=name)


def _convolution(form: str, layout: str, groups: int):
  """Returns a function from (images, kernel) to images."""
  import jax
  import jax.numpy as jnp

  axis = layout.index('C')
  kernel_layout = 'HWIO' if layout == 'NHWC' else 'OIHW'
  out_axis = kernel_layout.index('O')

  def plain(x, w, count):
    return jax.lax.conv_general_dilated(
      x,
      w,
      (1, 1),
      'SAME',
      dimension_numbers=(layout, kernel_layout, layout),
      feature_group_count=count,
    )

  def split(x, w):
    parts = zip(
      jnp.split(x, groups, axis), jnp.split(w, groups, out_axis), strict=True
    )
    return jnp.concatenate([plain(a, b, 1) for a, b in parts], axis)

  def dense(x, w):
    in_axis = kernel_layout.index('I')
    width = w.shape[in_axis]
    rows = []
    for i, part in enumerate(jnp.split(w, groups, out_axis)):
      pads = [(0, 0)] * 4
      pads[in_axis] = (i * width, (groups - 1 - i) * width)
      rows.append(jnp.pad(part, pads))
    return plain(x, jnp.concatenate(rows, out_axis), 1)

  return {
    'grouped': lambda x, w: plain(x, w, groups),
    'split': split,
    'dense': dense,
  }[form]


def _run_convs() -> None:
  import jax
  import jax.numpy as jnp

  batch = _sizes()['conv_batch']
  for side, channels, groups in _CONVS:
    for form in ('grouped', 'split', 'dense') if groups > 1 else ('grouped',):
      for layout in ('NHWC', 'NCHW'):
        shape = {'N': batch, 'H': side, 'W': side, 'C': channels}
        x = jnp.ones([shape[axis] for axis in layout], jnp.bfloat16)
        width = channels // groups
        kernel = (3, 3, width, channels)
        if layout == 'NCHW':
          kernel = (channels, width, 3, 3)
        w = jnp.ones(kernel, jnp.bfloat16)
        conv = _convolution(form, layout, groups)
        # Of a linear function, a gradient needs no forward pass.
        gradients = {
          'forward': lambda x, w, g, conv=conv: conv(x, w),
          'for_images': lambda x, w, g, conv=conv: jax.vjp(
            lambda x: conv(x, w), x
          )[1](g),
          'for_kernel': lambda x, w, g, conv=conv: jax.vjp(
            lambda w: conv(x, w), w
          )[1](g),
        }
        milliseconds = {}
        for name, fn in gradients.items():
          compiled = jax.jit(fn).lower(x, w, x).compile()
          run = _loop(compiled, x, w, x)
          seconds = _median_seconds(run, _sizes()['seconds'] / 20)
          milliseconds[name] = round(1e3 * seconds, 4)
        _emit(
          side=side,
          channels=channels,
          groups=groups,
          batch=batch,
          form=form,
          layout=layout,
          milliseconds=milliseconds,
        )


def _run_input() -> None:
  """Measures the pipeline of the F0 recipe as input_pipeline.py does."""
  try:
    import tensorflow  # noqa: F401
  except ImportError:
    _emit(images_per_second=None, why='TensorFlow is not installed')
    return
  with tempfile.TemporaryDirectory() as folder:
    command = [
      sys.executable,
      str(_ROOT / 'benchmarks' / 'input_pipeline.py'),
      f'--data_dir={folder}',
      '--tasks=mixing',
      '--repeats=1',
      '--images=512',
    ]
    output = subprocess.run(
      command, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
  result = json.loads(output.splitlines()[-1])
  _emit(**result)


def _timm_command(python: str, platform: str) -> list[str]:
  """Returns the command that measures timm."""
  sizes = _SMALL if platform == 'cpu' else _FULL
  script = _ROOT / 'benchmarks' / 'accelerator_timm.py'
  return [python, str(script), json.dumps(sizes)]


def _run_part(command: list[str], seconds: float) -> tuple[list[dict], str]:
  """Runs a part for so long; returns its results, and why it ended early."""
  with tempfile.TemporaryFile('w+') as output:
    why = ''
    try:
      status = subprocess.run(command, stdout=output, timeout=seconds)
      if status.returncode:
        why = f'exit status {status.returncode}'
    except subprocess.TimeoutExpired:
      why = 'out of time'
    output.seek(0)
    results = []
    for line in output:
      with contextlib.suppress(ValueError):
        results.append(json.loads(line))
  return results, why


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--timm_python', help='a Python with timm and PyTorch')
  parser.add_argument('--minutes', type=float, default=8, help='in all')
  parser.add_argument('--parts', default=','.join(_PARTS))
  parser.add_argument('--part', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.part:
    _do_without_tensorflow()
    parts = {
      'device': lambda: _emit(**_device()),
      'steps': _run_steps,
      'lowering': _run_lowering,
      'convs': _run_convs,
      'input': _run_input,
    }
    return parts[args.part]()
  names = args.parts.split(',')
  if unknown := set(names) - set(_PARTS):
    parser.error(f'--parts knows {", ".join(_PARTS)}, not {unknown}')
  deadline = time.monotonic() + 60 * args.minutes
  own = [sys.executable, __file__, '--part']
  (device,), _ = _run_part([*own, 'device'], 120)
  results, left_out = dict(device), {}
  for name in names:
    command = [*own, name]
    if name == 'timm':
      if not args.timm_python:
        left_out[name] = 'no --timm_python'
        continue
      command = _timm_command(args.timm_python, device['platform'])
    share = _PARTS[name] / sum(_PARTS[n] for n in names[names.index(name) :])
    seconds = share * (deadline - time.monotonic())
    results[name], why = _run_part(command, seconds)
    for result in results[name]:
      print(name, json.dumps(result), file=sys.stderr, flush=True)
    if why:
      left_out[name] = f'ended early: {why}'
  print(json.dumps({**results, 'left_out': left_out}))


if __name__ == '__main__':
  main()
