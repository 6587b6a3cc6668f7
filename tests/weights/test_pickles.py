"""Pickles: every writer is read, and nothing is ever imported or called."""

import collections
import io
import os
import pickle
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


class Calls:
  """Pickles as a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('name', WRITTEN)
def test_every_writer_is_read(tmp_path, name):
  params = weights_lib.load_bytes(tmp_path, WRITTEN[name])
  weights_lib.assert_same(params, make_weight_files.tree())
  assert list(params) == list(make_weight_files.tree())


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
  inner = {module: ordered(leaves) for module, leaves in tree.items()}
  noted = Noted(tree)
  noted.note = {'written': 'by hand'}
  for value in (ordered(inner), ordered(tree), inner, noted):
    content = dumps(value, protocol)
    assert b'OrderedDict' in content
    weights_lib.assert_same(weights_lib.load_bytes(tmp_path, content), tree)


def test_arrays_do_not_share_memory_and_can_be_changed(tmp_path):
  params = weights_lib.load_bytes(tmp_path, WRITTEN['published_dill3_dict'])
  params['NFNet/~/stem_conv0']['gain'] += 1
  expected = make_weight_files.tree()
  expected['NFNet/~/stem_conv0']['gain'] += 1
  weights_lib.assert_same(params, expected)


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
      content = pickle.dumps(content, protocol)
      message = weights_lib.refusal_of_bytes(tmp_path, content)
      assert f'{name}, which no file of weights needs' in message
  assert not bait.exists()


@pytest.mark.parametrize(
  ('value', 'named'),
  [
    (None, 'type NoneType'),
    ([1], 'type list'),
    ({}, 'no parameters'),
    ({'NFNet': np.ones(3)}, "type array under 'NFNet'"),
    ({'NFNet': {'w': {'deep': np.ones(3)}}}, "dict under 'w' of .*'NFNet'"),
    ({'NFNet': {'w': 1.5}}, "type float under 'w'"),
    ({'NFNet': {'w': b'abc'}}, "bytes under 'w'"),
    ({'NFNet': {'w': np.dtype('f4')}}, "type dtype under 'w'"),
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
    ({'NFNet': {'w': jnp.ones(3)}}, r'jax\.device_get'),
    (collections.OrderedDict(), 'no parameters'),
    (
      collections.OrderedDict(NFNet=collections.OrderedDict(w={'w': 1})),
      "type dict under 'w'",
    ),
    (Calls(collections.OrderedDict, [['NFNet', {}]]), 'not a dict of'),
    (collections.defaultdict(dict, NFNet={}), 'collections.defaultdict'),
  ],
)
@pytest.mark.parametrize('protocol', range(2, 6))
def test_what_is_no_tree_of_numbers_is_refused(
  tmp_path, value, named, protocol
):
  content = pickle.dumps(value, protocol)
  message = weights_lib.refusal_of_bytes(tmp_path, content)
  assert re.search(named, message), message


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
    (array(shape=b'K\x02'), 'impossible shape'),
    (array(dtype=b'X\x02\0\0\0f4'), 'parts are damaged'),
    (array(dtype=DTYPE.replace(b'<', b'?')), 'f4.* which is damaged'),
    (array(dtype=DTYPE.replace(b'NNN', b'N)N')), 'f4.* which is damaged'),
    (array(dtype=DTYPE.replace(b'K\0', b'N')), 'f4.* which is damaged'),
    (array(dtype=DTYPE.replace(b'K\3', b'K\4')), 'f4.* which is damaged'),
    (array(dtype=DTYPE.replace(b'f4', b'O8')), "dtype 'O8'"),
    (array(dtype=DTYPE.replace(b'f4', b'f3')), "dtype 'f3'"),
    (array(data=b'X\x08\0\0\0' + bytes(8)), 'parts are damaged'),
    (array(data=b'N'), 'parts are damaged'),
    (array(data=b']N' + b'a'), 'parts are damaged'),
    (array(version=2), 'parts are damaged'),
    (with_array(EMPTY), 'parts are damaged'),
    (with_array(EMPTY + b'Nb'), 'parts are damaged'),
    (with_array(EMPTY.replace(b'K\0', b'K\1')), 'parts are damaged'),
    (
      with_array(b'cnumpy.core.multiarray\nscalar\n' + DTYPE + b'\x85R'),
      'parts are damaged',
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
      'is damaged',
    ),
    (
      array(data=b'c_codecs\nencode\n(X\x02\0\0\0\xc4\x80X\x06\0\0\0latin1tR'),
      'is damaged',
    ),
    (
      array(data=b'c_codecs\nencode\n(X\x01\0\0\0aX\x05\0\0\0rot13tR'),
      'parts are damaged',
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
    # The same text as 20,000 arrays of bytes.
    b'(X\x10\x27\0\0' + bytes(10_000) + b'q\0c_codecs\nencode\nq\1'
    b'X\x06\0\0\0latin1q\2' + 20_000 * b'h\1h\0h\2\x86R' + b'.',
  ],
)
def test_little_is_allocated_whatever_is_claimed(tmp_path, code):
  tracemalloc.start()
  try:
    weights_lib.refusal_of_bytes(tmp_path, b'\x80\x04' + code + bytes(100))
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 2e6 + 25 * len(code)


def test_the_same_arrays_over_and_over_are_refused(tmp_path):
  array = np.zeros(1000, np.float16)
  leaves = {f'w{i}': np.zeros((), np.float32) for i in range(100)}
  for tree in (
    {'a': {str(i): array for i in range(1000)}},
    {str(i): leaves for i in range(1000)},
  ):
    content = pickle.dumps(tree, 4)
    assert 'over and over' in weights_lib.refusal_of_bytes(tmp_path, content)
  # As where a network ties two of its layers.
  tree = {'a': {'w': array}, 'b': {'w': array}}
  params = weights_lib.load_bytes(tmp_path, pickle.dumps(tree, 4))
  weights_lib.assert_same(params, tree)


# A tuple in a tuple and so on, and one that has the same one twice, and so on.
DEEP = b')' + 200_000 * b'\x85'
WIDE = b']' + b''.join(b'q%ch%c\x86' % (k, k) for k in range(100, 150))


@pytest.mark.parametrize(
  ('code', 'named'),
  [
    # The ways of dill to find something by its name.
    (
      b'cdill._dill\n_get_attr\n(cdill._dill\n_import_module\n(X\x02\0\0\0ostR'
      b'X\x06\0\0\0systemtR.',
      'os.system',
    ),
    (b'cdill._dill\n_load_type\n(X\x04\0\0\0CodetR.', 'builtins.code'),
    (b'cdill._dill\n_eval_repr\n.', 'dill._dill._eval_repr'),
    (b'X\x02\0\0\0osX\x06\0\0\0system\x93.', 'os.system'),
    (b'X\x05\0\0\0numpyX\x08\0\0\0load.sub\x93.', 'numpy.load.sub'),
    (b'cnumpy.core.multiarray\nfromfile\n.', 'numpy.core.multiarray.fromfile'),
    (b'chaiku._src.data_structures\nFlatMap\n.', 'data_structures.FlatMap'),
    (b'cjax._src.array\n_reconstruct_array\n.', 'jax.device_get'),
    (b'c\xc3\xa9\n\xc3\xa9\n.', r'\xe9.\xe9'),
    # Other ways to call, and to set attributes.
    (b'(X\x02\0\0\0idios\nsystem\n.', 'INST'),
    (b'(cnumpy\nndarray\no.', 'OBJ'),
    (b'cnumpy\nndarray\n)\x81.', 'type ndarray, not'),
    (b'cnumpy\nndarray\n)}\x92.', 'NEWOBJ_EX'),
    (b'\x82\x01.', 'EXT1'),
    (b'Pid\n.', 'PERSID'),
    (b'NQ.', 'type storage, not'),
    (b'\x97.', 'NEXT_BUFFER'),
    (b'cnumpy\nndarray\n)R.', 'type ndarray, not'),
    (b'}}b.', 'no parameters'),
    (b'cnumpy\nndarray\n}b.', 'type ndarray, not'),
    (b'NNR.', 'damaged'),
    (b'N(\x85.', 'damaged'),  # Takes what is below the mark.
    (b't.', 'damaged'),
    (b'h\1.', 'damaged'),
    (b'NNa.', 'damaged'),
    (b'}(Nu.', 'damaged'),
    (b'(' * 1_000_001, '1000000 pickle instructions'),
  ],
)
def test_instructions_that_weights_do_not_need_are_refused(
  tmp_path, code, named
):
  assert named in weights_lib.refusal_of_bytes(tmp_path, b'\x80\x04' + code)


@pytest.mark.parametrize(
  'name', ['published_dill3_dict', 'numpy2_pickle5_dict']
)
def test_truncated_anywhere_is_refused(tmp_path, name):
  content = WRITTEN[name]
  for length in range(1, len(content), 7):
    message = weights_lib.refusal_of_bytes(tmp_path, content[:length])
    # Half a name is one that is not known.
    assert 'download that stopped' in message or 'asks for' in message


def test_bytes_after_the_end_are_ignored_as_pickle_does(tmp_path):
  content = WRITTEN['published_dill3_dict'] + b'more'
  params = weights_lib.load_bytes(tmp_path, content)
  weights_lib.assert_same(params, make_weight_files.tree())


@pytest.mark.parametrize(
  ('content', 'named'),
  [
    (pickle.dumps({'NFNet': {'w': np.ones(3)}}, 0), 'not a file of weights'),
    (pickle.dumps({'NFNet': {'w': np.ones(3)}}, 1), 'not a file of weights'),
    (b'\x80\x06}.', 'protocol: 6'),
  ],
)
def test_other_protocols_are_refused(tmp_path, content, named):
  assert named in weights_lib.refusal_of_bytes(tmp_path, content)


@pytest.mark.parametrize(
  'code',
  [
    b'}' + DEEP + b'Ns.',  # For a key,
    b'cnumpy\ndtype\n(' + DEEP + b'NNtR.',  # for a type,
    b'cdill._dill\n_import_module\n(' + DEEP + b'tR.',  # for a name,
    b'cdill._dill\n_import_module\n(' + WIDE + b'tR.',
    b'cnumpy.core.multiarray\n_reconstruct\n(' + WIDE + b'K\0C\1btR.',
    b'cnumpy.core.multiarray\n_reconstruct\n(NK\0C\1btR' + WIDE + b'b.',
    b'c_codecs\nencode\n' + WIDE + WIDE + b'\x86R.',
    b'}' + WIDE + b'Ns.',
    b'}X\1\0\0\0m' + WIDE + b's.',
    b'}X\1\0\0\0m}X\1\0\0\0w' + WIDE + b'ss.',
    WIDE + b'.',
    DEEP + b'.',
    b'}X\1\0\0\0m}X\1\0\0\0w' + DEEP + b'ss.',
  ],
)
def test_what_is_nested_too_deeply_is_neither_hashed_nor_shown(tmp_path, code):
  assert len(weights_lib.refusal_of_bytes(tmp_path, b'\x80\4' + code)) < 500


@pytest.mark.parametrize(
  'state',
  [
    b'}X\5\0\0\0itemsNs',  # Attributes in __dict__,
    b'N}X\5\0\0\0itemsNs\x86',  # and those in __slots__.
  ],
)
@pytest.mark.parametrize(
  'code',
  [
    b'}',
    b'ccollections\nOrderedDict\n)R',
    b'ccollections\nOrderedDict\n',
    b'cnumpy\nndarray\n',
    b'cnumpy.core.multiarray\n_reconstruct\n',
    b'cdill._dill\n_import_module\n(X\1\0\0\0otR',
  ],
)
def test_a_state_changes_nothing_of_ours(tmp_path, code, state):
  weights_lib.refusal_of_bytes(tmp_path, b'\x80\4' + code + state + b'b.')
  params = weights_lib.load_bytes(tmp_path, WRITTEN['numpy2_pickle5_dict'])
  weights_lib.assert_same(params, make_weight_files.tree())
