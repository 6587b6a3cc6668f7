"""Reads files of weights that are damaged in many ways.

python tests/weights/fuzz_weights.py [--mutations=20000] [--seed=0]
    [--families=pickle,npz,safetensors,torch]

Every damaged file must be refused with a ValueError, or give arrays. Each
family runs in a process of its own that may take little more memory than it has
before the first file, so that a crash and a large allocation are seen. A file
that does anything else is kept in the temporary folder and named. The last line
of standard output is JSON: for each family how many files were read, refused
and neither, the peak of memory over the start, and the slowest file.
"""

import argparse
import collections
from concurrent import futures
import contextlib
import io
import json
import multiprocessing
import pathlib
import pickle
import pickletools
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile

import make_weight_files
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nfnets.weights import files  # noqa: E402

FAMILIES = ('pickle', 'npz', 'safetensors', 'torch')
_MEMORY = 256 * 2**20  # Bytes over what the process has at the start.
_SECONDS = 5  # For one file.
_OPCODES = [op.code.encode('latin-1') for op in pickletools.opcodes]
_NUMBERS = [0, 1, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31]
_NUMBERS += [2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def _seeds(family: str) -> list[bytes]:
  """Returns good files."""
  with zipfile.ZipFile(make_weight_files.ARCHIVE) as archive:
    contents = {name: archive.read(name) for name in archive.namelist()}
  if family == 'torch':
    return [v for k, v in contents.items() if k.startswith('torch')]
  if family == 'pickle':
    seeds = [v for k, v in contents.items() if not k.startswith('torch')]
    ordered = collections.OrderedDict(make_weight_files.tree())
    return seeds + 10 * [pickle.dumps(ordered, i) for i in (2, 4)]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, f'weights.{family}')
    tree = make_weight_files.tree()
    metadata = {'model': 'nfnet_f0', 'class_names': ['a', 'b'], 'mean': [1] * 3}
    files.save_weights(path, tree, {'bn/~/mean_ema': tree['net']}, metadata)
    seeds = [path.read_bytes()]
    if family == 'npz':
      packed = io.BytesIO()
      np.savez_compressed(packed, **{'net/w': np.arange(64) / 2})
      seeds.append(packed.getvalue())
  return seeds


def _change_bytes(rng: random.Random, data: bytearray, seeds) -> None:
  """Damages a file without knowing what it is."""
  start = rng.randrange(len(data) + 1)
  end = min(len(data), start + rng.choice((1, 2, 8, 40, 300)))
  match rng.randrange(8):
    case 0 if end > start:
      data[start] ^= 1 << rng.randrange(8)
    case 1 if end > start:
      data[start] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    case 2:
      del data[start:]
    case 3:
      del data[start:end]
    case 4:
      data[start:start] = data[start:end]
    case 5:
      other = rng.choice(seeds)
      at = rng.randrange(len(other))
      data[start:end] = other[at : at + rng.choice((1, 8, 40, 300))]
    case 6:
      layout = rng.choice(('<I', '<Q', '>I', '>Q'))
      bits = 8 * struct.calcsize(layout)
      number = rng.choice(_NUMBERS) % 2**bits
      data[start : start + bits // 8] = struct.pack(layout, number)
    case _:
      data[start:] = rng.choice(seeds)[start:]


def _change_pickle(rng: random.Random, data: bytearray) -> None:
  """Changes an instruction, or its number."""
  places = []
  with contextlib.suppress(Exception):  # What comes after a damage.
    for op, _, pos in pickletools.genops(bytes(data)):
      places.append((op, pos))
  if not places:
    return
  opcode, at = rng.choice(places)
  size = opcode.arg.n if opcode.arg is not None else 0
  match rng.randrange(4):
    case 0:
      data[at : at + 1] = rng.choice(_OPCODES)
    case 1:  # With an argument of the right size.
      same = [op for op in pickletools.opcodes if op.arg is opcode.arg]
      data[at : at + 1] = rng.choice(same).code.encode('latin-1')
    case 2:
      data[at:at] = rng.choice(_OPCODES) + rng.randbytes(rng.randrange(10))
    case _:  # A length, an index of the memo, or a number.
      width = {-2: 1, -3: 4, -4: 4, -5: 8}.get(size, max(size, 1))
      number = rng.choice((*_NUMBERS, rng.randrange(60)))
      data[at + 1 : at + 1 + width] = number.to_bytes(8, 'little')[:width]


def _change_member(rng: random.Random, data: bytearray, seeds) -> None:
  """Changes a file in a zip archive, with the right checksum."""
  changed = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
    pickles = [name for name in names if name.endswith('.pkl')]
    chosen = rng.choice(pickles * 20 + names)
    with zipfile.ZipFile(changed, 'w') as new:
      for info in archive.infolist():
        content = bytearray(archive.read(info))
        if info.filename == chosen:
          if chosen in pickles and rng.random() < 0.7:
            _change_pickle(rng, content)
          else:
            _change_bytes(rng, content, seeds)
        new.writestr(info, bytes(content))
  data[:] = changed.getvalue()


def _change_contents(rng: random.Random, data: bytearray) -> None:
  """Changes a number or type in the first part of a .safetensors file."""
  (length,) = struct.unpack('<Q', data[:8])
  contents = json.loads(data[8 : 8 + length])
  entry = rng.choice([x for x in contents.values() if 'shape' in x])
  match rng.randrange(6):
    case 0:
      entry['dtype'] = rng.choice(('F32', 'F16', 'BF16', 'I8', 'F8_E4M3', ''))
    case 1:
      entry['shape'].append(rng.choice(_NUMBERS))
    case 2 if entry['shape']:
      entry['shape'].pop()
    case 3:
      i = rng.randrange(2)
      entry['data_offsets'][i] += rng.choice((-4, -1, 1, 4, 2**40))
    case 4:
      (key,) = contents['__metadata__']
      text = bytearray(contents['__metadata__'][key].encode())
      _change_bytes(rng, text, [b'[1e999, -1, {"": null}, "\\ud800"]'])
      contents['__metadata__'][key] = text.decode('latin-1')
    case _:
      name = rng.choice(('__metadata__', 'name', '/', 'net/w', 'state:'))
      contents[name] = entry
  text = json.dumps(contents).encode()
  data[: 8 + length] = struct.pack('<Q', len(text)) + text


def _mutant(rng: random.Random, family: str, seeds) -> bytes:
  """Returns a damaged file."""
  data = bytearray(rng.choice(seeds))
  is_zip = data.startswith(b'PK')
  if is_zip and rng.random() < 0.7:
    _change_member(rng, data, seeds)
    if rng.random() < 0.8:
      return bytes(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    if family in ('pickle', 'torch') and not is_zip and rng.random() < 0.6:
      _change_pickle(rng, data)
    elif family == 'safetensors' and rng.random() < 0.6:
      with contextlib.suppress(Exception):  # Damaged before.
        _change_contents(rng, data)
    else:
      _change_bytes(rng, data, seeds)
  return bytes(data)


def _check(family: str, path: pathlib.Path) -> None:
  """Reads a file, and raises if it gives anything else than arrays."""
  if family == 'torch':
    arrays = files.load_tensors(path)
    trees = ({'': arrays},)
  else:
    trees = files.load_weights(path)
    assert type(files.read_metadata(path)) is dict
  for tree in trees:
    assert type(tree) is dict
    for module, leaves in tree.items():
      assert type(module) is str and type(leaves) is dict
      for name, leaf in leaves.items():
        assert type(name) is str and type(leaf) is np.ndarray
        assert leaf.dtype.kind in 'iuf' and leaf.dtype.isnative
        assert leaf.nbytes <= 2 * path.stat().st_size * 100
        leaf.sum()  # Touches every byte.


def _memory(line: str) -> int:
  """Returns a line of what Linux knows of this process, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text().split('\n')
  return int(next(x for x in status if x.startswith(line)).split()[1]) * 1024


def _limit_memory() -> None:
  """Lets this process take little more memory than it has."""
  limit = _memory('VmSize') + _MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def fuzz(
  family: str, mutations: int, seed: int, limit_memory: bool = False
) -> dict[str, float]:
  """Runs one family in this process; returns what `main` prints about it."""
  rng = random.Random(f'{family} {seed}')
  seeds = _seeds(family)
  counts = {'read': 0, 'refused': 0, 'other': 0}
  slowest = 0.0
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'weights')
    for data in seeds:
      path.write_bytes(data)
      _check(family, path)
    if limit_memory:
      _limit_memory()
    start_memory = _memory('VmHWM')
    for _ in range(mutations):
      data = _mutant(rng, family, seeds)
      path.write_bytes(data)
      start = time.process_time()
      try:
        with np.errstate(all='ignore'):
          _check(family, path)
        counts['read'] += 1
      except ValueError:
        counts['refused'] += 1
      except BaseException as error:
        counts['other'] += 1
        _keep(family, data, repr(error)[:300])
      seconds = time.process_time() - start
      slowest = max(slowest, seconds)
      if seconds > _SECONDS:
        counts['other'] += 1
        _keep(family, data, f'took {seconds:.1f} s')
  return {
    **counts,
    'peak_mib': round((_memory('VmHWM') - start_memory) / 2**20, 1),
    'slowest_seconds': round(slowest, 3),
  }


def _keep(family: str, data: bytes, why: str) -> None:
  with tempfile.NamedTemporaryFile(
    prefix=f'fuzz_{family}_', delete=False
  ) as file:
    file.write(data)
  print(f'{file.name}: {why}', file=sys.stderr)


def run(families, mutations: int, seed: int) -> dict[str, dict[str, float]]:
  """Runs each family in a process of its own, so that a crash is seen."""
  spawn = multiprocessing.get_context('spawn')
  results = {}
  for family in families:
    with futures.ProcessPoolExecutor(1, spawn) as pool:
      future = pool.submit(fuzz, family, mutations, seed, limit_memory=True)
      results[family] = future.result()
  return results


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--mutations', type=int, default=20000, help='per family')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--families', default=','.join(FAMILIES))
  args = parser.parse_args()
  results = run(args.families.split(','), args.mutations, args.seed)
  print(json.dumps(results))
  return int(any(result['other'] for result in results.values()))


if __name__ == '__main__':
  sys.exit(main())
