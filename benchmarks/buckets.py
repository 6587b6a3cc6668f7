"""Times the input pipeline from a bucket beside that from the local disk.

python benchmarks/buckets.py [--latency=0.03] [--images=1024] [--repeats=5]
    [--data_dir=DIR] [--tasks=read,crop_flip,randaugment]

The bucket is the emulated one (`emulated_store.py`) on this machine; each of
its answers waits for --latency seconds. The dataset and the tasks are those of
`input_pipeline.py`: 500 x 375 JPEGs of about 95 kB in TFDS's records. Prints,
as medians of --repeats,

  images per second from the disk, from the bucket, and their ratio;
  CPU milliseconds per image of the pipeline, and those of the emulated store,
    which on a real machine are not there: where the cores are busy, the ratio
    would be better by that much;
  the seconds for the first opening, which makes the index, and for the next.

Every measurement is a process of its own; those of the disk and the bucket take
turns. The last line of standard output is JSON.
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

import emulated_store
import input_pipeline

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TASKS = ('read', 'crop_flip', 'randaugment', 'eval')


def _open(data_dir: str) -> None:
  """Opens the dataset and prints how long that took, with the index."""
  sys.path.insert(0, str(_ROOT))
  from nfnets.data import dataset, records

  start = time.perf_counter()
  builder = dataset.load_builder('imagenet2012', data_dir)
  opened = time.perf_counter()
  records.open_records(builder, 'train').close()
  done = time.perf_counter()
  seconds = {'builder': opened - start, 'records': done - opened}
  print(json.dumps(seconds))


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _run(
  task: str, args: argparse.Namespace, data_dir: str, environment: dict
) -> dict:
  """Runs a task in a process of its own; returns the JSON that it prints."""
  if task == 'open':
    command = [__file__, '--open', f'--data_dir={data_dir}']
  else:
    command = [input_pipeline.__file__, f'--task={task}']
    command += [f'--images={args.images}', f'--data_dir={data_dir}']
  result = subprocess.run(
    [sys.executable, *command],
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  if result.returncode:
    sys.exit(f'{result.stderr}\n{" ".join(command)} failed.')
  lines = result.stdout.splitlines()
  return json.loads(lines[-1]) if lines else {}


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--latency', type=float, default=0.03, help='seconds')
  parser.add_argument('--images', type=int, default=1024, help='per timing')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--data_dir', help='for the dataset')
  parser.add_argument('--tasks', default='read,crop_flip,randaugment')
  parser.add_argument('--open', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.open:
    _open(args.data_dir)
    return
  tasks = args.tasks.split(',')
  if set(tasks) - set(_TASKS):
    parser.error(f'--tasks: of {", ".join(_TASKS)}')

  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.data_dir or temporary, str(args.images))
    _say('Makes the dataset unless it is there.')
    _run('make', args, str(folder), {})
    dataset = folder / 'imagenet2012'
    for index in dataset.rglob('*.record_index.npz'):
      index.unlink()  # It is made once more, here and in the bucket.
    with emulated_store.start(latency=args.latency, folder=folder) as store:
      places = {
        'disk': (str(folder), {}),
        'bucket': (store.bucket, store.environment),
      }
      results = {'cores': os.cpu_count(), 'latency': args.latency}
      for what in ('first', 'next'):
        results[f'{what}_opening_seconds'] = {
          place: _run('open', args, *where) for place, where in places.items()
        }
      results['tasks'] = {}
      for task in tasks:
        results['tasks'][task] = _measure(task, args, store, places)
        _show(task, results['tasks'][task])
  _say(f'Opening: {results["first_opening_seconds"]}, at first;')
  _say(f'         {results["next_opening_seconds"]}, after that.')
  print(json.dumps(results))


def _measure(
  task: str,
  args: argparse.Namespace,
  store: emulated_store.Store,
  places: dict[str, tuple[str, dict]],
) -> dict[str, float]:
  """Returns the medians of one task."""
  values = {place: [] for place in places}
  store_ms = []
  for _ in range(args.repeats):
    for place, where in places.items():
      cpu, reads = store.cpu_seconds(), store.requests()['read']
      values[place].append(_run(task, args, *where))
      reads = store.requests()['read'] - reads
      if reads:
        store_ms.append(1000 * (store.cpu_seconds() - cpu) / reads)
  median = {
    f'{place}_{unit}': statistics.median(value[unit] for value in of)
    for place, of in values.items()
    for unit in ('images_per_second', 'cpu_ms_per_image')
  }
  disk, bucket = (
    [value['images_per_second'] for value in values[place]]
    for place in ('disk', 'bucket')
  )
  ratios = [b / d for b, d in zip(bucket, disk, strict=True)]
  return median | {
    'ratio': statistics.median(ratios),
    'ratio_from': min(ratios),
    'ratio_to': max(ratios),
    'store_cpu_ms_per_read': statistics.median(store_ms),
  }


def _show(task: str, of: dict[str, float]) -> None:
  _say(
    f'{task:12} disk {of["disk_images_per_second"]:.0f} images/s, bucket '
    f'{of["bucket_images_per_second"]:.0f}, ratio {of["ratio"]:.2f} '
    f'({of["ratio_from"]:.2f} to {of["ratio_to"]:.2f}); CPU ms per image: disk '
    f'{of["disk_cpu_ms_per_image"]:.2f}, bucket '
    f'{of["bucket_cpu_ms_per_image"]:.2f}, and the store itself '
    f'{of["store_cpu_ms_per_read"]:.2f}'
  )


if __name__ == '__main__':
  main()
