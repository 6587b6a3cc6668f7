"""Times the first answer about an image, from the start of the process.

python benchmarks/first_answer.py [--timm_python=/path/to/python]

`python -m nfnets.classify cat.jpg --weights=W`, of NFNet-F0 with random
weights, on each runtime: the first time, with an empty cache, and the second
time; and a script of timm's that does the same, in the Python of an environment
that has timm and PyTorch. They take turns; the time is from the start of the
process to the first line that it prints. Files have been read before, so they
are in memory. The last line of standard output is JSON: medians, in seconds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

_TIMM = """
import sys
import timm, torch
from PIL import Image
model = timm.create_model('dm_nfnet_f0', checkpoint_path=sys.argv[1]).eval()
config = timm.data.resolve_data_config({}, model=model)
transform = timm.data.create_transform(**config)
image = transform(Image.open(sys.argv[2]).convert('RGB'))[None]
with torch.inference_mode():
  probabilities = model(image)[0].softmax(-1)
for p, label in zip(*probabilities.topk(5)):
  print(f'{p:.2%} {label}', flush=True)
"""
_MAKE_WEIGHTS = """
import sys
import jax, numpy as np, safetensors.numpy
import nfnets
from nfnets import weights
model = nfnets.create_model('nfnet_f0')
params, _ = jax.device_get(model.init(jax.random.key(0), 32))
rng = np.random.default_rng(0)
for leaves in params.values():
  for name, x in leaves.items():
    if name == 'skip_gain':
      leaves[name] = np.float32(rng.uniform(0.5, 1.5))
last = params['NFNet/~/linear']
last['w'] = rng.normal(0, 0.02, last['w'].shape).astype(np.float32)
weights.save_weights(sys.argv[1] + '/f0.safetensors', params)
tensors = weights.to_timm('dm_nfnet_f0', params)
tensors = {key: np.ascontiguousarray(x) for key, x in tensors.items()}
safetensors.numpy.save_file(tensors, sys.argv[1] + '/timm.safetensors')
"""


def _seconds(command: list[str], cache: pathlib.Path) -> float:
  """Returns how long a command takes to its first line."""
  env = {**os.environ, 'XDG_CACHE_HOME': str(cache)}
  start = time.perf_counter()
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
  ) as process:
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    _, errors = process.communicate()
  if not line or process.returncode:
    raise SystemExit(f'{command[0]} failed:\n{errors.decode()}')
  return seconds


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--timm_python', help='a Python with timm and PyTorch')
  parser.add_argument('--runtimes', default='auto', help='separated by commas')
  parser.add_argument('--precision', default='float32')
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  times: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    subprocess.run([sys.executable, '-c', _MAKE_WEIGHTS, name], check=True)
    image = folder / 'cat.jpg'
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    Image.fromarray(noise).resize((500, 375)).save(image)
    timm = [args.timm_python, '-c', _TIMM, f'{name}/timm.safetensors', image]
    for turn in range(args.repeats + 1):
      taken = {}
      if args.timm_python:
        taken['timm'] = _seconds([*map(str, timm)], folder)
      for runtime in args.runtimes.split(','):
        command = [
          *(sys.executable, '-m', 'nfnets.classify', str(image)),
          *(f'--weights={name}/f0.safetensors', f'--runtime={runtime}'),
          f'--precision={args.precision}',
        ]
        with tempfile.TemporaryDirectory(dir=folder) as cache:
          for call in ('first', 'second'):
            taken[f'{runtime}, {call}'] = _seconds(command, pathlib.Path(cache))
      if turn:  # In the first one, files are read from the disk.
        for key, seconds in taken.items():
          times.setdefault(key, []).append(seconds)
  medians = {key: statistics.median(x) for key, x in times.items()}
  for key, seconds in medians.items():
    ratio = f'{seconds / medians["timm"]:6.2f}x' if 'timm' in medians else ''
    print(f'{key:22} {seconds:6.2f} s {ratio}', file=sys.stderr)
  print(json.dumps({'seconds': {k: round(x, 2) for k, x in medians.items()}}))


if __name__ == '__main__':
  main()
