"""PyTorch's files, read without PyTorch."""

import io
import pickle
import re
import struct
import tracemalloc
import zipfile

import make_weight_files
import numpy as np
import pytest

from nfnets.weights import files, torch_file

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
  with pytest.raises(ValueError) as caught:
    load(folder, content)
  message = str(caught.value)
  assert message.startswith(f'{folder}/model.pth ') and message.endswith('.')
  return message


@pytest.mark.parametrize('layout', ['zip', 'legacy'])
@pytest.mark.parametrize('content', ['plain', 'wrapped'])
def test_what_torch_wrote_is_read(tmp_path, layout, content):
  written = WRITTEN[f'torch_{layout}_{content}']
  assert written.startswith(b'PK') == (layout == 'zip')
  assert written.startswith(torch_file.LEGACY_START) == (layout == 'legacy')
  arrays = load(tmp_path, written)
  expected = make_weight_files.state_dict()
  expected['tied_too'] = expected['tied']
  assert list(arrays) == list(expected)
  for name, array in expected.items():
    actual = arrays[name]
    assert type(actual) is np.ndarray and actual.shape == array.shape
    assert actual.dtype == array.dtype, name
    assert actual.flags.aligned and actual.flags.c_contiguous, name
    np.testing.assert_array_equal(actual, array)


def rewritten(change):
  """Returns the zip of tensors with each {name: content} changed."""
  file = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(WRITTEN['torch_zip_plain'])) as old,
    zipfile.ZipFile(file, 'w') as new,
  ):
    for name, content in change(
      {name: old.read(name) for name in old.namelist()}
    ).items():
      new.writestr(name, content)
  return file.getvalue()


def test_big_endian_files_are_read(tmp_path):
  def swap(members):
    swapped = {}
    for name, content in members.items():
      if '/data/' in name:  # That of 'stem.conv1.weight' is the first.
        content = np.frombuffer(content, '<f4').astype('>f4').tobytes()
      swapped[name] = content
      if name.endswith('data/0'):
        break
    swapped['archive/byteorder'] = b'big'
    swapped['archive/data.pkl'] = one_tensor(numel=48, shape=(48,))
    return swapped

  arrays = load(tmp_path, rewritten(swap))
  expected = make_weight_files.state_dict()['stem.conv1.weight']
  np.testing.assert_array_equal(arrays['w'], expected.ravel())
  assert arrays['w'].dtype.isnative


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


def zip_of(content, data=bytes(24)):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('archive/data.pkl', content)
    archive.writestr('archive/data/0', data)
  return file.getvalue()


def test_strides_and_offset_are_honoured(tmp_path):
  data = np.arange(6, dtype=np.float32).tobytes()
  for shape, strides, offset, expected in (
    ((2, 3), (3, 1), 0, [[0, 1, 2], [3, 4, 5]]),
    ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
    ((2,), (2,), 3, [3, 5]),
    ((), (), 5, 5),
    ((2, 0), (7, 9), 100, np.zeros((2, 0))),
    ((1,), (1000,), 5, [5]),
  ):
    content = zip_of(
      one_tensor(shape=shape, strides=strides, offset=offset), data
    )
    actual = load(tmp_path, content)['w']
    np.testing.assert_array_equal(actual, expected)
    assert actual.shape == shape


@pytest.mark.parametrize(
  ('content', 'named'),
  [
    (one_tensor(strides=(3, 2)), r'\[2, 3\] .* beyond its storage of 6'),
    (one_tensor(strides=(3, 1), offset=1), 'beyond its storage'),
    (one_tensor(shape=(7,)), 'beyond its storage'),
    (one_tensor(shape=(10**9,), strides=(0,)), 'beyond its storage'),
    (one_tensor(shape=(2,), strides=(-1,), offset=1), 'impossible shape'),
    (one_tensor(shape=(2,), offset=-1), 'impossible shape'),
    (one_tensor(shape=(-2,)), 'impossible shape'),
    (one_tensor(shape=(2, 3), strides=(1,)), 'impossible shape'),
    (one_tensor(shape=(2.0,)), 'impossible shape'),
    (one_tensor(shape=(2**60,), strides=(0,)), 'impossible shape'),
    (one_tensor(shape=(1,) * 40, strides=(1,) * 40), 'impossible shape'),
    (one_tensor(shape=(7,), numel=7), "another storage for 'w'"),
    (one_tensor(shape=(2,), numel=5), "another storage for 'w'"),
    (one_tensor(shape=(2,), numel=-6), 'storage is damaged'),
    (one_tensor(shape=(2,), dtype='Double'), "another storage for 'w'"),
    (one_tensor(shape=(2,), dtype='ComplexFloat'), 'torch.ComplexFloatStorage'),
    (one_tensor(shape=(2,), key='1'), "no 'archive/data/1'"),
    (one_tensor(shape=(2,), key='../data.pkl'), 'no .*data.pkl'),
    (pickled(Named('posix.system', ('true',))), 'posix.system.*state_dict'),
    (pickled({'w': Named('timm.models.nfnet.NormFreeNet')}), 'NormFreeNet'),
    (pickled({'epoch': 3}), "type int under 'epoch'"),
    (pickled({3: {}}), 'type dict under 3'),
    (pickled([]), 'type list, not a dict'),
    (pickled({}), 'no tensors'),
    (pickled({'state_dict': {}}), 'no tensors'),
    (pickled({'w': [('module', 'x')]}), 'storage is damaged'),
    (pickled({'w': [('storage', 'x', '0', 'cpu', 6)]}), 'storage is damaged'),
    (pickled(Named('collections.OrderedDict', (3,))), 'damaged dict'),
    (pickled(Named('torch._utils._rebuild_parameter', (3,))), 'no tensor'),
    (pickled(Named('torch._utils._rebuild_tensor_v2', (3,))), 'are damaged'),
    (b'\x80\x02', 'ends too early'),
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


def test_names_of_wrapped_models_are_cleaned():
  arrays = {
    '_orig_mod.module.a': np.ones(1),
    'module._orig_mod.b': np.ones(1),
    'module.c': np.ones(1),
    'stem.module.d': np.ones(1),
  }
  assert list(torch_file.clean_names(arrays)) == [
    'a',
    'b',
    'c',
    'stem.module.d',
  ]


@pytest.mark.parametrize('name', WRITTEN)
def test_truncated_anywhere_is_refused(tmp_path, name):
  content = WRITTEN[name]
  for length in range(20, len(content), 29):
    message = refusal(tmp_path, content[:length])
    assert 'download that stopped' in message


@pytest.mark.parametrize(
  ('old', 'new', 'named'),
  [
    (b'M\xe9\x03.', b'M\xe8\x03.', 'damaged'),  # Protocol 1001.
    (struct.pack('<q', 48), struct.pack('<q', 49), 'damaged'),
    (struct.pack('<q', 48), struct.pack('<q', -1), 'damaged'),
    (struct.pack('<q', 48), struct.pack('<q', 2**62), 'damaged'),
    (b'torch FloatStorage', b'torch QuantStorage', 'torch.QuantStorage'),
  ],
)
def test_damaged_legacy_files_are_refused(tmp_path, old, new, named):
  content = WRITTEN['torch_legacy_plain']
  assert old.replace(b' ', b'\n') in content
  content = content.replace(old.replace(b' ', b'\n'), new.replace(b' ', b'\n'))
  assert named in refusal(tmp_path, content)
