"""Classifies or embeds pictures on many machines; see docs/many_machines.md."""

import argparse
from concurrent import futures
import json
import os
import zlib

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import ray

from nfnets import errors, paths, weights
from nfnets.inference import classes, command_line, images, networks, runtimes
from nfnets.inference.many import sources

_TEXT, _REALS = pa.string(), pa.list_(pa.float32())
_TYPES = {'image': _TEXT, 'name': pa.list_(_TEXT), 'embedding': _REALS}
_TYPES |= {'label': pa.list_(pa.int32()), 'probability': _REALS, 'error': _TEXT}


class Worker:
  def __init__(self, args):
    self.args, self.pool = args, futures.ThreadPoolExecutor(args.cores)
    threads = {} if args.runtime == 'jax' else {'threads': args.cores}
    net = networks.open_network(args.weights, runtime=args.runtime, **threads)
    self.net, self.names = net, classes.names(net.num_classes, net.class_names)
    self.empty = net.preprocess(np.zeros((9, 9, 3), np.uint8))

  def __call__(self, items):
    (file, names), size = json.loads(items['item'][0]), self.args.batch
    run = self.net.embed if self.args.embed else self.net.logits
    rows, reads = [], self.pool.map(self.read, names[:size])
    for stop in range(size, len(names) + size, size):
      loads, reads = [*reads], self.pool.map(self.read, names[stop:][:size])
      batch = [image for _, image in loads] + [self.empty] * size
      rows += map(self.row, [x for x, _ in loads], run(np.stack(batch[:size])))
    with paths.writing(file) as whole:  # Nobody sees half of it.
      parquet.write_table(pa.Table.from_pylist(rows, pa.schema(_TYPES)), whole)
    return {'failed': [sum('error' in row for row in rows)]}

  def read(self, name):
    row = {'image': name.encode(errors='backslashreplace').decode()}
    try:
      image = images.read_image(name, self.net.preprocessing == 'crop_resize')
      return row, self.net.preprocess(image)
    except errors.ImageError as error:
      return row | {'error': str(error)}, self.empty

  def row(self, row, output):
    if not np.isfinite(output).all():
      row.setdefault('error', "the network's output is not finite")
    if 'error' in row or self.args.embed:
      return row if 'error' in row else row | {'embedding': output}
    top = dict(classes.top_classes(output, self.args.top))
    names = [self.names[x] for x in top]
    return row | dict(label=[*top], probability=[*top.values()], name=names)


@command_line.command
def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('paths', nargs='*', help='pictures and folders')
  parser.add_argument('--list', help='a file with a path per line')
  parser.add_argument('--weights', required=True, help='a file or a name')
  parser.add_argument('--output', required=True, help='the output folder')
  parser.add_argument('--embed', action='store_true', help='write embeddings')
  parser.add_argument('--runtime', default='openvino', choices=runtimes.TITLES)
  numbers = [('workers', 1), ('cores', 1), ('gpus', 0), ('batch', 32)]
  for name, value in [*numbers, ('part', 1000), ('top', 5)]:
    parser.add_argument(f'--{name}', type=int, default=value, help=f'({value})')
  args = parser.parse_args(argv, argparse.Namespace(data=None))
  parts, file = {}, str(weights.find(args.weights))
  names = sorted({item.name for item in sources.open_source(args).items()})
  for start in range(0, len(names), args.part):
    part = names[start : start + args.part]
    key = json.dumps([file, args.embed, args.top, part]).encode()
    parts[f'{args.output}/part-{start:09}-{zlib.crc32(key):08x}.parquet'] = part
  if not names:
    parser.error('no pictures: name files and folders, or use --list')
  paths.make_folder(args.output)
  done = {f'{args.output}/{x}' for x in paths.names(args.output) if x[0] != '.'}
  if other := min(done - parts.keys(), default=None):
    raise errors.UserError(f'Choose another --output: it has {other}.', 2)
  items = [{'item': json.dumps(x)} for x in parts.items() if x[0] not in done]
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  local = {'num_cpus': args.workers * args.cores, 'object_store_memory': 2e8}
  ray.init(**({} if 'RAY_ADDRESS' in os.environ else local))
  settings = {'batch_size': 1, 'num_cpus': args.cores, 'num_gpus': args.gpus}
  settings['compute'] = ray.data.ActorPoolStrategy(size=args.workers)
  made = ray.data.from_items(items, override_num_blocks=len(items) or None)
  made = made.map_batches(Worker, fn_constructor_args=[args], **settings)
  failed = sum(x['failed'] for x in made.iter_rows()) if items else 0
  print(json.dumps({'images': len(names), 'failed': failed}))
  return int(failed > 0)


if __name__ == '__main__':
  raise SystemExit(main())
