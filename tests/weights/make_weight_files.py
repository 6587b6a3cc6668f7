"""Adds what other programs write to tests/golden/weight_files.zip.

Runs with Python 3.7 or later and NumPy in environments of their own, since the
project's has neither PyTorch nor dill nor an old NumPy. These made the archive,
one after another, with `python tests/weights/make_weight_files.py NAME`:

  NAME        Python  NumPy   others
  published   3.7     1.19.5  dill 0.3.3, as of early 2021
  numpy1      3.11    1.26.4  dill 0.3.3
  numpy2      3.11    2.4.6   dill 0.4.1
  torch       3.11    2.4.6   torch 2.13.0
"""

import argparse
import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np

ARCHIVE = pathlib.Path(__file__).parents[1] / 'golden' / 'weight_files.zip'


def _numbers(*shape):
  return np.arange(np.prod(shape, dtype=int)).reshape(shape) / 8 - 1


def tree():
  """Returns parameters in all layouts that arrays have."""
  return {
    'NFNet/~/stem_conv0': {
      'w': np.float32(_numbers(3, 3, 1, 8)),  # More than 255 bytes.
      'gain': np.float32(_numbers(8)),
      'bias': np.float32(_numbers(8)) * np.float32(1.1),
    },
    'NFNet/~/nf_block_3': {'skip_gain': np.array(0.3, np.float32)},
    'NFNet/~/linear': {
      'w': np.float32(_numbers(4, 6)).T,
      'b': _numbers(4).astype('>f4'),
      'permuted': np.float32(_numbers(2, 3, 4)).transpose(1, 2, 0),
      'strided': np.float32(_numbers(6, 4))[::2, 1:3],
    },
    'net': {
      'scalar': np.float32(2.5),
      'empty': np.zeros((0, 3), np.float32),
      'half': np.float16(_numbers(3)),
      'double': _numbers(2, 1, 2),
      'counter': np.array(7, np.int32),
      'bytes': np.arange(250, 256, dtype=np.uint8),
      'long': np.array([-1, 2**40], np.int64),
    },
  }


def state_dict():
  """Returns {name: array} for tensors, in torch's terms contiguous or not."""
  return {
    'stem.conv1.weight': np.float32(_numbers(4, 3, 2, 2)),
    'stem.conv1.gain': np.float32(_numbers(4, 1, 1, 1)),
    'skipinit_gain': np.array(0.3, np.float32),
    'transposed': np.float32(_numbers(4, 6)).T,
    'sliced': np.float32(_numbers(6, 4))[::2, 1:3],
    'tied': np.float32(_numbers(3)),
    'empty': np.zeros((0, 3), np.float32),
    'half': np.float16(_numbers(3)),
    'bfloat16': np.float32(_numbers(5)),
    'double': _numbers(2),
    'counter': np.array(7, np.int64),
    'int': np.array([1, -2], np.int32),
    'uint8': np.array([1, 255], np.uint8),
  }


def _haiku_mappings():
  """Returns dict and the classes that Haiku had, which pickle as theirs."""
  module = types.ModuleType('haiku._src.data_structures')
  # Packages that can be imported, or else dill writes the classes themselves.
  haiku, src = types.ModuleType('haiku'), types.ModuleType('haiku._src')
  haiku.__path__, haiku._src = [], src
  src.__path__, src.data_structures = [], module
  for package in (haiku, src, module):
    sys.modules[package.__name__] = package

  def mapping(name):
    def init(self, *args):
      self.mapping = dict(*args)

    def reduce(self):
      return type(self), (self.mapping,)

    body = {'__init__': init, '__reduce__': reduce}
    body['__module__'] = module.__name__
    setattr(module, name, type(name, (), body))
    return getattr(module, name)

  return {
    'dict': dict,
    'FlatMapping': mapping('FlatMapping'),
    'frozendict': mapping('frozendict'),
  }


def _pickles(environment):
  import dill

  writers = {'dill': dill}
  if environment != 'published':
    writers['pickle'] = pickle
  for name, mapping in _haiku_mappings().items():
    params = mapping({k: mapping(v) for k, v in tree().items()})
    for writer, module in writers.items():
      for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        content = module.dumps(params, protocol=protocol)
        yield f'{environment}_{writer}{protocol}_{name}', content


def _torch_files():
  import torch

  tensors = {}
  for name, array in state_dict().items():
    tensors[name] = torch.tensor(np.ascontiguousarray(array)).reshape(
      array.shape
    )
  tensors['transposed'] = torch.tensor(_numbers(4, 6), dtype=torch.float32).T
  whole = torch.tensor(_numbers(6, 4), dtype=torch.float32)
  tensors['sliced'] = whole[::2, 1:3]
  tensors['tied'] = torch.nn.Parameter(tensors['tied'])
  tensors['tied_too'] = tensors['tied']
  tensors['bfloat16'] = tensors['bfloat16'].bfloat16()
  model = torch.nn.Linear(1, 1)
  ordered = model.state_dict()  # With `_metadata`.
  ordered.clear()
  ordered.update(tensors)
  wrapped = {
    'epoch': 3,
    'metric': 0.5,
    'arch': 'nfnet',
    'optimizer': {'state': {0: {'step': 1}}, 'param_groups': [{'lr': 0.1}]},
    'state_dict': {'wrong': torch.zeros(1)},
    'state_dict_ema': {'module.' + k: v for k, v in ordered.items()},
  }
  training = {
    **wrapped,
    'args': argparse.Namespace(path=pathlib.PurePosixPath('/'), classes={1, 2}),
    'metric': np.float64(61.5),
    'schedule': {'milestones': collections.Counter([1, 2]), (1, 2.5): [None]},
  }
  contents = {'plain': ordered, 'wrapped': wrapped, 'training': training}
  for name, value in contents.items():
    file = io.BytesIO()
    torch.save(value, file)
    yield f'torch_zip_{name}', file.getvalue()


def main(environment):
  make = _torch_files() if environment == 'torch' else _pickles(environment)
  with zipfile.ZipFile(ARCHIVE, 'a', zipfile.ZIP_DEFLATED) as archive:
    for name, content in make:
      info = zipfile.ZipInfo(name)  # Without the time.
      info.compress_type = zipfile.ZIP_DEFLATED
      archive.writestr(info, content)
      print(name, len(content))


if __name__ == '__main__':
  main(sys.argv[1])
