"""Time and memory of reading a file of NFNet-F0's weights.

python benchmarks/load_weights.py [--model=nfnet_f0] [--repeats=5]
    [--folder=/tmp/load_weights]

Writes random parameters (286 MB) as the released format has them, in pickle
protocols 2, 4 and 5, and as .npz and .safetensors, and reads each with
`nfnets.weights.load_weights`, and the pickles with `pickle.load` beside it, in
a new process each time, when the file is in the cache of the operating system.
Prints the medians of the seconds, of those of the processor (which other
programs disturb less), and of the memory that a process takes at its peak over
what it had before, and their ratios to those of `pickle.load`. The last line of
standard output is JSON.
"""

import argparse
import json
import pathlib
import pickle
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

# For a clone that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import nfnets  # noqa: E402
from nfnets.weights import files  # noqa: E402

_PROTOCOLS = (2, 4, 5)


def _peak_memory() -> int:
  """Returns the most memory that this process ever had, in bytes (Linux)."""
  status = pathlib.Path('/proc/self/status').read_text().splitlines()
  line = next(line for line in status if line.startswith('VmHWM'))
  return int(line.split()[1]) * 1024


def _write_files(model: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes the files that are not there yet."""
  shapes, _ = jax.eval_shape(nfnets.create_model(model).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32).reshape(x.shape), shapes
  )
  folder.mkdir(parents=True, exist_ok=True)
  paths = {}
  for protocol in _PROTOCOLS:
    path = folder / f'{model}_protocol{protocol}'
    path.write_bytes(pickle.dumps(params, protocol))
    paths[f'protocol {protocol}'] = path
  for suffix in ('.npz', '.safetensors'):
    paths[suffix] = folder / f'{model}{suffix}'
    files.save_weights(paths[suffix], params)
  return paths


def _read(path: str, reader: str) -> dict[str, float]:
  """Reads a file in this process."""
  before = _peak_memory()
  start, cpu_start = time.perf_counter(), time.process_time()
  if reader == 'pickle':
    with open(path, 'rb') as file:
      params = pickle.load(file)
  else:
    params = files.load_weights(path).params
  seconds = time.perf_counter() - start
  cpu_seconds = time.process_time() - cpu_start
  memory = _peak_memory() - before
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  return {
    'seconds': seconds,
    'cpu_seconds': cpu_seconds,
    'mib': memory / 2**20,
    'array_bytes': num_bytes,
  }


def _median(path: pathlib.Path, readers, repeats: int) -> dict[str, dict]:
  """Reads a file with each reader in turn, in new processes."""
  path.read_bytes()  # Into the cache.
  runs = {reader: [] for reader in readers}
  for _ in range(repeats):
    for reader in readers:
      command = [sys.executable, __file__, f'--read={path}', reader]
      out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
      runs[reader].append(json.loads(out.splitlines()[-1]))
  return {
    reader: {k: statistics.median(run[k] for run in of) for k in of[0]}
    for reader, of in runs.items()
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', default='nfnet_f0')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument(
    '--folder', type=pathlib.Path, default='/tmp/load_weights'
  )
  parser.add_argument('--read', help=argparse.SUPPRESS)
  parser.add_argument('reader', nargs='?', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.read:
    print(json.dumps(_read(args.read, args.reader)))
    return

  results = {'model': args.model}
  for name, path in _write_files(args.model, args.folder).items():
    readers = ('nfnets', 'pickle') if 'protocol' in name else ('nfnets',)
    result = _median(path, readers, args.repeats)
    for reader, run in result.items():
      print(
        f'{name:12} {reader:6} {run["seconds"]:.3f} s  '
        f'{run["cpu_seconds"]:.3f} s  {run["mib"]:.0f} MiB'
      )
    if 'pickle' in result:
      ours, plain = result['nfnets'], result['pickle']
      keys = ('seconds', 'cpu_seconds', 'mib')
      ratio = result['ratio'] = {k: ours[k] / plain[k] for k in keys}
      numbers = '     '.join(f'{ratio[k]:.2f}' for k in keys)
      print(f'{"":12} ratio  {numbers}')
    results[name] = result
  print(json.dumps(results))


if __name__ == '__main__':
  main()
