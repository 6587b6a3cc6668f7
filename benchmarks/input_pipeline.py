"""Times the input pipeline beside timm's, and its stages.

python benchmarks/input_pipeline.py [--timm_python=/path/to/python]
    [--images=1024] [--repeats=5] [--data_dir=DIR] [--tasks=folder,crop_flip]

Prints images per second, CPU milliseconds per image (user and system) and the
most memory held, all of a process with its workers, of

  randaugment  the NFNet-F0 recipe without mixing: crop_flip to 192 px, then
               RandAugment with 4 layers of magnitude 5; uint8 comes out
  timm         the same by timm and PyTorch's DataLoader, a worker per core,
               from the same JPEGs in folders: rand-m5-n4, collated to uint8
  timm_p1      timm, rand-m5-n4-p1.0: timm alone leaves out each layer half of
               the time, here it leaves out none, as in `randaugment`
  mixing       the whole recipe, in which every image is made from two
  eval         crop_resize to 256 px; float32
  crop_flip    training without RandAugment; float32
  folder       the same from the JPEGs in folders, instead of TFDS's records
  resize, decode, read
               ever less of crop_flip: without the flip, without resizing,
               without decoding

and what each stage costs: the differences between those. timm is measured only
with the Python of an environment that has timm and PyTorch.

The JPEGs are drawn, 500 x 375 pixels and about 94 kB each (printed), and made
into a dataset by TFDS's own ImageNet builder, once, in DIR or else a temporary
folder. Every measurement is a process of its own that loads 512 images to warm
up and then is timed for --images; the processes take turns, and never work at
the same time. Medians are printed. Memory is the peak of the process, and what
its workers do not share with it, sampled at batches. Linux only. The last line
of standard output is JSON.
"""

import argparse
from collections.abc import Iterator
import itertools
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

# Only the standard library at the top: timm's Python has neither TensorFlow
# nor JAX.
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_BATCH = 64
_WARM_UP = 512
_TRAIN_SIZE, _EVAL_SIZE = 192, 256
_SHAPE = (375, 500, 3)
_QUALITY = 94  # Of the JPEGs, for as many bytes as photos of that size have.
_MAGNITUDE, _LAYERS = 5, 4
_RANDAUGMENT = f'randaugment_{_LAYERS}{_MAGNITUDE:02}'

# The augment_name of each way to train.
_AUGMENT = {
  'randaugment': _RANDAUGMENT,
  'mixing': f'cutmix_mixup_0.4_{_RANDAUGMENT}',
  'crop_flip': '',
}
_PARTS = ('resize', 'decode', 'read')
_OURS = (*_AUGMENT, 'folder', 'eval', *_PARTS)
_TIMM = {
  'timm': f'rand-m{_MAGNITUDE}-n{_LAYERS}',
  'timm_p1': f'rand-m{_MAGNITUDE}-n{_LAYERS}-p1.0',
}
# Of each stage, what it ends with and what it starts from.
_STAGES = {
  'read and batch': ('read', None),
  'crop and decode': ('decode', 'read'),
  'resize': ('resize', 'decode'),
  'flip': ('crop_flip', 'resize'),
  'RandAugment': ('randaugment', 'crop_flip'),
}
_UNITS = ('images_per_second', 'cpu_ms_per_image', 'gib')


def _make_data(data_dir: pathlib.Path, num_images: int) -> None:
  """Makes the JPEGs, as a TFDS dataset and in folders, unless they exist."""
  sys.path.insert(0, str(_ROOT / 'tests'))
  import tensorflow as tf
  import tiny_imagenet

  tf.config.set_visible_devices([], 'GPU')
  draw = tiny_imagenet.make_jpeg

  def make_jpeg(seed, shape):
    image = tf.io.decode_jpeg(draw(seed, shape))
    content = tf.io.encode_jpeg(image, quality=_QUALITY).numpy()
    if seed < num_images:  # The others are for the test split.
      folder = data_dir / 'jpegs' / str(seed % 8)
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f'{seed}.jpeg').write_bytes(content)
    return content

  with mock.patch.object(tiny_imagenet, 'make_jpeg', make_jpeg):
    tiny_imagenet.make(data_dir, num_images, 1, (_SHAPE,))
  shutil.rmtree(data_dir / 'downloads', ignore_errors=True)


def _our_batches(name: str, data_dir: str) -> Iterator:
  sys.path.insert(0, str(_ROOT))  # For a clone that is not installed.
  import tensorflow as tf

  from nfnets.data import dataset, preprocess

  tf.config.set_visible_devices([], 'GPU')
  if name == 'folder':
    builder = dataset.load_builder(os.path.join(data_dir, 'jpegs'))
  else:
    builder = dataset.load_builder('imagenet2012', data_dir)
  if name == 'eval':
    return dataset.eval_batches(
      builder,
      'train_and_valid',
      image_size=_EVAL_SIZE,
      preprocessing='crop_resize',
      global_batch_size=_BATCH,
    )

  def process_partly(image, seed):
    size = (_TRAIN_SIZE,) * 2
    if name == 'read':
      first = tf.strings.length(image)
    else:
      shape = tf.io.extract_jpeg_shape(image)[:2]
      window = preprocess.random_window(shape, size, seed)
      crop = tf.io.decode_and_crop_jpeg(image, window, channels=3)
      if name == 'resize':
        return tf.image.resize(crop, size, 'bicubic')
      first = crop[0, 0, 0]
    # Something to batch, for which the rest cannot be left out.
    return tf.fill([*size, 3], tf.cast(first, tf.float32))

  process = preprocess.train_preprocessing
  if name in _PARTS:
    process = lambda *_: process_partly  # noqa: E731
  with mock.patch.object(preprocess, 'train_preprocessing', process):
    return dataset.train_batches(
      builder,
      'train_and_valid',
      image_size=_TRAIN_SIZE,
      global_batch_size=_BATCH,
      seed=0,
      augment_name=_AUGMENT.get(name, ''),
    )


def _timm_batches(name: str, data_dir: str) -> Iterator:
  import timm.data
  from timm.data.loader import fast_collate
  import torch

  transform = timm.data.create_transform(
    _TRAIN_SIZE,
    is_training=True,
    interpolation='bicubic',
    auto_augment=_TIMM[name],
    color_jitter=None,
    use_prefetcher=True,  # Which leaves images uint8.
  )
  loader = torch.utils.data.DataLoader(
    timm.data.ImageDataset(
      os.path.join(data_dir, 'jpegs'), transform=transform
    ),
    batch_size=_BATCH,
    shuffle=True,
    num_workers=os.cpu_count(),
    collate_fn=fast_collate,
    persistent_workers=True,
  )
  return iter(loader)


def _workers() -> list[pathlib.Path]:
  """Returns the worker processes, in /proc."""
  workers = multiprocessing.active_children()
  return [pathlib.Path('/proc', str(worker.pid)) for worker in workers]


def _cpu_seconds() -> float:
  ticks = 0
  for process in (pathlib.Path('/proc/self'), *_workers()):
    # What follows the name, which may hold spaces.
    fields = (process / 'stat').read_text().rpartition(')')[2].split()
    ticks += int(fields[11]) + int(fields[12])
  return ticks / os.sysconf('SC_CLK_TCK')


def _worker_kib() -> int:
  """Returns the memory that workers do not share with any process."""
  kib = 0
  for process in _workers():
    lines = (process / 'smaps_rollup').read_text().splitlines()
    kib += sum(int(line.split()[1]) for line in lines if 'Private_' in line)
  return kib


def _measure(name: str, data_dir: str, num_images: int) -> None:
  """Loads images and prints what that took."""
  load = _timm_batches if name in _TIMM else _our_batches
  batches = load(name, data_dir)
  worker_kib = 0
  for i, _ in enumerate(itertools.islice(batches, _WARM_UP // _BATCH)):
    if i < _WARM_UP // _BATCH // 2:  # Takes long enough to read ahead.
      worker_kib = max(worker_kib, _worker_kib())
  cpu, start = _cpu_seconds(), time.perf_counter()
  for _ in itertools.islice(batches, num_images // _BATCH):
    pass
  seconds = time.perf_counter() - start
  cpu = _cpu_seconds() - cpu
  worker_kib = max(worker_kib, _worker_kib())
  kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + worker_kib
  values = num_images / seconds, 1000 * cpu / num_images, kib / 2**20
  print(json.dumps(dict(zip(_UNITS, values, strict=True))))


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _show(runs: dict[str, dict[str, float]], spans: dict[str, str]) -> None:
  """Prints the table, with ratios to timm's where that was measured."""
  titles = ('images/s', 'CPU ms/image', 'GiB')
  header = ''.join(f'{title:>14}{"of timm":>9}' for title in titles)
  _say(f'{"":12}{header}   images/s from - to')
  for name, of in runs.items():
    row = ''
    for unit in _UNITS:
      comparable = 'timm' in runs and name not in _PARTS
      ratio = f'{of[unit] / runs["timm"][unit]:.2f}' if comparable else '-'
      row += f'{of[unit]:14.2f}{ratio:>9}'
    _say(f'{name:12}{row}   {spans[name]}')


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--timm_python', help='a Python with timm and PyTorch')
  parser.add_argument('--images', type=int, default=1024, help='per timing')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--data_dir', help='for the dataset')
  parser.add_argument('--tasks', help='of those above, with commas; or all')
  parser.add_argument('--task', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.images < 1 or args.images % _BATCH:
    parser.error(f'--images has to be a multiple of {_BATCH}')
  # More than are loaded, so that reading ahead never comes to an end.
  num_images = args.images + 2 * _WARM_UP
  if args.task == 'make':
    _make_data(pathlib.Path(args.data_dir), num_images)
    return
  if args.task:
    _measure(args.task, args.data_dir, args.images)
    return

  with tempfile.TemporaryDirectory() as temporary:
    data_dir = pathlib.Path(args.data_dir or temporary, str(num_images))

    def run(task: str, python: str = sys.executable) -> str:
      command = [python, __file__, f'--task={task}', f'--images={args.images}']
      command.append(f'--data_dir={data_dir}')
      result = subprocess.run(command, capture_output=True, text=True)
      if result.returncode:
        sys.exit(f'{result.stderr}\n{" ".join(command)} failed.')
      return result.stdout

    _say(f'Makes {num_images} JPEGs unless they are there.')
    run('make')
    sizes = [f.stat().st_size for f in (data_dir / 'jpegs').glob('*/*.jpeg')]
    pythons = dict.fromkeys(_TIMM, args.timm_python) if args.timm_python else {}
    pythons |= dict.fromkeys(_OURS, sys.executable)
    if args.tasks:
      unknown = set(args.tasks.split(',')) - set(pythons)
      if unknown:
        parser.error(f'--tasks: {", ".join(unknown)} not in {list(pythons)}')
      pythons = {name: pythons[name] for name in args.tasks.split(',')}
    measured = {name: [] for name in pythons}
    for i in range(args.repeats):  # In turn, so that all see the same noise.
      for name, python in pythons.items():
        measured[name].append(json.loads(run(name, python).splitlines()[-1]))
      _say(f'Has measured {i + 1} of {args.repeats} times.')

  runs, spans = {}, {}
  for name, values in measured.items():
    runs[name] = {
      unit: statistics.median(value[unit] for value in values)
      for unit in _UNITS
    }
    speeds = [value['images_per_second'] for value in values]
    spans[name] = f'{min(speeds):.0f} - {max(speeds):.0f}'
  cpu = {name: of['cpu_ms_per_image'] for name, of in runs.items()}
  stages = {
    stage: cpu[last] - (cpu[first] if first else 0)
    for stage, (last, first) in _STAGES.items()
    if {last, first or last} <= set(cpu)
  }
  slowest = max(stages, key=stages.get, default=None)
  if {'mixing', 'randaugment', 'crop_flip'} <= set(cpu):
    # Beside making a second image, which the stages above are the parts of.
    stages['mixup and CutMix'] = (
      cpu['mixing'] - cpu['randaugment'] - cpu['crop_flip']
    )

  jpeg_kb = statistics.mean(sizes) / 1000
  _say(
    f'{args.images} images per timing, {args.repeats} timings, batches of '
    f'{_BATCH}, {os.cpu_count()} cores, JPEGs of {jpeg_kb:.1f} kB'
  )
  _show(runs, spans)
  _say('CPU ms per image of the stages:')
  for stage, value in stages.items():
    note = '  the slowest' if stage == slowest else ''
    _say(f'  {stage:18}{value:7.2f}{note}')
  results = {
    'images': args.images,
    'repeats': args.repeats,
    'cores': os.cpu_count(),
    'jpeg_kb': jpeg_kb,
    'runs': runs,
    'stages_cpu_ms': stages,
    'slowest_stage': slowest,
  }
  if 'timm' in runs:
    results['over_timm'] = {
      name: {unit: of[unit] / runs['timm'][unit] for unit in _UNITS}
      for name, of in runs.items()
      if name not in _PARTS
    }
  print(json.dumps(results))


if __name__ == '__main__':
  main()
