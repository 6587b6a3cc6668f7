"""The released format: every writer is read, and nothing is ever called."""

import collections
import io
import os
import pickle
import pickletools
import re
import struct
import tracemalloc
import zipfile

import haiku as hk
import jax.numpy as jnp
import make_weight_files
import numpy as np
import pytest
import weights_lib

with zipfile.ZipFile(make_weight_files.ARCHIVE) as archive:
  WRITTEN = {
    name: archive.read(name)
    for name in archive.namelist()
    if not name.startswith('torch')
  }


def python_dumps(value, protocol):
  """Pickles as `pickle.dumps` does, by its form in Python."""
  file = io.BytesIO()
  pickle._Pickler(file, protocol).dump(value)
  return file.getvalue()


@pytest.mark.parametrize('name', WRITTEN)
def test_every_writer_is_read(tmp_path, name):
  params = weights_lib.load_bytes(tmp_path, WRITTEN[name])
  tree = make_weight_files.tree()
  weights_lib.assert_same(params, tree)
  assert list(params) == list(tree)


def test_fixtures_are_what_they_are_said_to_be():
  assert len(WRITTEN) == 57
  for name, content in WRITTEN.items():
    environment, writer, mapping = name.split('_')
    names = {
      arg.split(' ')[-1] if op.name == 'GLOBAL' else arg
      for op, arg, _ in pickletools.genops(content)
      if isinstance(arg, str)
    }
    assert content[1] == int(writer[-1])
    assert ('FlatMapping' in names) == (mapping == 'FlatMapping')
    assert ('frozendict' in names) == (mapping == 'frozendict')
    uses_dill = bool(names & {'_get_attr', '_create_array'})
    assert uses_dill == writer.startswith('dill')
    modern = any('_core.' in name for name in content.decode('latin-1').split())
    assert environment != 'published' or not modern


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize(
  'mapping', [hk.data_structures.to_immutable_dict, dict]
)
def test_what_todays_haiku_and_numpy_write_is_read(tmp_path, protocol, mapping):
  tree = make_weight_files.tree()
  content = pickle.dumps(mapping(tree), protocol)
  weights_lib.assert_same(weights_lib.load_bytes(tmp_path, content), tree)


class Noted(collections.OrderedDict):
  """An OrderedDict that pickles as one, and can have attributes."""

  def __reduce__(self):
    _, *rest = super().__reduce__()
    return collections.OrderedDict, *rest


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('dumps', [pickle.dumps, python_dumps])
def test_ordered_dicts_are_read(tmp_path, protocol, dumps):
  ordered, tree = collections.OrderedDict, make_weight_files.tree()
  noted = Noted(tree)
  noted.note = {'written': 'by hand'}
  for value in (
    ordered({module: ordered(leaves) for module, leaves in tree.items()}),
    ordered(tree),
    {module: ordered(leaves) for module, leaves in tree.items()},
    noted,
  ):
    content = dumps(value, protocol)
    assert b'OrderedDict' in content
    weights_lib.assert_same(weights_lib.load_bytes(tmp_path, content), tree)
  for wrong, message in (
    (ordered(), 'no parameters'),
    (ordered(NFNet=ordered(w=ordered(w=np.ones(3)))), "a dict under 'w'"),
    (ordered({('a', 'b'): ordered()}), 'tuple for a key'),
    (Calls(collections.OrderedDict, [['NFNet', {}]]), 'damaged dict'),
    (Calls(collections.OrderedDict.fromkeys, 'ab'), 'no file of weights needs'),
    (collections.defaultdict(dict, tree), 'collections.defaultdict'),
  ):
    assert message in weights_lib.refusal_of_bytes(
      tmp_path, dumps(wrong, protocol)
    )


def test_arrays_do_not_share_memory_and_can_be_changed(tmp_path):
  params = weights_lib.load_bytes(tmp_path, WRITTEN['published_dill3_dict'])
  params['NFNet/~/stem_conv0']['gain'] += 1
  expected = make_weight_files.tree()
  expected['NFNet/~/stem_conv0']['gain'] += 1
  weights_lib.assert_same(params, expected)


class Calls:
  """Pickles as a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', range(2, 6))
def test_calls_are_refused_by_name_and_not_made(tmp_path, protocol):
  bait = tmp_path / 'bait'
  for value, name in (
    (Calls(os.mkdir, str(bait)), f'{os.mkdir.__module__}.mkdir'),
    (Calls(eval, f'open({str(bait)!r}, "w")'), '.eval'),
    (Calls(np.load, str(bait)), 'numpy.load'),
    (Calls(getattr, 'text', 'upper'), '.getattr'),
  ):
    for content in (value, {'NFNet': {'w': value}}, {'NFNet': value}):
      message = weights_lib.refusal_of_bytes(
        tmp_path, pickle.dumps(content, protocol)
      )
      assert f'{name}, which no file of weights needs' in message
  assert not bait.exists()


@pytest.mark.parametrize(
  ('value', 'named'),
  [
    (None, 'holds None'),
    ([1], 'type list'),
    ({}, 'no parameters'),
    ({'NFNet': np.ones(3)}, "holds an array under 'NFNet'"),
    ({'NFNet': {'w': {'deep': np.ones(3)}}}, "dict under 'w' of .*'NFNet'"),
    ({'NFNet': {'w': 1.5}}, "type float under 'w'"),
    ({'NFNet': {'w': b'abc'}}, "bytes under 'w'"),
    ({'NFNet': {'w': np.dtype('f4')}}, "a dtype under 'w'"),
    ({'NFNet': {'w': [np.ones(3)]}}, "type list under 'w'"),
    ({'NFNet': {3: np.ones(3)}}, 'under 3 of'),
    ({3: {'w': np.ones(3)}}, 'under 3'),
    ({('a', 'b'): {'w': np.ones(3)}}, 'tuple for a key'),
    ({'NFNet': {'w': np.array([None])}}, 'O8'),
    ({'NFNet': {'w': np.array(['text'])}}, 'U4'),
    ({'NFNet': {'w': np.array([b'text'])}}, 'S4'),
    ({'NFNet': {'w': np.ones(3, 'c8')}}, 'c8'),
    ({'NFNet': {'w': np.ones(3, bool)}}, 'b1'),
    ({'NFNet': {'w': np.zeros(3, 'M8[s]')}}, 'M8'),
    ({'NFNet': {'w': np.zeros(3, [('a', 'f4')])}}, 'V4'),
    ({'NFNet': {'w': hk.Linear}}, 'haiku'),
  ],
)
@pytest.mark.parametrize('protocol', range(2, 6))
def test_what_is_no_tree_of_numbers_is_refused(
  tmp_path, value, named, protocol
):
  message = weights_lib.refusal_of_bytes(
    tmp_path, pickle.dumps(value, protocol)
  )
  assert re.search(named, message), message


def test_jax_arrays_are_refused_with_what_to_do(tmp_path):
  message = weights_lib.refusal_of_bytes(
    tmp_path, pickle.dumps({'NFNet': {'w': jnp.ones(3)}})
  )
  assert 'jax.device_get' in message


DTYPE = (
  b'cnumpy\ndtype\n(X\x02\0\0\0f4\x89\x88tR(K\x03X\x01\0\0\0<NNN'
  b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb'
)
EMPTY = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\1btR'


def with_array(code):
  return b'\x80\x04}X\x05\0\0\0NFNet}X\x01\0\0\0w' + code + b'ss.'


def array(shape=b'(K\x02t', dtype=DTYPE, data=b'C\x08' + bytes(8), version=1):
  state = b'(K' + bytes([version]) + shape + dtype + b'\x89' + data + b'tb'
  return with_array(EMPTY + state)


def test_array_from_its_parts_is_read(tmp_path):
  params = weights_lib.load_bytes(tmp_path, array())
  weights_lib.assert_same(params, {'NFNet': {'w': np.zeros(2, np.float32)}})


LARGE = b'\x8a\x08' + struct.pack('<q', 2**62)  # As a number of the pickle.


@pytest.mark.parametrize(
  ('content', 'named'),
  [
    (array(shape=b'(K\x03t'), r'shape \[3\] with 8 bytes'),
    (array(shape=b'(K\x01t'), r'shape \[1\] with 8 bytes'),
    (array(shape=b'(t'), r'shape \[\] with 8 bytes'),
    (array(shape=b'(J\xfe\xff\xff\xfft'), 'impossible shape'),
    (array(shape=b'(K\x02J\xff\xff\xff\xfft'), 'impossible shape'),
    (array(shape=b'(' + LARGE + b't'), 'impossible shape'),
    (array(shape=b'(K\0' + LARGE + b't', data=b'C\0'), 'impossible shape'),
    (array(shape=b'(' + 40 * b'K\x01' + b'K\x02t'), 'impossible shape'),
    (array(shape=b'(\x88K\x02t'), 'impossible shape'),
    (array(shape=b'K\x02'), 'parts are damaged'),
    (array(dtype=b'X\x02\0\0\0f4'), 'parts are damaged'),
    (array(dtype=DTYPE.replace(b'<', b'?')), 'dtype is damaged'),
    (array(dtype=DTYPE.replace(b'NNN', b'N)N')), 'dtype is damaged'),
    (array(dtype=DTYPE.replace(b'K\0', b'N')), 'dtype is damaged'),
    (array(dtype=DTYPE.replace(b'K\3', b'K\4')), 'dtype is damaged'),
    (array(dtype=DTYPE.replace(b'f4', b'O8')), "dtype 'O8'"),
    (array(dtype=DTYPE.replace(b'f4', b'f3')), "dtype 'f3'"),
    (array(data=b'X\x08\0\0\0' + bytes(8)), 'parts are damaged'),
    (array(data=b'N'), 'parts are damaged'),
    (array(data=b']N' + b'a'), 'parts are damaged'),
    (array(version=2), 'parts are damaged'),
    (with_array(EMPTY), 'an array without its numbers'),
    (with_array(EMPTY + b'Nb'), 'parts are damaged'),
    (with_array(EMPTY.replace(b'K\0', b'K\1')), 'parts are damaged'),
    (
      with_array(b'cnumpy.core.multiarray\nscalar\n' + DTYPE + b'\x85R'),
      'number whose parts',
    ),
    (
      with_array(
        b'cnumpy.core.multiarray\nscalar\n' + DTYPE + b'C\x03abc\x86R'
      ),
      r'shape \[\] with 3 bytes',
    ),
    (
      with_array(
        b'cnumpy.core.numeric\n_frombuffer\n(C\x04abcd'
        + DTYPE
        + b'K\x01\x85X\x01\0\0\0KK\x05\x85tR'
      ),
      'axes|axis',
    ),
    (
      with_array(b'c_codecs\nencode\n(X\x02\0\0\0\xc4\x80X\x06\0\0\0latin1tR'),
      'bytes that are damaged',
    ),
    (
      with_array(b'c_codecs\nencode\n(X\x01\0\0\0aX\x05\0\0\0rot13tR'),
      '_codecs.encode',
    ),
  ],
)
def test_damaged_parts_of_arrays_are_refused(tmp_path, content, named):
  message = weights_lib.refusal_of_bytes(tmp_path, content)
  assert re.search(named, message), message


@pytest.mark.parametrize(
  'code',
  [
    b'B\xff\xff\xff\xff',  # Bytes,
    b'\x8e' + struct.pack('<Q', 2**63),
    b'\x96' + struct.pack('<Q', 2**40),
    b'X\xff\xff\xff\x7f',  # text,
    b'\x8d' + struct.pack('<Q', 2**62),
    b'Nr\xff\xff\xff\xff0',  # an index of the memo,
    b'\x95' + struct.pack('<Q', 2**60) + b'N0',  # a frame,
    b'\x8b\xff\xff\xff\x7f',  # and a number, of billions.
    # A shape of 10^18.
    array(shape=b'(' + LARGE + b't')[2:],
    # The same text as 100,000 arrays of bytes.
    b'(X\x10\x27\0\0' + bytes(10_000) + b'q\0c_codecs\nencode\nq\1'
    b'X\x06\0\0\0latin1q\2' + 100_000 * b'h\1h\0h\2\x86R' + b'.',
  ],
)
def test_little_is_allocated_whatever_is_claimed(tmp_path, code):
  tracemalloc.start()
  try:
    weights_lib.refusal_of_bytes(tmp_path, b'\x80\x04' + code + bytes(100))
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 2e6 + 4 * len(code)


def test_the_same_arrays_over_and_over_are_refused(tmp_path):
  array = np.zeros(1000, np.float16)
  leaves = {f'w{i}': np.zeros((), np.float32) for i in range(100)}
  for tree in (
    {'a': {str(i): array for i in range(1000)}},
    {str(i): leaves for i in range(1000)},
  ):
    assert 'over and over' in weights_lib.refusal_of_bytes(
      tmp_path, pickle.dumps(tree, 4)
    )
  # As where a network ties two of its layers.
  tree = {'a': {'w': array}, 'b': {'w': array}}
  weights_lib.assert_same(
    weights_lib.load_bytes(tmp_path, pickle.dumps(tree, 4)), tree
  )


def test_deep_nesting_is_refused(tmp_path):
  deep = b'\x80\x04' + b')' + 200_000 * b'\x85' + b'.'
  assert 'tuple' in weights_lib.refusal_of_bytes(tmp_path, deep)
  deep = with_array(b')' + 200_000 * b'\x85')
  assert 'tuple' in weights_lib.refusal_of_bytes(tmp_path, deep)
