"""Files that the project writes, and what is not a file of weights."""

import gzip
import json
import os
import pathlib
import struct
import zipfile

import haiku as hk
import jax
import jax.numpy as jnp
import make_weight_files
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import weights_lib

import nfnets
from nfnets import utils
from nfnets.weights import files, shapes

SUFFIXES = ('.npz', '.safetensors')


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_weights_come_back_as_they_were(tmp_path, suffix):
  path = tmp_path / f'weights{suffix}'
  params = make_weight_files.tree()
  files.save_weights(path, params)
  weights = files.load_weights(path)
  weights_lib.assert_same(weights.params, params)
  assert weights.state == {}
  weights_lib.assert_same(utils.load_haiku_file(str(path)), params)
  state = {'ResNet/~/bn/~/mean_ema': {'average': np.float32([1, 2])}}
  files.save_weights(str(path), params, state)
  weights = files.load_weights(path)
  weights_lib.assert_same(weights.params, params)
  weights_lib.assert_same(weights.state, state)
  weights_lib.assert_same(files.load_haiku_file(path), params)


def test_a_model_with_state_comes_back(tmp_path):
  params, state = jax.tree.map(
    lambda x: jnp.ones(x.shape, x.dtype),
    shapes.of_model(nfnets.create_model('resnet50', 10)),
  )
  for suffix in SUFFIXES:
    path = tmp_path / f'weights{suffix}'
    immutable = hk.data_structures.to_immutable_dict(params)
    files.save_weights(path, immutable, state)
    weights = files.load_weights(path)
    weights_lib.assert_same(weights.params, params)
    weights_lib.assert_same(weights.state, state)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_the_content_decides_and_not_the_name(tmp_path, suffix):
  params = make_weight_files.tree()
  files.save_weights(tmp_path / f'weights{suffix}', params)
  for name in ('F0_haiku.npz', 'weights.safetensors', 'weights', 'w.pth'):
    path = (tmp_path / f'weights{suffix}').replace(tmp_path / name)
    weights_lib.assert_same(files.load_weights(path).params, params)
    path.replace(tmp_path / f'weights{suffix}')


@pytest.mark.parametrize('length', [0x80, 0x0480, ord('K') * 256 + ord('P')])
def test_safetensors_may_begin_like_a_pickle_or_zip(tmp_path, length):
  path = tmp_path / 'weights'
  text = json.dumps({'m/w': entry()}).encode().ljust(length)
  path.write_bytes(with_contents(text))
  assert path.read_bytes()[:2] in (b'\x80\0', b'\x80\4', b'PK')
  weights_lib.assert_same(
    files.load_weights(path).params, {'m': {'w': np.zeros(2, np.float32)}}
  )


def test_other_libraries_read_what_is_written(tmp_path):
  params = {'NFNet/~/linear': {'b': np.float32([1, 2])}}
  state = {'bn/~/mean_ema': {'counter': np.int32(3)}}
  for suffix in SUFFIXES:
    files.save_weights(tmp_path / f'weights{suffix}', params, state)
  with np.load(tmp_path / 'weights.npz', allow_pickle=False) as file:
    npz = dict(file)
  tensors = safetensors.numpy.load_file(tmp_path / 'weights.safetensors')
  for arrays in (npz, tensors):
    assert set(arrays) == {'NFNet/~/linear/b', 'state:bn/~/mean_ema/counter'}
    np.testing.assert_array_equal(arrays['NFNet/~/linear/b'], [1, 2])
    assert arrays['state:bn/~/mean_ema/counter'] == 3


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_bfloat16_comes_back_as_float32(tmp_path, suffix):
  path = tmp_path / f'weights{suffix}'
  low = jnp.arange(-4, 4, 0.37, jnp.bfloat16)
  files.save_weights(path, {'NFNet': {'w': low, 'x': np.asarray(low)}})
  exact = np.float64(low).astype(np.float32)
  weights_lib.assert_same(
    files.load_weights(path).params, {'NFNet': {'w': exact, 'x': exact}}
  )


def test_bfloat16_in_safetensors_is_read_as_float32(tmp_path):
  path = tmp_path / 'weights.safetensors'
  low = np.arange(-4, 4, 0.37).astype(ml_dtypes.bfloat16)
  safetensors.numpy.save_file({'NFNet/w': low}, path)
  exact = np.float64(low).astype(np.float32)
  weights_lib.assert_same(
    files.load_weights(path).params, {'NFNet': {'w': exact}}
  )
  np.testing.assert_array_equal(files.load_tensors(path)['NFNet/w'], exact)


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize(
  ('params', 'state', 'named'),
  [
    ({'m': {'w': np.array(['a'])}}, None, 'm/w .*<U1'),
    ({'m': {'w': np.array([None])}}, None, 'm/w .*object'),
    ({'m': {'w': np.ones(2, bool)}}, None, 'm/w .*bool'),
    ({'m': {'w': np.ones(2, 'c8')}}, None, 'm/w .*complex64'),
    ({'m': {'w': jax.random.key(0)}}, None, 'm/w is not an array'),
    ({'m': {'w': [[1], [2, 3]]}}, None, 'm/w is not an array'),
    ({'m': {'w/x': np.ones(2)}}, None, "'w/x' of module 'm'"),
    ({'m': {'': np.ones(2)}}, None, "'' of module 'm'"),
    ({'': {'w': np.ones(2)}}, None, "'w' of module ''"),
    ({'m': {3: np.ones(2)}}, None, "3 of module 'm'"),
    ({'m\0': {'w': np.ones(2)}}, None, 'same names'),
    ({'m\udc80': {'w': np.ones(2)}}, None, 'same names'),
    ({'m' * 2000: {'w': np.ones(2)}}, None, 'same names'),
    ({'state:m': {'w': np.ones(2)}}, None, "module 'state:m'"),
    ({'m': np.ones(2)}, None, "Under 'm'"),
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


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_who_reads_the_old_file_can_go_on(tmp_path, suffix):
  path = tmp_path / f'weights{suffix}'
  path.write_text('as before')
  with open(path) as old:
    files.save_weights(path, {'m': {'w': np.ones(2)}})
    assert old.read() == 'as before'
  assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_file_has_the_usual_permissions(tmp_path, suffix):
  path, other = tmp_path / f'weights{suffix}', tmp_path / 'other'
  files.save_weights(path, {'m': {'w': np.ones(2)}})
  other.touch()
  assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_folder_that_is_missing_is_named(tmp_path, suffix):
  with pytest.raises(FileNotFoundError, match='nowhere'):
    files.save_weights(
      tmp_path / 'nowhere' / f'weights{suffix}', {'m': {'w': np.ones(2)}}
    )


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
    (b'PK\x03\x04' + bytes(100), 'zip archive .* download'),
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
  with pytest.raises(ValueError, match=named):
    load(path)
  weights_lib.refusal(path, load)


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
    path = tmp_path / f'weights{suffix}'
    save(path, {key: np.ones(2)})
    assert repr(key) in weights_lib.refusal(
      path
    ) and 'open_model' in weights_lib.refusal(path)


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
  weights_lib.assert_same(
    files.load_weights(path).params, {'m': {'w': np.zeros(2, np.float32)}}
  )
  path.write_bytes(content)
  weights_lib.refusal(path)
  weights_lib.refusal(path, files.load_tensors)


def test_kinds_of_files(tmp_path):
  expected = {'published_dill3_dict': 'pickle', 'torch_zip_plain': 'torch_zip'}
  expected['torch_legacy_plain'] = 'torch_legacy'
  path = tmp_path / 'weights'
  with zipfile.ZipFile(make_weight_files.ARCHIVE) as archive:
    for name, kind in expected.items():
      path.write_bytes(archive.read(name))
      assert files.recognize(path) == kind
      load = (files.load_tensors, files.load_weights)[name[0] == 't']
      assert 'nfnets.weights.' in weights_lib.refusal(path, load)
  for suffix in SUFFIXES:
    files.save_weights(f'{path}{suffix}', make_weight_files.tree())
    assert files.recognize(f'{path}{suffix}') == suffix[1:]
  assert 'load_weights' in weights_lib.refusal(
    pathlib.Path(f'{path}.npz'), files.load_tensors
  )
