"""Zip archives of arrays: damaged ones are refused, and cost no memory."""

import io
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import weights_lib

from nfnets.weights import files


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
  w = np.random.default_rng(0).standard_normal((20, 30))
  np.savez_compressed(path, **{'NFNet/w': w, 'NFNet/zero': np.zeros(3)})
  weights_lib.assert_same(
    files.load_weights(path).params, {'NFNet': {'w': w, 'zero': np.zeros(3)}}
  )


@pytest.mark.parametrize(
  ('content', 'named'),
  [
    (npy(shape='(2, 4)'), r'shape \[2, 4\] with 24 bytes'),
    (npy(shape='(999999999, 999999999)'), 'impossible shape'),
    (npy(shape='(0, 9999999999, 9999999999)'), 'impossible'),
    (npy().replace(b'<f4', b'|O8'), 'not an array of numbers.*O8'),
    (npy().replace(b'<f4', b'<V2'), 'not an array of numbers.*V2'),
    (npy().replace(b'<f4', b'<c8'), 'not an array of numbers'),
    (npy("__import__('os').mkdir('x')"), 'not an array of numbers'),
    (npy('('), 'not an array of numbers'),
    (npy('(' * 9000), 'not an array of numbers'),
    (npy(version=b'\3\0'), 'not an array of NumPy'),
    (npy(data=b''), 'with 0 bytes'),
    (npy()[:9], 'not an array of NumPy'),
    (npy()[:40], 'header is damaged'),
    (npy(' ' * 20_000), 'header is damaged'),
    (b'', 'not an array of NumPy'),
  ],
)
def test_damaged_arrays_in_npz_are_refused(tmp_path, content, named):
  path = tmp_path / 'weights.npz'
  path.write_bytes(weights_lib.zipped(**{'m/w.npy': npy()}))
  weights_lib.assert_same(
    files.load_weights(path).params, {'m': {'w': np.ones((2, 3), np.float32)}}
  )
  path.write_bytes(weights_lib.zipped(**{'m/w.npy': npy(), 'm/x.npy': content}))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    with pytest.raises(ValueError, match=named):
      files.load_weights(path)


def test_arrays_that_only_pickle_could_write_are_refused(tmp_path):
  path = tmp_path / 'weights.npz'
  np.savez(path, **{'m/w': np.array([{}])})
  assert "O'" in weights_lib.refusal(path)


def test_zip_bombs_and_false_sizes_are_refused_without_memory(tmp_path):
  path = tmp_path / 'weights.npz'
  array = np.zeros(50_000_000, np.int8)
  bomb = weights_lib.zipped(**{'m/w.npy': npy(array=array)})
  false = bytearray(weights_lib.zipped(**{'m/w.npy': npy()}))
  at = false.rindex(b'PK\x01\x02') + 20  # Sizes in the table of contents.
  false[at : at + 8] = struct.pack('<II', 40, 2**31)
  stored = io.BytesIO()
  np.savez(stored, **{'m/w': np.ones(3)})
  stored = bytearray(stored.getvalue())
  at = stored.rindex(b'PK\x01\x02') + 20
  stored[at : at + 8] = struct.pack('<II', 2**31, 2**31)
  for content in (bomb, bytes(false), bytes(stored)):
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
