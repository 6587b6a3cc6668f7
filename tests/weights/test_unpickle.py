"""The machine that reads pickles: what it does not know is refused."""

import io
import pickle
import zipfile

import make_weight_files
import numpy as np
import pytest
import weights_lib

with zipfile.ZipFile(make_weight_files.ARCHIVE) as archive:
  WRITTEN = {
    name: archive.read(name)
    for name in ('published_dill3_dict', 'numpy2_pickle5_dict')
  }


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
    (b'cnumpy\nndarray\n)\x81.', 'NEWOBJ'),
    (b'cnumpy\nndarray\n)}\x92.', 'NEWOBJ_EX'),
    (b'\x82\x01.', 'EXT1'),
    (b'Pid\n.', 'PERSID'),
    (b'NQ.', 'BINPERSID'),
    (b'\x97.', 'NEXT_BUFFER'),
    (b'cnumpy\nndarray\n)R.', 'numpy.ndarray'),
    (b'}}b.', 'damaged'),
    (b'cnumpy\nndarray\n}b.', 'damaged'),
    (b'NNR.', 'damaged'),
    (b'N(\x85.', 'damaged'),  # Takes what is below the mark.
    (b't.', 'damaged'),
    (b'h\1.', 'damaged'),
    (b'NNa.', 'damaged'),
    (b'}(Nu.', 'damaged'),
  ],
)
def test_instructions_that_weights_do_not_need_are_refused(
  tmp_path, code, named
):
  assert named in weights_lib.refusal_of_bytes(tmp_path, b'\x80\x04' + code)


@pytest.mark.parametrize('name', WRITTEN)
def test_truncated_anywhere_is_refused(tmp_path, name):
  content = WRITTEN[name]
  for length in range(1, len(content), 7):
    message = weights_lib.refusal_of_bytes(tmp_path, content[:length])
    assert 'ends too early' in message and str(length) in message


def test_endless_pickles_are_refused(tmp_path):
  message = weights_lib.refusal_of_bytes(
    tmp_path, b'\x80\x04' + b'(' * 2_000_000
  )
  assert '1000000 pickle instructions' in message


def test_bytes_after_the_end_are_ignored_as_pickle_does(tmp_path):
  content = WRITTEN['published_dill3_dict'] + b'more'
  assert pickle.load(io.BytesIO(pickle.dumps(1) + b'more')) == 1
  weights_lib.assert_same(
    weights_lib.load_bytes(tmp_path, content), make_weight_files.tree()
  )


def test_protocols_0_and_1_are_refused(tmp_path):
  tree = {'NFNet': {'w': np.ones(3)}}
  for protocol in (0, 1):
    assert 'not a file of weights' in weights_lib.refusal_of_bytes(
      tmp_path, pickle.dumps(tree, protocol)
    )
  assert 'protocol 6' in weights_lib.refusal_of_bytes(tmp_path, b'\x80\x06}.')
