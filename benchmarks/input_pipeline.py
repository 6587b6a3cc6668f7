"""Times the input pipeline and its stages, timm's pipeline, and a bucket.

python benchmarks/input_pipeline.py [--timm_python=/path/to/python]
    [--images=1024] [--repeats=5] [--data_dir=DIR] [--tasks=folder,crop_flip]
    [--bucket --latency=0.03]

Prints images per second, CPU milliseconds per image (user and system) and peak
memory of a process with its workers for these tasks:

  randaugment  the NFNet-F0 recipe without mixing: crop_flip to 192 px, then
               RandAugment with 4 layers of magnitude 5; uint8
  timm         the same in timm and PyTorch's DataLoader, one worker per core,
               from the same JPEGs in folders: rand-m5-n4, uint8
  timm_p1      rand-m5-n4-p1.0: every layer is applied, as in `randaugment`;
               rand-m5-n4 skips each layer with probability 1/2
  mixing       the whole recipe, which mixes each image from two
  eval         crop_resize to 256 px; float32
  crop_flip    training without RandAugment; float32
  folder       the same from JPEGs in folders instead of TFDS records
  resize, decode, read
               parts of crop_flip: without the flip, without resizing, without
               decoding

The differences are the costs of the stages. timm needs --timm_python, the
Python of an environment with timm and PyTorch.

With --bucket, each task (crop_flip and randaugment by default) reads from the
disk and from an emulated bucket on this machine (tests/emulated_store.py) with
--latency seconds per response. Prints the ratios, and the seconds to open the
records the first time, which writes the index, and the next time.

The JPEGs are drawn, 500 x 375 pixels and about 94 kB. TFDS's ImageNet builder
makes a dataset of them in DIR or a temporary folder. Each measurement is a
process that loads 512 images as a warm-up and then --images. The processes take
turns, and medians are printed. Memory is the peak of the process plus the
private memory of its workers. Linux only. The last line of standard output is
JSON.
"""

from collections.abc import Iterator
import contextlib
import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import sys
import tempfile
import time
from unittest import mock

import timing

_BATCH, _WARM_UP = 64, 512
_TRAIN_SIZE, _EVAL_SIZE = 192, 256
# The augment_name of the training tasks.
_AUGMENT = {
  'randaugment': 'randaugment_405',
  'mixing': 'cutmix_mixup_0.4_randaugment_405',
  'crop_flip': '',
}
_PARTS = ('resize', 'decode', 'read')
_OURS = (*_AUGMENT, 'folder', 'eval', *_PARTS)
_TIMM = {'timm': 'rand-m5-n4', 'timm_p1': 'rand-m5-n4-p1.0'}


def _make_data(data_dir: pathlib.Path, num_images: int) -> None:
  """Make the JPEGs in folders and as a TFDS dataset, unless they exist."""
  import tiny_imagenet

  timing.draw_jpegs(data_dir / 'drawn', num_images + 10)
  folders = data_dir / 'jpegs'
  for i in range(0 if folders.exists() else num_images):
    path = folders / str(i % 8) / f'{i}.jpeg'
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(data_dir / 'drawn' / path.name, path)

  def drawn(seed, _):
    return (data_dir / 'drawn' / f'{seed}.jpeg').read_bytes()

  with mock.patch.object(tiny_imagenet, 'make_jpeg', drawn):
    tiny_imagenet.make(data_dir, num_images, 1, ((375, 500, 3),))
  shutil.rmtree(data_dir / 'downloads', ignore_errors=True)


def _our_batches(name: str, data_dir: str) -> Iterator:
  import tensorflow as tf

  from nfnets.data import dataset, preprocess

  if name == 'folder':
    builder = dataset.load_builder(os.path.join(data_dir, 'jpegs'))
  else:
    builder = dataset.load_builder('imagenet2012', data_dir)
  if name == 'eval':
    options = dataset.Options(_EVAL_SIZE, _BATCH, 'crop_resize')
    return dataset.eval_batches(builder, 'train_and_valid', options)

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
    # A result that depends on all computations, so that none is skipped.
    return tf.fill([*size, 3], tf.cast(first, tf.float32))

  process = preprocess.train_preprocessing
  if name in _PARTS:
    process = lambda *_: process_partly  # noqa: E731
  with mock.patch.object(preprocess, 'train_preprocessing', process):
    options = dataset.Options(
      _TRAIN_SIZE, _BATCH, augment_name=_AUGMENT.get(name, '')
    )
    return dataset.train_batches(builder, 'train_and_valid', options)


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
    use_prefetcher=True,  # Images stay uint8.
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


def _used() -> tuple[float, int]:
  """Return CPU seconds of process and workers, and the workers' private KiB."""
  ticks = kib = 0
  workers = [str(child.pid) for child in multiprocessing.active_children()]
  for process in ('self', *workers):
    folder = pathlib.Path('/proc', process)
    # The fields after the name, which may contain spaces.
    fields = (folder / 'stat').read_text().rpartition(')')[2].split()
    ticks += int(fields[11]) + int(fields[12])
    lines = (folder / 'smaps_rollup').read_text().splitlines()
    if process != 'self':
      kib += sum(int(line.split()[1]) for line in lines if 'Private_' in line)
  return ticks / os.sysconf('SC_CLK_TCK'), kib


def _open(data_dir: str) -> None:
  """Print the seconds to open the records."""
  from nfnets.data import dataset, records

  start = time.perf_counter()
  builder = dataset.load_builder('imagenet2012', data_dir)
  records.open_records(builder, 'train').close()
  timing.emit(seconds=time.perf_counter() - start)


def _measure(name: str, data_dir: str, num_images: int) -> None:
  """Load images and print time and memory."""
  load = _timm_batches if name in _TIMM else _our_batches
  batches, kib = load(name, data_dir), 0
  for i, _ in enumerate(itertools.islice(batches, _WARM_UP // _BATCH)):
    if i < _WARM_UP // _BATCH // 2:  # The measurement takes time.
      kib = max(kib, _used()[1])
  (cpu, _), start = _used(), time.perf_counter()
  for _ in itertools.islice(batches, num_images // _BATCH):
    pass
  seconds = time.perf_counter() - start
  after, last_kib = _used()
  kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + max(kib, last_kib)
  timing.emit(
    images_per_second=num_images / seconds,
    cpu_ms_per_image=1000 * (after - cpu) / num_images,
    gib=kib / 2**20,
  )


def main() -> None:
  """Run the benchmark."""
  args = timing.arguments(
    *(__doc__,),
    **{'images': 1024, 'repeats': 5, 'data_dir': None, 'tasks': None},
    **{'bucket': False, 'latency': 0.03, 'timm_python': None, 'task': None},
  )
  if args.images < 1 or args.images % _BATCH:
    sys.exit(f'--images must be a multiple of {_BATCH}')
  # More than the process loads, so that it always reads ahead.
  num_images = args.images + 2 * _WARM_UP
  if args.task == 'make':
    return _make_data(pathlib.Path(args.data_dir), num_images)
  if args.task == 'open':
    return _open(args.data_dir)
  if args.task:
    return _measure(args.task, args.data_dir, args.images)
  results = {}
  with contextlib.ExitStack() as stack:
    temporary = stack.enter_context(tempfile.TemporaryDirectory())
    data_dir = pathlib.Path(args.data_dir or temporary, str(num_images))

    def run(task, place=data_dir, environment=()):
      python = args.timm_python if task in _TIMM else sys.executable
      options = (f'--images={args.images}', f'--data_dir={place}')
      command = [python, __file__, f'--task={task}', *options]
      return timing.run_json(command, env={**os.environ, **dict(environment)})

    timing.say(f'Making {num_images} JPEGs, unless they exist.')
    run('make')
    tasks = [*(_TIMM if args.timm_python else ()), *_OURS]
    places = {'': (data_dir, {})}
    if args.bucket:
      import emulated_store

      tasks = ['crop_flip', 'randaugment']
      dataset = data_dir / 'imagenet2012'
      for index in dataset.rglob('*.record_index.npz'):
        index.unlink()  # Measured: both places write it again.
      store = stack.enter_context(
        emulated_store.start(args.latency, dataset.parent)
      )
      places['bucket'] = store.bucket, store.environment
      for turn in ('first', 'next'):
        results[f'{turn}_opening_seconds'] = {
          place or 'disk': run('open', *where)['seconds']
          for place, where in places.items()
        }
    tasks = args.tasks.split(',') if args.tasks else tasks
    runs = {f'{t} {p}'.strip(): (t, *places[p]) for t in tasks for p in places}
    # The tasks alternate, so that all see the same noise.
    turns = [
      {name: run(*what) for name, what in runs.items()}
      for _ in range(args.repeats)
    ]
  results['runs'] = {
    name: {
      unit: statistics.median(turn[name][unit] for turn in turns)
      for unit in turns[0][name]
    }
    for name in runs
  }
  timing.table(results['runs'])
  for other in (f'{t} bucket' for t in tasks if args.bucket):
    speeds = [
      [turn[name]['images_per_second'] for name in (other, other.split()[0])]
      for turn in turns
    ]
    ratios = sorted(bucket / disk for bucket, disk in speeds)
    results[f'{other} ratios'] = ratios
    timing.say(f'{other}: {statistics.median(ratios):.2f} of the disk')
  timing.emit(cores=os.cpu_count(), **results)


if __name__ == '__main__':
  main()
