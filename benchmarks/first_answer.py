"""Times the first answer about an image, from the start of the process.

python benchmarks/first_answer.py [--timm_python=/path/to/python]

Runs `python -m nfnets.classify cat.jpg --weights=W` with NFNet-F0 and random
weights on each runtime: the first time, with an empty cache, and the second
time. --timm_python, the Python of an environment with timm and PyTorch, adds an
equivalent script of timm's. The calls take turns, after a warm-up turn that
reads the files from the disk. A time ends with the first line of output. The
last line of standard output is JSON: medians, in seconds.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image
import timing

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


def _first_line(command: list[str], cache: pathlib.Path) -> float:
  """Return the seconds until a command prints its first line."""
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
  """Run the benchmark."""
  args = timing.arguments(
    *(__doc__,),
    **{'runtimes': 'auto', 'precision': 'float32'},
    **{'repeats': 5, 'timm_python': None},
  )
  import safetensors.numpy

  from nfnets import weights

  calls = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    _, params, _ = timing.save_random_network(folder / 'f0.safetensors')
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    Image.fromarray(noise).resize((500, 375)).save(folder / 'cat.jpg')
    if args.timm_python:
      tensors = weights.to_timm('dm_nfnet_f0', params)
      tensors = {key: np.ascontiguousarray(x) for key, x in tensors.items()}
      safetensors.numpy.save_file(tensors, folder / 'timm.safetensors')
      command = [args.timm_python, '-c', _TIMM, f'{name}/timm.safetensors']
      command.append(f'{name}/cat.jpg')
      calls['timm'] = functools.partial(_first_line, command, folder)
    for runtime in args.runtimes.split(','):
      command = [
        *(sys.executable, '-m', 'nfnets.classify', f'{name}/cat.jpg'),
        *(f'--weights={name}/f0.safetensors', f'--runtime={runtime}'),
        f'--precision={args.precision}',
      ]
      cache = folder / runtime

      def first(command=command, cache=cache):
        subprocess.run(['rm', '-rf', cache], check=True)
        return _first_line(command, cache)

      calls[f'{runtime}, first'] = first
      calls[f'{runtime}, second'] = functools.partial(
        _first_line, command, cache
      )
    seconds = timing.medians(calls, args.repeats)
  timing.table({key: {'seconds': x} for key, x in seconds.items()})
  timing.emit(seconds=seconds)


if __name__ == '__main__':
  main()
