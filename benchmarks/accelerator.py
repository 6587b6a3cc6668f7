"""Measures NFNet-F0 on one accelerator in eight minutes.

python benchmarks/accelerator.py [--timm_python=/path/to/python] [--minutes=8]

It has these parts, in bfloat16 on the first device of JAX:

  steps     the fastest matrix product, as the peak; F0's whole training step
            (forward, backward, AGC, optimizer and average; 192 px) and its
            inference (256 px): images per second, share of the peak and memory
            for batches of 32 to 512
  timm      timm's dm_nfnet_f0 in PyTorch: training step (SGD with momentum,
            timm's AGC and weight average) and inference, channels last,
            autocast to bfloat16 and torch.compile; three batches
  lowering  the training step with 'plain' grouped convolutions (the form on
            accelerators) and 'split' ones (the form on CPUs)
  input     images per second of the input pipeline with the F0 recipe, on the
            CPUs of this machine

Each part is a process with a share of the time. `left_out` names the parts that
are incomplete or missing. A multiply-add counts as two operations, a training
step as three forward passes. Memory is the compiler's plan, arguments included;
for PyTorch it is the peak allocation. Times are medians. On a CPU, all sizes
are small, as a test. The last line of standard output is JSON.
"""

from concurrent import futures
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import timing

# Each part, and its share of the time.
_PARTS = {'steps': 4, 'timm': 4, 'lowering': 2, 'input': 1}
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


def _networks(part: str) -> None:
  """Measure whole networks: the parts 'steps' and 'lowering'."""
  import haiku as hk
  import jax
  import jax.numpy as jnp
  import training_step

  from experiments import configs
  import nfnets
  from nfnets import conv

  platform = jax.default_backend()
  sizes = _SMALL if platform == 'cpu' else _FULL
  kind = jax.devices()[0].device_kind
  timing.emit(platform=platform, device=kind, jax=jax.__version__)
  model, key, peak = nfnets.create_model('nfnet_f0'), jax.random.key(0), 0.0
  for n in sizes['matmul']:
    x = jax.random.normal(key, (n, n), jnp.bfloat16)
    run = timing.loop(jax.jit(jnp.matmul).lower(x, x).compile(), x, x)
    seconds = timing.median_seconds(run, sizes['seconds'] / 4)
    peak = max(peak, 2 * n**3 / seconds)
  timing.emit(peak_tflops=round(peak / 1e12, 3))

  def train(batch):
    config = configs.load('f0').experiment_kwargs.config
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

  @functools.cache
  def multiply_adds(size):
    net = nfnets.nfnet.NFNet
    count = hk.transform(lambda: net(1000).count_flops(size, size)[1])
    return count.apply({}, None)

  def measure(what, batch, prepare, **facts):
    size = sizes[what]
    facts |= {'what': what, 'batch': batch, 'image_size': size}
    operations = 2 * batch * multiply_adds(size) * (3 if what == 'train' else 1)
    try:
      compiled, run = prepare()
      seconds = timing.median_seconds(run, sizes['seconds'])
    except Exception as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      timing.emit(**facts, fits=False)
      return
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    timing.emit(
      **facts,
      fits=True,
      images_per_second=round(batch / seconds, 2),
      share_of_peak=round(operations / seconds / peak, 4),
      gib=round(size / 2**30, 3),
    )

  if part == 'lowering':
    for name in ('plain', 'split'):
      with conv.lowering(name):
        prepare = functools.partial(train, sizes['batches'][0])
        measure('train', sizes['batches'][0], prepare, lowering=name)
    return
  programs = [(b, f) for b in sizes['batches'] for f in (train, infer)]
  # Compilation takes most of the time, so it runs in parallel.
  with futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
    prepared = [pool.submit(make, batch) for batch, make in programs]
    futures.wait(prepared)
  for (batch, make), future in zip(programs, prepared, strict=True):
    measure(make.__name__, batch, future.result)


def _timm() -> None:
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

  for batch in sizes['batches'][:3]:
    for what in ('train', 'infer'):
      facts = {'what': what, 'batch': batch, 'image_size': sizes[what]}
      facts |= {'compiled': is_cuda, 'torch': torch.__version__}
      if is_cuda:
        torch.cuda.reset_peak_memory_stats()
      try:
        run = prepare(what, batch, sizes[what])
        seconds = timing.median_seconds(run, sizes['seconds'])
        facts |= {'fits': True, 'images_per_second': round(batch / seconds, 2)}
        if is_cuda:
          gib = torch.cuda.max_memory_allocated() / 2**30
          facts['gib'] = round(gib, 3)
      except torch.OutOfMemoryError:
        facts['fits'] = False
      timing.emit(**facts)
      run = None  # Frees its memory.


def _run_part(command: list[str], seconds: float) -> tuple[list[dict], str]:
  """Run a part; return its results, and why it ended early or ''."""
  try:
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds)
    output = done.stdout
    why = f'exit status {done.returncode}' if done.returncode else ''
  except subprocess.TimeoutExpired as error:
    output, why = error.stdout or b'', 'out of time'
  lines = [line for line in output.splitlines() if line.endswith(b'}')]
  return [json.loads(line) for line in lines], why


def main() -> None:
  """Run the benchmark."""
  args = timing.arguments(
    *(__doc__,),
    **{'timm_python': None, 'minutes': 8.0, 'parts': ','.join(_PARTS)},
    part=None,
  )
  if args.part:
    return _timm() if args.part == 'timm' else _networks(args.part)
  names, results, left_out = args.parts.split(','), {}, {}
  deadline = time.monotonic() + 60 * args.minutes
  # A stopped part may still be writing.
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    for i, name in enumerate(names):
      python = args.timm_python if name == 'timm' else sys.executable
      if not python:
        left_out[name] = 'no --timm_python'
        continue
      command = [python, __file__, f'--part={name}']
      if name == 'input':
        script = pathlib.Path(__file__).with_name('input_pipeline.py')
        command = [python, str(script), f'--data_dir={folder}']
        command += ['--tasks=mixing', '--repeats=1', '--images=512']
      share = _PARTS[name] / sum(_PARTS[n] for n in names[i:])
      seconds = share * (deadline - time.monotonic())
      results[name], why = _run_part(command, seconds)
      for result in results[name]:
        timing.say(f'{name} {json.dumps(result)}')
      if why:
        left_out[name] = f'ended early: {why}'
  timing.emit(**results, left_out=left_out)


if __name__ == '__main__':
  main()
