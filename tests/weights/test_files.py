"""Files that the project writes, and what is not a file of weights."""

import gzip
import json
import os
import re
import struct
import tracemalloc
import warnings
import zipfile

import haiku as hk
import jax
import jax.numpy as jnp
import make_weight_files
import numpy as np
import pytest
import safetensors.numpy
import weights_lib

from nfnets import utils
from nfnets.weights import files

SUFFIXES = ('.npz', '.safetensors')
ZEROS = {'m': {'w': np.zeros(2, np.float32)}}


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_weights_come_back_as_they_were(tmp_path, suffix):
  path = tmp_path / f'weights{suffix}'
  params = make_weight_files.tree()
  for state in ({}, {'ResNet/~/bn': {'average': np.float32([1, 2])}}):
    frozen = hk.data_structures.to_immutable_dict(params)
    files.save_weights(str(path), frozen, state)
    weights = files.load_weights(path)
    weights_lib.assert_same(weights.params, params)
    weights_lib.assert_same(weights.state, state)
    weights_lib.assert_same(utils.load_haiku_file(str(path)), params)
  # The content decides and not the name.
  for name in ('F0_haiku.npz', 'weights.safetensors', 'weights', 'w.pth'):
    path = path.replace(tmp_path / name)
    weights_lib.assert_same(files.load_weights(path).params, params)


@pytest.mark.parametrize('length', [0x80, 0x0480, ord('K') * 256 + ord('P')])
def test_safetensors_may_begin_like_a_pickle_or_zip(tmp_path, length):
  path = tmp_path / 'weights'
  text = json.dumps({'m/w': entry()}).encode().ljust(length)
  path.write_bytes(with_contents(text))
  assert path.read_bytes()[:2] in (b'\x80\0', b'\x80\4', b'PK')
  weights_lib.assert_same(files.load_weights(path).params, ZEROS)


@pytest.mark.parametrize(
  ('suffix', 'load'),
  [
    ('.npz', lambda path: dict(np.load(path, allow_pickle=False))),
    ('.safetensors', safetensors.numpy.load_file),
  ],
)
def test_other_libraries_read_what_is_written(tmp_path, suffix, load):
  params = {'NFNet/~/linear': {'b': np.float32([1, 2])}}
  state = {'bn/~/mean_ema': {'counter': np.int32(3)}}
  files.save_weights(tmp_path / f'w{suffix}', params, state)
  arrays = {key: x.tolist() for key, x in load(tmp_path / f'w{suffix}').items()}
  assert arrays == {
    'NFNet/~/linear/b': [1, 2],
    'state:bn/~/mean_ema/counter': 3,
  }


def save_raw(path, params):
  arrays = {f'NFNet/{key}': np.asarray(x) for key, x in params['NFNet'].items()}
  safetensors.numpy.save_file(arrays, path)


@pytest.mark.parametrize(
  ('suffix', 'save'),
  [
    ('.npz', files.save_weights),
    ('.safetensors', files.save_weights),
    ('.safetensors', save_raw),
  ],
)
def test_bfloat16_comes_back_as_float32(tmp_path, suffix, save):
  low = jnp.arange(-4, 4, 0.37, jnp.bfloat16)
  save(tmp_path / f'w{suffix}', {'NFNet': {'w': low, 'x': np.asarray(low)}})
  exact = np.float64(low).astype(np.float32)
  params = files.load_weights(tmp_path / f'w{suffix}').params
  weights_lib.assert_same(params, {'NFNet': {'w': exact, 'x': exact}})


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize(
  ('params', 'state', 'named'),
  [
    ({'m': {'w': np.array(['a'])}}, None, 'm/w.*<U1'),
    ({'m': {'w': np.array([None])}}, None, 'm/w.*object'),
    ({'m': {'w': np.ones(2, bool)}}, None, 'm/w.*bool'),
    ({'m': {'w': np.ones(2, 'c8')}}, None, 'm/w.*complex64'),
    ({'m': {'w': jax.random.key(0)}}, None, 'm/w, no array'),
    ({'m': {'w': [[1], [2, 3]]}}, None, 'm/w, no array'),
    ({'m': {'w/x': np.ones(2)}}, None, "'w/x' of module 'm'"),
    ({'m': {'': np.ones(2)}}, None, "'' of module 'm'"),
    ({'': {'w': np.ones(2)}}, None, "'w' of module ''"),
    ({'m': {3: np.ones(2)}}, None, "3 of module 'm'"),
    ({'m\0': {'w': np.ones(2)}}, None, 'same names'),
    ({'m\udc80': {'w': np.ones(2)}}, None, 'same names'),
    ({'m' * 2000: {'w': np.ones(2)}}, None, 'same names'),
    ({'state:m': {'w': np.ones(2)}}, None, "module 'state:m'"),
    ({'m': np.ones(2)}, None, 'each a dict of arrays'),
    ([np.ones(2)], None, 'dict of modules'),
    ({'m': {'w': np.ones(2)}}, {'m': {'w/x': np.ones(2)}}, "'w/x'"),
  ],
)
def test_what_would_not_come_back_is_not_written(
  tmp_path, suffix, params, state, named
):
  path = tmp_path / f'weights{suffix}'
  path.write_text('as before')
  with pytest.raises(ValueError, match=named):
    files.save_weights(path, params, state)
  assert path.read_text() == 'as before'
  assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize('name', ['weights', 'weights.pkl', 'weights.npz.gz'])
def test_unknown_suffixes_are_refused(tmp_path, name):
  with pytest.raises(ValueError, match=r'\.npz or \.safetensors'):
    files.save_weights(tmp_path / name, {'m': {'w': np.ones(2)}})
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path, suffix, monkeypatch):
  path = tmp_path / f'weights{suffix}'
  path.write_text('as before')

  def fail(*args, **kwargs):
    raise OSError('No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='No space'):
    files.save_weights(path, {'m': {'w': np.ones(2)}})
  assert path.read_text() == 'as before'
  assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize('load', [files.load_weights, files.load_tensors])
def test_missing_files_and_folders_are_named(tmp_path, load):
  path = tmp_path / 'F0_haiku.npz'
  with pytest.raises(FileNotFoundError, match='F0_haiku.npz.*no such file'):
    load(path)
  path.mkdir()
  assert 'folder' in weights_lib.refusal(path, load)
  os.mkfifo(tmp_path / 'fifo')
  assert 'not a file' in weights_lib.refusal(tmp_path / 'fifo', load)


@pytest.mark.parametrize('load', [files.load_weights, files.load_tensors])
@pytest.mark.parametrize(
  ('content', 'named'),
  [
    (b'', 'is empty'),
    (b'<!DOCTYPE html><html>Sign in</html>', 'web page .* download'),
    (b'\n  <html>', 'web page'),
    (b'<?xml version="1.0"?><Error>NoSuchKey</Error>', 'web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'git lfs'),
    (gzip.compress(b'weights', mtime=0), 'gzip'),
    (b'\x89HDF\r\n\x1a\n', 'HDF5'),
    (b'{"a": 1}', 'JSON'),
    (b'Not found', "begins with b'Not found'"),
    (bytes(100), 'not a file of weights'),
    (b'\x93NUMPY\x01\x00', 'single array'),
    (
      b'PK\x03\x04' + bytes(100),
      'download that stopped: File is not a zip file',
    ),
    (weights_lib.zipped(), 'zip archive of nothing'),
    (
      weights_lib.zipped(**{'notes.txt': b'hello'}),
      "zip archive of .*'notes.txt'",
    ),
    (
      weights_lib.zipped(**{'weights.npz': weights_lib.zipped()}),
      "zip archive of .*'weights.npz'",
    ),
  ],
)
def test_what_is_not_weights_is_said_to_be_what_it_is(
  tmp_path, load, content, named
):
  path = tmp_path / 'F0_haiku.npz'
  path.write_bytes(content)
  message = weights_lib.refusal(path, load)
  assert re.search(named, message), message


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_truncated_anywhere_is_refused(tmp_path, suffix):
  path = tmp_path / f'weights{suffix}'
  files.save_weights(path, make_weight_files.tree())
  content = path.read_bytes()
  for length in range(20, len(content), 41):
    path.write_bytes(content[:length])
    assert 'download that stopped' in weights_lib.refusal(path)


@pytest.mark.parametrize('key', ['w', '/w', 'm/', 'stem.conv1.weight'])
def test_keys_without_a_module_are_refused(tmp_path, key):
  for suffix, save in (
    ('.npz', lambda path, arrays: np.savez(path, **arrays)),
    ('.safetensors', lambda path, x: safetensors.numpy.save_file(x, path)),
  ):
    save(tmp_path / f'weights{suffix}', {key: np.ones(2)})
    message = weights_lib.refusal(tmp_path / f'weights{suffix}')
    assert repr(key) in message and 'open_model' in message


def with_contents(contents, data=bytes(8)):
  text = contents if isinstance(contents, bytes) else json.dumps(contents)
  text = text if isinstance(text, bytes) else text.encode()
  return struct.pack('<Q', len(text)) + text + data


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}


@pytest.mark.parametrize(
  'content',
  [
    with_contents({'m/w': entry(shape=(3,))}),
    with_contents({'m/w': entry(shape=(10**15,), offsets=(0, 4 * 10**15))}),
    with_contents({'m/w': entry(shape=(0, 2**62), offsets=(0, 0))}, b''),
    with_contents({'m/w': entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}, b''),
    with_contents({'m/w': entry(offsets=(-8, 0))}),
    with_contents({'m/w': entry('C64', (1,))}),
    with_contents({'m/w': entry('BOOL', (8,))}),
    with_contents({'m/w': entry('F8_E4M3', (8,))}),
    with_contents({'m/w': entry('TEXT')}),
    with_contents({'m/w': 3}),
    with_contents(b'{"m/w": '),
    with_contents(b'{' * 100_000),
    with_contents(b'{"a":' + b'[' * 100_000),
    with_contents({'m/w': entry(), 'm/v': entry()}),
    b'\xff' * 7 + b'\x7f' + b'{}',
  ],
)
def test_damaged_safetensors_are_refused(tmp_path, content):
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(with_contents({'m/w': entry()}))
  weights_lib.assert_same(files.load_weights(path).params, ZEROS)
  path.write_bytes(content)
  weights_lib.refusal(path)
  weights_lib.refusal(path, files.load_tensors)


def test_the_function_for_other_formats_is_named(tmp_path):
  path = tmp_path / 'weights'
  for name, load in (
    ('published_dill3_dict', files.load_tensors),
    ('torch_zip_plain', files.load_weights),
  ):
    with zipfile.ZipFile(make_weight_files.ARCHIVE) as archive:
      path.write_bytes(archive.read(name))
    assert 'nfnets.weights.' in weights_lib.refusal(path, load)
  path = tmp_path / 'weights.npz'
  files.save_weights(path, make_weight_files.tree())
  assert 'load_weights' in weights_lib.refusal(path, files.load_tensors)


def npy(header=None, array=None, data=None, version=b'\1\0', shape=None):
  """Returns an .npy file whose header or data may be wrong."""
  array = np.ones((2, 3), np.float32) if array is None else array
  if header is None:
    header = (
      f"{{'descr': '{array.dtype.str}', 'fortran_order': False, "
      f"'shape': {shape or array.shape}, }}"
    )
  header = header.encode()
  data = array.tobytes() if data is None else data
  return b'\x93NUMPY' + version + struct.pack('<H', len(header)) + header + data


def test_packed_npz_is_read(tmp_path):
  path = tmp_path / 'weights.npz'
  np.savez_compressed(path, **{'m/w': np.zeros(2, np.float32)})
  weights_lib.assert_same(files.load_weights(path).params, ZEROS)


@pytest.mark.parametrize(
  'content',
  [
    npy(shape='(2, 4)'),
    npy(shape='(999999999, 999999999)'),
    npy(shape='(0, 9999999999, 9999999999)'),
    npy().replace(b'<f4', b'|O8'),
    npy().replace(b'<f4', b'<V2'),
    npy().replace(b'<f4', b'<c8'),
    npy("__import__('os').mkdir('x')"),
    npy('('),
    npy('(' * 9000),
    npy(version=b'\3\0'),
    npy(data=b''),
    npy()[:9],
    npy()[:40],
    npy(' ' * 20_000),
    b'',
  ],
)
def test_damaged_arrays_in_npz_are_refused(tmp_path, content):
  path = tmp_path / 'weights.npz'
  path.write_bytes(weights_lib.zipped(**{'m/w.npy': npy()}))
  weights_lib.assert_same(
    files.load_weights(path).params, {'m': {'w': np.ones((2, 3), np.float32)}}
  )
  path.write_bytes(weights_lib.zipped(**{'m/w.npy': npy(), 'm/x.npy': content}))
  weights_lib.refusal(path)


def test_arrays_that_only_pickle_could_write_are_refused(tmp_path):
  path = tmp_path / 'weights.npz'
  np.savez(path, **{'m/w': np.array([{}])})
  assert 'allow_pickle=False' in weights_lib.refusal(path)


def false_sizes(packed, size):
  """Returns an archive whose table of contents has other sizes."""
  content = bytearray(weights_lib.zipped(**{'m/w.npy': npy()}))
  at = content.rindex(b'PK\x01\x02')
  if not packed:
    content[at + 10 : at + 12] = bytes(2)
  content[at + 20 : at + 28] = struct.pack('<II', 40 if packed else size, size)
  return bytes(content)


@pytest.mark.parametrize(
  'content',
  [
    weights_lib.zipped(**{'m/w.npy': npy(array=np.zeros(50_000_000, np.int8))}),
    false_sizes(True, 2**31),
    false_sizes(False, 2**31),
  ],
  ids=['bomb', 'packed', 'stored'],
)
def test_zip_bombs_and_false_sizes_are_refused_without_memory(
  tmp_path, content
):
  path = tmp_path / 'weights.npz'
  path.write_bytes(content)
  tracemalloc.start()
  try:
    assert 'claims to hold much more' in weights_lib.refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
  finally:
    tracemalloc.stop()


def test_a_flipped_bit_in_npz_is_noticed(tmp_path):
  path = tmp_path / 'weights.npz'
  files.save_weights(path, {'m': {'w': np.ones(1000)}})
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  assert 'Bad CRC-32' in weights_lib.refusal(path)


def test_two_arrays_of_the_same_name_are_refused(tmp_path):
  path = tmp_path / 'weights.npz'
  with warnings.catch_warnings(), zipfile.ZipFile(path, 'w') as archive:
    warnings.simplefilter('ignore')
    archive.writestr('m/w.npy', npy())
    archive.writestr('m/w.npy', npy())
  assert 'same name' in weights_lib.refusal(path)
