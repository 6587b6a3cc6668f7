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
import contextlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import time

_FOLDER = pathlib.Path(__file__).parent
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


def _command(
  part: str, timm_python: str | None, sizes: str, folder: str
) -> list[str] | str:
  """Returns the command that measures a part, or why it is left out.

  Args:
    part: its name.
    timm_python: a Python with timm, or None.
    sizes: in JSON.
    folder: for files.
  """
  if part == 'timm':
    if not timm_python:
      return 'no --timm_python'
    return [timm_python, str(_FOLDER / 'accelerator_timm.py'), sizes]
  if part == 'convs':
    return [sys.executable, str(_FOLDER / 'accelerator_convs.py'), sizes]
  if part != 'input':
    script = str(_FOLDER / 'accelerator_networks.py')
    return [sys.executable, script, part, sizes]
  if importlib.util.find_spec('tensorflow') is None:
    return 'TensorFlow is not installed'
  options = ['--tasks=mixing', '--repeats=1', '--images=512']
  script = str(_FOLDER / 'input_pipeline.py')
  return [sys.executable, script, f'--data_dir={folder}', *options]


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
  args = parser.parse_args()
  names = args.parts.split(',')
  if unknown := set(names) - set(_PARTS):
    parser.error(f'--parts knows {", ".join(_PARTS)}, not {unknown}')
  deadline = time.monotonic() + 60 * args.minutes
  (device,), _ = _run_part(_command('device', None, '{}', ''), 120)
  sizes = json.dumps(_SMALL if device['platform'] == 'cpu' else _FULL)
  results, left_out = dict(device), {}
  # A part that is stopped may still be writing.
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    for name in names:
      command = _command(name, args.timm_python, sizes, folder)
      if isinstance(command, str):
        left_out[name] = command
        continue
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
