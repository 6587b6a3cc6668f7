"""Tests that real clients find in the emulated store what a real one offers."""

import emulated_objects
import pytest
import tensorflow as tf
import tensorstore as ts

_CONTENT = bytes(range(256)) * 100 + b'\r\n--\r\n'


def _open(folder: str, **context: dict) -> ts.KvStore:
  context = ts.Context(context)
  return ts.KvStore.open(folder + '/', context=context).result()


def test_tensorflow_writes_reads_renames_lists_and_deletes(remote_folder):
  gfile = tf.io.gfile
  gfile.makedirs(f'{remote_folder}/a/b')
  with gfile.GFile(f'{remote_folder}/a/b/one', 'wb') as file:
    file.write(_CONTENT)
  with gfile.GFile(f'{remote_folder}/a/b/one', 'rb') as file:
    file.seek(1000)
    assert file.read(300) == _CONTENT[1000:1300]
    file.seek(len(_CONTENT) - 2)
    assert file.read(300) == _CONTENT[-2:]
  gfile.rename(f'{remote_folder}/a', f'{remote_folder}/c')
  gfile.rename(f'{remote_folder}/c', f'{remote_folder}/a')
  gfile.rename(f'{remote_folder}/a/b/one', f'{remote_folder}/a/two')
  assert sorted(gfile.listdir(f'{remote_folder}/a')) == ['b/', 'two']
  assert not gfile.exists(f'{remote_folder}/a/b/one')
  assert gfile.isdir(f'{remote_folder}/a')
  assert gfile.stat(f'{remote_folder}/a/two').length == len(_CONTENT)
  gfile.rmtree(remote_folder)
  assert not gfile.exists(f'{remote_folder}/a/two')


def test_tensorstore_writes_reads_lists_and_deletes(remote_folder):
  kvstore = _open(remote_folder)
  kvstore.write('a/b', _CONTENT).result()
  kvstore.write('a/c', b'').result()
  found = kvstore.read('a/b', byte_range=slice(1000, 1300)).result()
  assert found.value == _CONTENT[1000:1300]
  assert kvstore.read('a/c').result().value == b''
  assert kvstore.read('a/d').result().state == 'missing'
  assert sorted(kvstore.list().result()) == [b'a/b', b'a/c']
  # A write is made only if the object is still of the generation that was read.
  stale = found.stamp.generation
  kvstore.write('a/b', b'new', if_equal=stale).result()
  kvstore.write('a/b', b'newer', if_equal=stale).result()
  assert kvstore.read('a/b').result().value == b'new'
  kvstore.delete_range(ts.KvStore.KeyRange('a/c', 'b')).result()
  assert kvstore.list().result() == [b'a/b']


def test_a_list_of_more_than_a_page_is_whole(remote_folder):
  kvstore = _open(remote_folder)
  names = [f'{folder}/{i}' for folder in 'ab' for i in range(600)]
  for write in [kvstore.write(name, b'') for name in names]:
    write.result()
  listed = [name.decode() for name in kvstore.list().result()]
  assert sorted(listed) == sorted(names)
  assert sorted(tf.io.gfile.listdir(remote_folder)) == ['a/', 'b/']


def test_what_is_forbidden_is_said_at_once(store, remote_folder):
  store.disturb('forbidden', 60)
  with pytest.raises(ValueError, match='PERMISSION_DENIED'):
    _open(remote_folder).read('x').result(timeout=10)
  with pytest.raises(tf.errors.PermissionDeniedError):
    tf.io.gfile.stat(f'{remote_folder}/x')
  store.disturb('forbidden', 0)
  with pytest.raises(tf.errors.PermissionDeniedError):
    tf.io.gfile.stat(f'gs://{emulated_objects.FORBIDDEN}/x')
  with pytest.raises(tf.errors.NotFoundError):
    tf.io.gfile.stat('gs://no-such-bucket/x')
