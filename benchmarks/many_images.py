"""Times classifying a folder of JPEGs beside timm and the runtimes alone.

python benchmarks/many_images.py [--timm_python=/path/to/python]
    [--images=1000] [--repeats=1] [--ways=openvino-bfloat16,timm-bfloat16]

NFNet-F0 at 256 pixels with random weights; JPEGs that are drawn, 500 x 375
pixels and about 94 kB each. Prints images per second of

  RUNTIME-PRECISION          python -m nfnets.classify FOLDER --output=FILE
  RUNTIME-PRECISION alone    the same network on images in memory, with as many
                             calls at the same time
  timm-PRECISION             `many_images_timm.py`: timm, channels last, in the
                             best of some batch sizes and workers

and the seconds that pass before that rate: starting, reading the weights,
compiling, the first batch. The ways take turns, each a process of its own. What
is not installed is left out. The last line of standard output is JSON.
"""

import argparse
from collections.abc import Iterator
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SHAPE = (375, 500, 3)
_QUALITY = 94  # For as many bytes as photos of that size have.
_RUNTIMES = ('jax', 'onnxruntime', 'openvino')
_PRECISIONS = ('float32', 'bfloat16')
# Batch size and workers; which is best depends on the machine.
_TIMM = ((8, 1), (16, 1), (32, 1), (16, 2))
_TRIAL = 64  # Images, to find the best of them.


def _make(folder: pathlib.Path, count: int) -> None:
  """Draws JPEGs and saves weights, unless they are there."""
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]
  jpegs = folder / 'jpegs'
  jpegs.mkdir(parents=True, exist_ok=True)
  if missing := [i for i in range(count) if not (jpegs / f'{i}.jpg').exists()]:
    import tensorflow as tf
    import tiny_imagenet

    for i in missing:
      image = tf.io.decode_jpeg(tiny_imagenet.make_jpeg(i, _SHAPE))
      content = tf.io.encode_jpeg(image, quality=_QUALITY).numpy()
      (jpegs / f'{i}.jpg').write_bytes(content)
  if not (folder / 'f0.safetensors').exists():
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
    metadata = weights.describe(model)
    weights.save_weights(folder / 'f0.safetensors', params, metadata=metadata)


def _time_alone(folder: pathlib.Path, way: str, count: int, batch: int) -> None:
  """Runs a network on images in memory; prints how fast that was."""
  sys.path.insert(0, str(_ROOT))
  from concurrent import futures

  import numpy as np

  from nfnets.inference import networks
  from nfnets.inference.many import running

  runtime, precision = way.split('-')
  network = networks.open_network(
    str(folder / 'f0.safetensors'),
    runtime=runtime,
    precision=precision,
    throughput=True,
  )
  size = network.image_size
  images = np.random.default_rng(0).normal(size=(batch, size, size, 3))
  images = np.float32(images)
  calls = running.calls(network)
  network.logits(images)
  with futures.ThreadPoolExecutor(calls) as pool:
    for done in [pool.submit(network.logits, images) for _ in range(calls)]:
      done.result()
    start = time.perf_counter()
    number = max(count // batch, 1)
    for done in [pool.submit(network.logits, images) for _ in range(number)]:
      done.result()
  rate = number * batch / (time.perf_counter() - start)
  print(json.dumps({'images_per_second': rate}))


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


class _Ways:
  """Everything that is measured, as commands."""

  def __init__(self, args: argparse.Namespace, folder: pathlib.Path):
    self._args, self._folder = args, folder
    self._python = args.timm_python
    self._timm: dict[str, tuple[int, int]] = {}

  def names(self) -> Iterator[str]:
    for precision in _PRECISIONS:
      for runtime in _RUNTIMES:
        # ONNX Runtime has no bfloat16 on a CPU.
        if importlib.util.find_spec(runtime) and (
          precision != 'bfloat16' or runtime != 'onnxruntime'
        ):
          yield f'{runtime}-{precision}'
          yield f'{runtime}-{precision} alone'
      if self._python:
        yield f'timm-{precision}'

  def measure(self, name: str) -> dict[str, float]:
    """Returns images per second and the seconds before that rate."""
    way, _, alone = name.partition(' ')
    if alone:
      return self._run(
        [
          *(sys.executable, __file__, f'--alone={way}'),
          *(f'--images={self._count()}', f'--batch={self._args.batch}'),
          f'--data_dir={self._folder}',
        ]
      )
    runtime, precision = way.split('-')
    if runtime == 'timm':
      return self._time_timm(precision)
    output = self._folder / 'result.jsonl'
    return self._run(
      [
        *(sys.executable, '-m', 'nfnets.classify', self._jpegs()),
        f'--weights={self._folder / "f0.safetensors"}',
        *(f'--runtime={runtime}', f'--precision={precision}'),
        *(f'--batch_size={self._args.batch}', f'--output={output}'),
      ]
    )

  def _time_timm(self, precision: str) -> dict[str, float]:
    if precision not in self._timm:
      some = self._folder / 'some'
      some.mkdir(exist_ok=True)
      for i in range(_TRIAL):
        if not (some / f'{i}.jpg').exists():
          (some / f'{i}.jpg').symlink_to(self._folder / 'jpegs' / f'{i}.jpg')
      rates = {
        how: self._run_timm(str(some), precision, *how)['images_per_second']
        for how in _TIMM
      }
      self._timm[precision] = max(rates, key=rates.get)
      shown = ', '.join(f'{b}x{w}: {rates[b, w]:.2f}' for b, w in rates)
      _say(f'timm {precision}, batch x workers: {shown}')
    return self._run_timm(self._jpegs(), precision, *self._timm[precision])

  def _run_timm(
    self, folder: str, precision: str, batch: int, workers: int
  ) -> dict[str, float]:
    return self._run(
      [
        *(self._python, str(_ROOT / 'benchmarks' / 'many_images_timm.py')),
        *(folder, f'--precision={precision}'),
        *(f'--batch={batch}', f'--workers={workers}'),
      ]
    )

  def _jpegs(self) -> str:
    return str(self._folder / f'jpegs_{self._args.images}')

  def _count(self) -> int:
    return min(self._args.images, 200)

  def _run(self, command: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    result = subprocess.run(
      command, capture_output=True, text=True, cwd=_ROOT, check=False
    )
    seconds = time.perf_counter() - start
    if result.returncode:
      sys.exit(f'{result.stderr}\n{" ".join(command)} failed.')
    found = json.loads(result.stdout.splitlines()[-1])
    rate, count = found['images_per_second'], found.get('images')
    if count is None:
      return {'images_per_second': rate}
    return {
      'images_per_second': rate,
      'start_seconds': seconds - count / rate,
      'total_seconds': seconds,
    }


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--timm_python', help='a Python with timm and PyTorch')
  parser.add_argument('--images', type=int, default=1000)
  parser.add_argument('--repeats', type=int, default=1)
  parser.add_argument('--batch', type=int, default=8, help='images, of ours')
  parser.add_argument('--data_dir', help='for the images; else a temporary one')
  parser.add_argument('--ways', help='of those above, with commas; or all')
  parser.add_argument('--alone', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.alone:
    _time_alone(
      pathlib.Path(args.data_dir), args.alone, args.images, args.batch
    )
    return

  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.data_dir or temporary)
    _say(f'Makes {args.images} JPEGs and weights unless they are there.')
    _make(folder, max(args.images, _TRIAL))
    links = folder / f'jpegs_{args.images}'
    links.mkdir(exist_ok=True)
    for i in range(args.images):
      if not (links / f'{i}.jpg').exists():
        os.link(folder / 'jpegs' / f'{i}.jpg', links / f'{i}.jpg')
    ways = _Ways(args, folder)
    names = [*ways.names()]
    if args.ways:
      unknown = set(args.ways.split(',')) - set(names)
      if unknown:
        parser.error(f'--ways: {", ".join(unknown)} not in {names}')
      names = args.ways.split(',')
    measured = {name: [] for name in names}
    for _ in range(args.repeats):  # In turn, so that all see the same noise.
      for name in names:
        measured[name].append(ways.measure(name))
        _say(f'{name}: {measured[name][-1]}')

  results = {
    name: {
      key: round(statistics.median(value[key] for value in values), 3)
      for key in values[0]
    }
    for name, values in measured.items()
  }
  _show(results)
  print(json.dumps({'images': args.images, 'ways': results}))


def _show(results: dict[str, dict[str, float]]) -> None:
  """Prints the table, with ratios to timm's and to the runtime's alone."""
  _say(f'{"":28}{"images/s":>10}{"of timm":>9}{"of alone":>9}{"start":>9}')
  for name, found in results.items():
    rate = found['images_per_second']
    row = f'{name:28}{rate:10.2f}'
    precision = name.split()[0].split('-')[1]
    for other in (f'timm-{precision}', f'{name} alone'):
      known = results.get(other)
      ratio = f'{rate / known["images_per_second"]:.2f}' if known else '-'
      row += f'{ratio:>9}'
    start = found.get('start_seconds')
    _say(row + ('' if start is None else f'{start:7.1f} s'))


if __name__ == '__main__':
  main()
