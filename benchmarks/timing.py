"""Helpers of the benchmarks: arguments, processes, timing in turns, output.

The module imports only the standard library, because timm's Python has neither
JAX nor this project.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
# For a clone that is not installed, and for the tests' images.
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
_REPEATS = 5


def arguments(doc: str, **defaults: Any) -> argparse.Namespace:
  """Parse the command line with the options {name: default}."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, default in defaults.items():
    kind = {'type': str if default is None else type(default)}
    if default is False:
      kind = {'action': 'store_true'}
    parser.add_argument(
      f'--{name}', default=default, help='(%(default)s)', **kind
    )
  return parser.parse_args()


def say(text: str) -> None:
  """Print a line to standard error."""
  print(text, file=sys.stderr, flush=True)


def table(rows: Mapping[str, Mapping[str, float]]) -> None:
  """Print a line for each row, with the names of its numbers."""
  for name, row in rows.items():
    say(f'{name:28}' + '  '.join(f'{k} {x:.4g}' for k, x in row.items()))


def emit(**result: Any) -> None:
  """Print a result as a line of JSON."""
  print(json.dumps(result), flush=True)


def run_json(command: Iterable[Any], **kwargs: Any) -> dict[str, Any]:
  """Run a command and return its last line, JSON; exit if it fails."""
  command = [*map(str, command)]
  result = subprocess.run(command, capture_output=True, text=True, **kwargs)
  if result.returncode:
    sys.exit(f'{result.stderr}\n{" ".join(command)} failed.')
  lines = result.stdout.splitlines()
  return json.loads(lines[-1]) if lines else {}


def medians(
  calls: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, float]:
  """Return the median result of each call.

  The calls alternate, so that all see the same noise. The first turn is a
  warm-up.
  """
  turns = [
    {name: call() for name, call in calls.items()} for _ in range(1 + repeats)
  ]
  return {
    name: statistics.median(turn[name] for turn in turns[1:]) for name in calls
  }


def take_turns(
  commands: Mapping[str, Iterable[Any]], requests: Iterable[str], repeats: int
) -> dict[str, dict[str, float]]:
  """Time requests to processes that call `serve`, in turns.

  Args:
    commands: {name: command} of the processes.
    requests: requests such as 'infer 8 256'.
    repeats: number of timed turns.

  Returns:
    {request: {name: median seconds}}.
  """
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  workers = {
    name: subprocess.Popen([*map(str, command)], **pipes)
    for name, command in commands.items()
  }

  def ask(name, request):
    print(request, file=workers[name].stdin, flush=True)
    line = workers[name].stdout.readline()
    return float(line) if line else sys.exit(f'{name} failed.')

  results = {}
  for request in requests:
    calls = {name: functools.partial(ask, name, request) for name in workers}
    results[request] = medians(calls, repeats)
    say(f'{request}, seconds:')
    table({name: {'': x} for name, x in results[request].items()})
  for worker in workers.values():
    worker.communicate()
  return results


def serve(prepare: Callable[..., Callable[[], object]]) -> None:
  """Time prepare(what, batch, size)() for the requests on standard input."""
  calls = {}
  for line in sys.stdin:
    what, batch, size = line.split()
    if line not in calls:
      calls[line] = prepare(what, int(batch), int(size))
      calls[line]()
    start = time.perf_counter()
    calls[line]()
    print(time.perf_counter() - start, flush=True)


def serve_timm(dtype: str) -> None:
  """Serve timm's NFNet-F0 in eager PyTorch on a CPU, channels last."""
  import timm
  import torch

  dtype = getattr(torch, dtype)
  model = timm.create_model('dm_nfnet_f0')
  model = model.to(dtype, memory_format=torch.channels_last)

  def prepare(what, batch, size):
    images = torch.randn(batch, 3, size, size)
    images = images.to(dtype, memory_format=torch.channels_last)

    def call():
      model.train(what == 'train')
      with torch.inference_mode(what == 'infer'):
        logits = model(images)
      if what == 'train':
        torch.nn.functional.cross_entropy(
          logits, torch.arange(batch)
        ).backward()

    return call

  serve(prepare)


def median_seconds(run: Callable[[int], None], group: float) -> float:
  """Return the median time of a call over several groups of calls.

  Args:
    run: makes a number of calls and waits for the last one.
    group: approximate duration of a group, in seconds.
  """
  run(2)  # Warm-up.
  start = time.perf_counter()
  run(1)
  count = max(1, int(group / (time.perf_counter() - start)))
  times = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    run(count)
    times.append((time.perf_counter() - start) / count)
  return statistics.median(times)


def loop(fn: Callable[..., Any], *args: Any) -> Callable[[int], None]:
  """Return a function that calls a compiled function N times."""
  import jax

  def run(count):
    for _ in range(count):
      out = fn(*args)
    jax.block_until_ready(out)

  return run


def draw_jpegs(folder: pathlib.Path, count: int) -> None:
  """Draw JPEGs of 500 x 375 pixels and about 94 kB, unless they exist."""
  import tensorflow as tf
  import tiny_imagenet

  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    path = folder / f'{i}.jpeg'
    if not path.exists():
      image = tf.io.decode_jpeg(tiny_imagenet.make_jpeg(i, (375, 500, 3)))
      path.write_bytes(tf.io.encode_jpeg(image, quality=94).numpy())


def random_network(name: str = 'nfnet_f0') -> tuple[Any, Any, Any]:
  """Return a model, and random parameters and state without zero gains.

  Branches with a zero gain, as in a new network, may run faster.
  """
  import jax
  import numpy as np

  import nfnets

  model = nfnets.create_model(name)
  params, state = jax.device_get(model.init(jax.random.key(0)))
  rng = np.random.default_rng(0)
  for leaves in params.values():
    for key, x in leaves.items():
      if key == 'skip_gain':
        leaves[key] = np.float32(rng.uniform(0.5, 1.5))
      elif not np.any(x):
        width = np.prod(x.shape[:-1]) ** 0.5 if x.ndim > 1 else 10
        leaves[key] = np.float32(rng.normal(0, 1 / width, x.shape))
  return model, params, state


def save_random_network(path: pathlib.Path, name: str = 'nfnet_f0') -> Any:
  """Write the weights of `random_network` to a file; return the network."""
  from nfnets import weights

  model, params, state = random_network(name)
  weights.save_weights(path, params, state, weights.describe(model))
  return model, params, state
