"""Times a forward pass of NFNet-F0 on each runtime, beside timm's.

python benchmarks/inference.py [--onnx=f0.onnx] [--timm_python=/path/to/python]

Prints the milliseconds of one batch on all cores. In float32: of weights as
they are, of folded ones, of folded ones that are constants of the program
(`nfnets.weights.freeze`); and with --onnx, of ONNX Runtime and OpenVINO on what
`python -m nfnets.export` wrote. In bfloat16: of OpenVINO. And of `dm_nfnet_f0`
in both, in the Python of an environment that has timm and PyTorch (eager,
channels last). They take turns, each in its own process, with one call to warm
up and one that is timed; medians. The last line of standard output is JSON.
"""

import argparse
from collections.abc import Callable
import json
import statistics
import subprocess
import sys
import time

_TIMM = """
import sys, time, timm, torch
size, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
model = timm.create_model('dm_nfnet_f0').eval()
model = model.to(dtype, memory_format=torch.channels_last)
print('ready', flush=True)
for line in sys.stdin:
  x = torch.randn(int(line), 3, size, size)
  x = x.to(dtype, memory_format=torch.channels_last)
  with torch.inference_mode():
    model(x)
    start = time.perf_counter()
    model(x)
    print(time.perf_counter() - start, flush=True)
"""
_NAMES = {
  'plain': 'as they are',
  'folded': 'folded',
  'frozen': 'folded, as constants',
  'timm': 'timm, eager, channels last',
  'onnxruntime': 'ONNX Runtime',
  'openvino': 'OpenVINO',
  'timm_bfloat16': 'timm, bfloat16',
  'openvino_bfloat16': 'OpenVINO, bfloat16',
}


def _serve(call: Callable[[int], Callable[[], object]]) -> None:
  """Times call(batch)() for every batch size that standard input asks for."""
  print('ready', flush=True)
  calls = {}
  for line in sys.stdin:
    batch = int(line)
    if batch not in calls:
      calls[batch] = call(batch)
    calls[batch]()
    start = time.perf_counter()
    calls[batch]()
    print(time.perf_counter() - start, flush=True)


def _serve_jax(form: str, size: int) -> None:
  import jax

  import nfnets
  from nfnets import weights

  model = nfnets.create_model('nfnet_f0')
  params, _ = model.init(jax.random.key(0), 32)
  # Blocks that do nothing, as a new network's, might be computed faster.
  params = {
    module: {name: x + (name == 'skip_gain') for name, x in leaves.items()}
    for module, leaves in params.items()
  }
  if form == 'frozen':
    logits = weights.freeze(model, params)
  else:
    if form == 'folded':
      params = weights.fold_weights(params, model)

    def logits(images):
      return model.logits(params, images)

  def call(batch):
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
    return lambda: logits(images).block_until_ready()

  _serve(call)


def _serve_graph(form: str, path: str, size: int) -> None:
  import numpy as np

  if form == 'onnxruntime':
    from nfnets.inference.runtimes import onnx_runtime as runtime
  else:
    from nfnets.inference.runtimes import openvino_runtime as runtime
  precision = 'bfloat16' if form.endswith('bfloat16') else 'float32'
  session = runtime.Session(path, precision, threads=None, throughput=False)

  def call(batch):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    return lambda: session.run(images)

  _serve(call)


class _Worker:
  """A process that times one way of computing the network."""

  def __init__(self, command: list[str]):
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self._answer()

  def _answer(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f'{self._process.args[0]} failed.')
    return line

  def seconds(self, batch: int) -> float:
    print(batch, file=self._process.stdin, flush=True)
    return float(self._answer())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batches', default='1,8', help='images, by commas')
  parser.add_argument('--image_size', type=int, default=256, help='pixels')
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--onnx', help='F0, as nfnets.export writes it')
  parser.add_argument('--timm_python', help='a Python with timm and PyTorch')
  parser.add_argument('--serve', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.onnx and args.serve:
    return _serve_graph(args.serve, args.onnx, args.image_size)
  if args.serve:
    return _serve_jax(args.serve, args.image_size)

  size = str(args.image_size)
  own = [sys.executable, __file__, '--image_size', size]
  commands = {
    form: [*own, '--serve', form] for form in ('plain', 'folded', 'frozen')
  }
  if args.timm_python:
    timm = [args.timm_python, '-c', _TIMM, size]
    commands['timm'] = [*timm, 'float32']
    commands['timm_bfloat16'] = [*timm, 'bfloat16']
  if args.onnx:
    for form in ('onnxruntime', 'openvino', 'openvino_bfloat16'):
      commands[form] = [*own, '--serve', form, '--onnx', args.onnx]
  workers = {name: _Worker(command) for name, command in commands.items()}
  results = {}
  for batch in map(int, args.batches.split(',')):
    times = {name: [] for name in workers}
    for i in range(args.repeats + 1):
      for name, worker in workers.items():
        seconds = worker.seconds(batch)
        if i > 0:  # The first turn compiles.
          times[name].append(1e3 * seconds)
    medians = {name: statistics.median(t) for name, t in times.items()}
    print(f'batch {batch}, {size} px', file=sys.stderr)
    for name, milliseconds in medians.items():
      print(
        f'  {_NAMES[name]:28} {milliseconds:8.1f} ms '
        f'{milliseconds / medians["frozen"]:5.2f}x',
        file=sys.stderr,
      )
    results[batch] = {name: round(t, 1) for name, t in medians.items()}
  for worker in workers.values():
    worker.close()
  print(json.dumps({'milliseconds': results}))


if __name__ == '__main__':
  main()
