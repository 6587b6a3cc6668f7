"""Measures NFNet-F0 on one accelerator, and timm's in PyTorch.

python benchmarks/accelerator.py [--timm_python=/path/to/python] [--minutes=8]

Measures in bfloat16 on the first device of JAX:

  the fastest matrix product, as the peak
  train   F0's whole training step: forward, backward, AGC, optimizer and
          average; 192 px
  infer   F0's inference, 256 px

for batches of 32 to 512, and prints images per second, share of the peak and
memory. The training step is measured with 'plain' grouped convolutions (the
form on accelerators) and, for one batch, with 'split' ones (the form on CPUs).
--timm_python, the Python of an environment with timm and PyTorch, adds timm's
dm_nfnet_f0: training step (SGD with momentum, timm's AGC and weight average)
and inference, channels last, autocast to bfloat16 and torch.compile; three
batches.

A multiply-add counts as two operations, a training step as three forward
passes. Memory is the compiler's plan, arguments included; for PyTorch it is the
peak allocation. Times are medians. Each result is printed when it is complete.
After --minutes (timm: half of them) the rest is left out. On a CPU, all sizes
are small, as a test. The last line of standard output is JSON.
"""

from concurrent import futures
import json
import os
import subprocess
import sys
import time

import timing

_FULL = {
  'batches': (128, 32, 256, 64, 512),
  'train': 192,  # Pixels.
  'infer': 256,
  'matmul': (4096, 8192),
  'seconds': 1.0,
}
_SMALL = {
  'batches': (2,),
  'train': 32,
  'infer': 32,
  'matmul': (512,),
  'seconds': 0.05,
}


def _measure_networks(deadline: float) -> list[dict]:
  """Measure the networks here, until `time.monotonic()` is at the deadline."""
  import haiku as hk
  import jax
  import jax.numpy as jnp
  import training_step

  from experiments import configs
  import nfnets
  from nfnets import conv, nfnet

  sizes = _SMALL if jax.default_backend() == 'cpu' else _FULL
  model, key, peak = nfnets.create_model('nfnet_f0'), jax.random.key(0), 0.0
  for n in sizes['matmul']:
    x = jax.random.normal(key, (n, n), jnp.bfloat16)
    run = timing.loop(jax.jit(jnp.matmul).lower(x, x).compile(), x, x)
    seconds = timing.median_seconds(run, sizes['seconds'] / 4)
    peak = max(peak, 2 * n**3 / seconds)
  device = jax.devices()[0].device_kind
  results = [{'device': device, 'peak_tflops': round(peak / 1e12, 3)}]

  def train(batch, lowering='auto'):
    config = configs.load('f0').experiment_kwargs.config
    with conv.lowering(lowering):
      _, compiled, (init, *rest) = training_step.compile_step(
        config, batch, sizes['train']
      )
    state = []

    def run(count):  # A call continues from the state of the call before.
      if not state:
        state.append(init())
      for _ in range(count):
        state[0], _ = compiled(state[0], *rest)
      jax.block_until_ready(state[0])

    return compiled, run

  def infer(batch):
    params = jax.jit(lambda: model.init(key)[0])()
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    shape = (batch, sizes['infer'], sizes['infer'], 3)
    images = jnp.zeros(shape, jnp.bfloat16)

    def logits(params, images):
      return model.apply(params, {}, None, images, False)[0]['logits']

    compiled = jax.jit(logits).lower(params, images).compile()
    return compiled, timing.loop(compiled, params, images)

  multiply_adds = hk.transform(lambda n: nfnet.NFNet(1000).count_flops(n, n)[1])
  programs = [(f, (b,)) for b in sizes['batches'] for f in (train, infer)]
  programs.append((train, (sizes['batches'][0], 'split')))
  # Compilation takes most of the time, so it runs in parallel.
  pool = futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2))
  prepared = [pool.submit(make, *args) for make, args in programs]
  for (make, args), future in zip(programs, prepared, strict=True):
    what, size = make.__name__, sizes[make.__name__]
    result = {'what': what, 'batch': args[0], 'image_size': size}
    result |= {'lowering': args[1]} if args[1:] else {}
    try:
      compiled, run = future.result(max(0, deadline - time.monotonic()))
      seconds = timing.median_seconds(run, sizes['seconds'])
      memory = compiled.memory_analysis()
      used = memory.argument_size_in_bytes + memory.output_size_in_bytes
      used += memory.temp_size_in_bytes - memory.alias_size_in_bytes
      rate = args[0] / seconds
      operations = (
        2 * multiply_adds.apply({}, None, size) * (3 if what == 'train' else 1)
      )
      result |= {
        'images_per_second': round(rate, 2),
        'share_of_peak': round(operations * rate / peak, 4),
        'gib': round(used / 2**30, 3),
      }
    except TimeoutError:
      result['left_out'] = True
    except Exception as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      result['fits'] = False
    results.append(result)
    timing.say(json.dumps(result))
  pool.shutdown(wait=False, cancel_futures=True)
  return results


def _measure_timm() -> list[dict]:
  """Measure timm's network; runs in timm's Python."""
  import timm
  import timm.utils
  import torch

  is_cuda = torch.cuda.is_available()
  device, sizes = ('cuda', _FULL) if is_cuda else ('cpu', _SMALL)

  def prepare(what, batch, size):
    torch.compiler.reset()
    model = timm.create_model('dm_nfnet_f0', drop_path_rate=0.25)
    model = model.to(device, memory_format=torch.channels_last)
    model.train(what == 'train')
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if is_cuda else model
    labels = torch.randint(1000, (batch,), device=device)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    average = timm.utils.ModelEmaV3(model, decay=0.99999)
    optimizer = torch.optim.SGD(
      model.parameters(), 0.1, momentum=0.9, nesterov=True
    )

    def call():
      with (
        torch.inference_mode(what == 'infer'),
        torch.autocast(device, torch.bfloat16),
      ):
        logits = forward(images)
      if what == 'train':
        loss(logits.float(), labels).backward()
        timm.utils.adaptive_clip_grad(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)

    def run(count):
      for _ in range(count):
        call()
      if is_cuda:
        torch.cuda.synchronize()

    return run

  results = []
  for batch in sizes['batches'][:3]:
    for what in ('train', 'infer'):
      result = {'what': what, 'batch': batch, 'image_size': sizes[what]}
      if is_cuda:
        torch.cuda.reset_peak_memory_stats()
      try:
        run = prepare(what, batch, sizes[what])
        seconds = timing.median_seconds(run, sizes['seconds'])
        result['images_per_second'] = round(batch / seconds, 2)
        if is_cuda:
          gib = torch.cuda.max_memory_allocated() / 2**30
          result['gib'] = round(gib, 3)
      except torch.OutOfMemoryError:
        result['fits'] = False
      results.append(result)
      timing.say(json.dumps(result))
      run = None  # Frees its memory.
  return results


def main() -> None:
  """Run the benchmark."""
  args = timing.arguments(
    __doc__, timm_python=None, minutes=8.0, serve_timm=False
  )
  if args.serve_timm:
    return timing.emit(timm=_measure_timm())
  deadline = time.monotonic() + 60 * args.minutes
  results = {}
  if args.timm_python:  # Before JAX allocates the memory.
    command = [args.timm_python, __file__, '--serve_timm']
    try:
      done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, timeout=30 * args.minutes
      )
      results = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
      timing.say('timm took too long: the lines above are all of it')
  timing.emit(**results, networks=_measure_networks(deadline))
  sys.stdout.flush()
  os._exit(0)  # Without waiting for programs that are still being compiled.


if __name__ == '__main__':
  main()
