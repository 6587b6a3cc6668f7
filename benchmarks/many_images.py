"""Times classifying a folder of JPEGs, and compares with timm.

python benchmarks/many_images.py [--timm_python=/path/to/python]
    [--images=1000] [--repeats=1] [--ways=openvino-bfloat16,timm-bfloat16]

Runs NFNet-F0 at 256 pixels with random weights on drawn JPEGs of 500 x 375
pixels and about 94 kB. Prints the images per second of

  RUNTIME-PRECISION          python -m nfnets.classify FOLDER --output=FILE
  RUNTIME-PRECISION alone    the network on images in memory, with as many
                             concurrent calls
  timm-PRECISION             timm like its inference script: transforms in a
                             DataLoader with processes, channels last, autocast
                             for bfloat16; the best of four batch sizes and
                             numbers of workers

and the seconds before this rate is reached: start, reading the weights,
compilation, first batch. Each way is a process, and they take turns. Runtimes
that are not installed are omitted. The last line of standard output is JSON.
"""

from concurrent import futures
import functools
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time

import timing

_WAYS = (
  *('jax-float32', 'onnxruntime-float32', 'openvino-float32'),
  *('timm-float32', 'jax-bfloat16', 'openvino-bfloat16', 'timm-bfloat16'),
)
# Batch sizes and workers. The best ones depend on the machine.
_TIMM = ((8, 1), (16, 1), (32, 1), (16, 2))
_TRIAL = 64  # Images to find the best ones.


def _time_alone(way: str, path: str, batch: int, count: int) -> None:
  """Run a network on images in memory, and print its speed."""
  import numpy as np

  from nfnets.inference import networks

  runtime, precision = way.split('-')
  network = networks.open_network(
    path, runtime=runtime, precision=precision, throughput=True
  )
  shape = (batch, network.image_size, network.image_size, 3)
  images = np.random.default_rng(0).standard_normal(shape, np.float32)
  with futures.ThreadPoolExecutor(2 if runtime == 'openvino' else 1) as pool:

    def run(number):
      start = time.perf_counter()
      list(pool.map(network.logits, [images] * number))
      return number * batch / (time.perf_counter() - start)

    run(4)
    timing.emit(images_per_second=run(max(min(count, 200) // batch, 1)))


def _time_timm(way: str, folder: str, batch: int, workers: int) -> None:
  """Classify a folder with timm, and print its speed."""
  import timm.data
  import torch

  model = timm.create_model('dm_nfnet_f0').eval()
  model = model.to(memory_format=torch.channels_last)
  config = timm.data.resolve_model_data_config(model)
  config['input_size'] = (3, 256, 256)
  transform = timm.data.create_transform(**config, is_training=False)
  loader = torch.utils.data.DataLoader(
    timm.data.ImageDataset(folder, transform=transform),
    batch_size=batch,
    num_workers=workers,
  )
  start, count, found = None, 0, 0
  with (
    torch.inference_mode(),
    torch.autocast('cpu', torch.bfloat16, enabled=way == 'timm-bfloat16'),
  ):
    for images, _ in loader:
      images = images.to(memory_format=torch.channels_last)
      values, _ = model(images).float().softmax(-1).topk(5)
      found += len(values.tolist())
      if start is None:  # The first batch is not counted.
        start = time.perf_counter()
      else:
        count += len(images)
  rate = count / (time.perf_counter() - start)
  timing.emit(images=found, images_per_second=rate)


@functools.cache
def _best_timm(python: str, way: str, folder: pathlib.Path) -> list[str]:
  """Return the options with timm's best batch size and number of workers."""
  choices = [[f'--batch={batch}', f'--workers={n}'] for batch, n in _TIMM]
  rates = [
    timing.run_json(
      [python, __file__, f'--way={way}', f'--data_dir={folder}', *options]
    )['images_per_second']
    for options in choices
  ]
  timing.say(f'{way}: {dict(zip(map(str, choices), rates, strict=True))}')
  return choices[rates.index(max(rates))]


def main() -> None:
  """Run the benchmark."""
  args = timing.arguments(
    *(__doc__,),
    **{'images': 1000, 'repeats': 1, 'batch': 8, 'data_dir': None},
    **{'ways': None, 'timm_python': None, 'way': None, 'workers': 1},
  )
  if args.way:
    is_timm = args.way.startswith('timm')
    run, last = (_time_timm, args.workers) if is_timm else (_time_alone, 200)
    return run(args.way, args.data_dir, args.batch, last)
  if args.images <= args.batch:  # The rate excludes the first batch.
    sys.exit('--images must be larger than --batch')

  def measure(way):
    name, _, alone = way.partition(' ')
    runtime, precision = name.split('-')
    if runtime == 'timm':
      some = folder / f'jpegs_{min(_TRIAL, args.images)}'
      best = _best_timm(args.timm_python, name, some)
      command = [args.timm_python, __file__, f'--way={name}', *best]
      command.append(f'--data_dir={jpegs}')
    elif alone:
      command = [sys.executable, __file__, f'--way={name}']
      command += [f'--batch={args.batch}', f'--data_dir={weights}']
    else:
      command = [
        *(sys.executable, '-m', 'nfnets.classify', jpegs),
        *(f'--weights={weights}', f'--output={folder / "result.jsonl"}'),
        *(f'--runtime={runtime}', f'--precision={precision}'),
        f'--batch_size={args.batch}',
      ]
    start = time.perf_counter()
    found = timing.run_json(command, cwd=timing.ROOT)
    seconds = time.perf_counter() - start
    row = {'images_per_second': found['images_per_second']}
    if not alone:
      row['start_seconds'] = (
        seconds - found['images'] / row['images_per_second']
      )
      row['total_seconds'] = seconds
    timing.table({way: row})
    return row

  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.data_dir or temporary)
    jpegs, weights = folder / f'jpegs_{args.images}', folder / 'f0.safetensors'
    timing.say(f'Making {args.images} JPEGs and weights, unless they exist.')
    for count in (args.images, min(_TRIAL, args.images)):
      timing.draw_jpegs(folder / f'jpegs_{count}', count)
    if not weights.exists():
      timing.save_random_network(weights)
    ways = [
      f'{way}{alone}'
      for way in _WAYS
      for alone in ('', ' alone')[: 1 if way.startswith('timm') else 2]
      if (
        args.timm_python
        if way.startswith('timm')
        else importlib.util.find_spec(way.split('-')[0])
      )
    ]
    ways = args.ways.split(',') if args.ways else ways
    # The ways alternate, so that all see the same noise.
    turns = [{way: measure(way) for way in ways} for _ in range(args.repeats)]
  results = {
    way: {
      key: round(statistics.median(turn[way][key] for turn in turns), 3)
      for key in turns[0][way]
    }
    for way in ways
  }
  timing.table(results)
  for way, row in results.items():
    for other in (f'timm-{way.split()[0].split("-")[1]}', f'{way} alone'):
      if other in results and other != way:
        ratio = row['images_per_second'] / results[other]['images_per_second']
        timing.say(f'{way}: {ratio:.2f} of {other}')
  timing.emit(images=args.images, ways=results, cores=os.cpu_count())


if __name__ == '__main__':
  main()
