"""PyTorch's files, read without PyTorch."""

import io
import pickle
import re
import tracemalloc
import zipfile

import jax
import make_weight_files
import numpy as np
import pytest
import weights_lib

from nfnets import weights
from nfnets.weights import files, torch_file

CHECKPOINTS = make_weight_files.ARCHIVE.with_name('checkpoints.zip')

with zipfile.ZipFile(make_weight_files.ARCHIVE) as archive:
  WRITTEN = {
    name: archive.read(name)
    for name in archive.namelist()
    if name.startswith('torch')
  }


def load(folder, content):
  path = folder / 'model.pth'
  path.write_bytes(content)
  return files.load_tensors(path)


def refusal(folder, content) -> str:
  (folder / 'model.pth').write_bytes(content)
  return weights_lib.refusal(folder / 'model.pth', files.load_tensors)


@pytest.mark.parametrize('content', ['plain', 'wrapped', 'training'])
def test_what_torch_wrote_is_read(tmp_path, content):
  arrays = load(tmp_path, WRITTEN[f'torch_zip_{content}'])
  expected = make_weight_files.state_dict()
  expected['tied_too'] = expected['tied']
  assert list(arrays) == list(expected)
  weights_lib.assert_same({'': arrays}, {'': expected})


class Named:
  """Pickles as a name, and as a call of it."""

  def __init__(self, name, args=None):
    self.name = name
    self.args = args


class Pickler(pickle._Pickler):  # The one in Python, which can be extended.
  """Writes names of what is not there, and storages as torch does."""

  def persistent_id(self, obj):
    return obj[0] if isinstance(obj, list) and obj else None

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Named):
      module, name = obj.name.rsplit('.', 1)
      self.write(f'c{module}\n{name}\n'.encode())
      if obj.args is not None:
        self.save(obj.args)
        self.write(b'R')
    else:
      super().save(obj, save_persistent_id)


def pickled(obj) -> bytes:
  file = io.BytesIO()
  Pickler(file, 2).dump(obj)
  return file.getvalue()


def one_tensor(
  numel=6, shape=(2, 3), strides=None, offset=0, dtype='Float', key='0', many=1
):
  strides = (1,) if strides is None else strides
  storage = [('storage', Named(f'torch.{dtype}Storage'), key, 'cpu', numel)]
  args = storage, offset, shape, strides, False, {}
  tensor = Named('torch._utils._rebuild_tensor_v2', args)
  return pickled({'w' + str(i) * (i > 0): tensor for i in range(many)})


def zip_of(content, data=bytes(24), **others):
  file = io.BytesIO()
  members = {'data.pkl': content, 'data/0': data, **others}
  with zipfile.ZipFile(file, 'w') as archive:
    for name, content in members.items():
      archive.writestr(f'archive/{name}', content)
  return file.getvalue()


def test_big_endian_files_are_read(tmp_path):
  expected = np.arange(6, dtype=np.float32) / 8
  data = expected.astype('>f4').tobytes()
  content = zip_of(one_tensor(shape=(6,)), data, byteorder='big')
  actual = load(tmp_path, content)['w']
  np.testing.assert_array_equal(actual, expected)
  assert actual.dtype.isnative


@pytest.mark.parametrize(
  ('shape', 'strides', 'offset', 'expected'),
  [
    ((2, 3), (3, 1), 0, [[0, 1, 2], [3, 4, 5]]),
    ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
    ((2,), (2,), 3, [3, 5]),
    ((), (), 5, 5),
    ((2, 0), (7, 9), 100, np.zeros((2, 0))),
    ((1,), (1000,), 5, [5]),
  ],
)
def test_strides_and_offset_are_honoured(
  tmp_path, shape, strides, offset, expected
):
  data = np.arange(6, dtype=np.float32).tobytes()
  tensor = one_tensor(shape=shape, strides=strides, offset=offset)
  actual = load(tmp_path, zip_of(tensor, data))['w']
  np.testing.assert_array_equal(actual, expected)
  assert actual.shape == shape


@pytest.mark.parametrize(
  ('content', 'named'),
  [
    (one_tensor(strides=(3, 2)), r'\[2, 3\] .* beyond its storage of 24'),
    (one_tensor(strides=(3, 1), offset=1), 'beyond its storage'),
    (one_tensor(shape=(7,)), 'beyond its storage'),
    (one_tensor(shape=(10**9,), strides=(0,)), 'beyond its storage'),
    (one_tensor(shape=(2,), strides=(-1,), offset=1), 'impossible shape'),
    (one_tensor(shape=(2,), offset=-1), 'impossible shape'),
    (one_tensor(shape=(-2,)), 'impossible shape'),
    (one_tensor(shape=(2, 3), strides=(1,)), 'is damaged'),
    (one_tensor(shape=(2.0,)), 'impossible shape'),
    (one_tensor(shape=(2**60,), strides=(0,)), 'impossible shape'),
    (one_tensor(shape=(1,) * 40, strides=(1,) * 40), 'impossible shape'),
    (one_tensor(shape=(7,), numel=7), 'beyond its storage'),
    (one_tensor(shape=(2,), numel=5), 'beyond its storage'),
    (one_tensor(shape=(2,), numel=-6), 'beyond its storage'),
    (one_tensor(shape=(2,), dtype='Double'), 'beyond its storage'),
    (one_tensor(shape=(2,), dtype='ComplexFloat'), 'torch.ComplexFloatStorage'),
    (one_tensor(shape=(2,), key='1'), "no item named 'archive/data/1'"),
    (one_tensor(shape=(2,), key='../data.pkl'), 'no .*data.pkl'),
    (pickled(Named('posix.system', ('true',))), 'posix.system.*state_dict'),
    (pickled({'w': Named('timm.models.nfnet.NormFreeNet')}), 'NormFreeNet'),
    (pickled({'epoch': 3}), "type int under 'epoch'"),
    (pickled({3: {}}), 'type dict under 3'),
    (pickled([]), 'type list, not a dict'),
    (pickled({}), 'no tensors'),
    (pickled({'state_dict': {}}), 'no tensors'),
    (pickled({'w': [('module', 'x')]}), 'type storage under'),
    (pickled({'w': [('storage', 'x', '0', 'cpu', 6)]}), 'type storage under'),
    (pickled(Named('collections.OrderedDict', (3,))), 'not a dict'),
    (
      pickled({'w': Named('torch._utils._rebuild_parameter', (3,))}),
      'type int under',
    ),
    (
      pickled({'w': Named('torch._utils._rebuild_tensor_v2', (3,))}),
      'parts are damaged',
    ),
    (b'\x80\x02', 'download that stopped: EOFError'),
  ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, named):
  message = refusal(tmp_path, zip_of(content))
  assert re.search(named, message), message


def test_little_is_allocated_for_stretched_tensors(tmp_path):
  # Each has one number of a storage of four million.
  content = zip_of(one_tensor(2**22, (2**22,), (0,), many=50), bytes(2**24))
  path = tmp_path / 'model.pth'
  path.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match='more bytes than the file'):
      files.load_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 8 * len(content)
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(
  ('names', 'cleaned'),
  [
    ('_orig_mod.module.a module._orig_mod.b module.c', 'a b c'),
    ('stem.module.d model.net._orig_mod.e backbone.f', 'stem.module.d e f'),
    ('model.a net.a', 'model.a net.a'),  # Two models: they stay apart.
  ],
)
def test_names_of_wrapped_models_are_cleaned(names, cleaned):
  arrays = dict.fromkeys(names.split(), np.ones(1))
  assert list(torch_file.clean_names(arrays)) == cleaned.split()


with zipfile.ZipFile(CHECKPOINTS) as archive:
  TRAINED = archive.namelist()


@pytest.mark.parametrize('name', TRAINED)
def test_checkpoints_of_timm_and_lightning_are_opened(tmp_path, caplog, name):
  path = tmp_path / name
  with zipfile.ZipFile(CHECKPOINTS) as archive:
    path.write_bytes(archive.read(name))
  with caplog.at_level('INFO'):
    model, params, _ = weights.open_model(path)
  assert (model.name, model.num_classes) == ('timm/test_nfnet', 3)
  values = [np.unique(x).item() for x in jax.tree.leaves(params)]
  # Every tensor of the network has its number; averaged ones half of it.
  is_averaged = name == 'model_best.pth.tar'
  scale = 0.5 if is_averaged else 1.0
  assert sorted(values) == [scale * i for i in range(len(values))]
  said = 'Reading state_dict_ema of the checkpoint, not state_dict.'
  assert [x.getMessage() for x in caplog.records] == [said] * is_averaged


def test_nothing_in_a_checkpoint_is_called(tmp_path):
  hostile = Named('posix.mkdir', (str(tmp_path / 'called'),))
  content = zip_of(pickled({'state_dict': {}, 'args': hostile}))
  assert 'no tensors' in refusal(tmp_path, content)
  assert not (tmp_path / 'called').exists()


@pytest.mark.parametrize('name', WRITTEN)
def test_truncated_anywhere_is_refused(tmp_path, name):
  content = WRITTEN[name]
  for length in range(20, len(content), 29):
    message = refusal(tmp_path, content[:length])
    assert 'download that stopped' in message


def test_files_of_before_version_1_6_are_named_with_what_to_do(tmp_path):
  start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
  for reader in (files.load_tensors, weights.open_model):
    (tmp_path / 'model.pth').write_bytes(start)
    with pytest.raises(ValueError, match='before version 1.6.*torch.save') as x:
      reader(tmp_path / 'model.pth')
    assert '\n' not in str(x.value)
