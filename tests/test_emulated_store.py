"""Tests that real clients find in the emulated store what a real one offers."""

from concurrent import futures
import os
import signal
import subprocess
import sys
import time

import emulated_objects
import emulated_store
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
  kvstore.delete_range(ts.KvStore.KeyRange('a/c', 'b')).result()
  assert kvstore.list().result() == [b'a/b']


def test_uploads_at_once_do_not_mix(remote_folder):
  files = [tf.io.gfile.GFile(f'{remote_folder}/{i}', 'wb') for i in range(8)]
  for i, file in enumerate(files):
    file.write(_CONTENT + b'%d' % i)
  with futures.ThreadPoolExecutor() as pool:
    list(pool.map(lambda file: file.close(), files))
  kvstore = _open(remote_folder)
  for i in range(8):
    assert kvstore.read(f'{i}').result().value == _CONTENT + b'%d' % i


def test_the_clients_see_each_others_objects(remote_folder):
  _open(remote_folder).write('x', _CONTENT).result()
  with tf.io.gfile.GFile(f'{remote_folder}/x', 'rb') as file:
    assert file.read() == _CONTENT
  with tf.io.gfile.GFile(f'{remote_folder}/y', 'wb') as file:
    file.write(_CONTENT)
  assert _open(remote_folder).read('y').result().value == _CONTENT


def test_a_list_of_more_than_a_page_is_whole(remote_folder):
  kvstore = _open(remote_folder)
  names = [f'{folder}/{i}' for folder in 'ab' for i in range(600)]
  for write in [kvstore.write(name, b'') for name in names]:
    write.result()
  listed = [name.decode() for name in kvstore.list().result()]
  assert sorted(listed) == sorted(names)
  assert sorted(tf.io.gfile.listdir(remote_folder)) == ['a/', 'b/']


def test_a_write_that_another_has_overtaken_changes_nothing(remote_folder):
  kvstore = _open(remote_folder)
  first = kvstore.write('x', b'first').result()
  kvstore.write('x', b'second').result()
  late = kvstore.write('x', b'late', if_equal=first.generation).result()
  assert late.generation != first.generation
  assert kvstore.read('x').result().value == b'second'


@pytest.mark.parametrize('kind', ['lost', '429', '503'])
def test_tensorstore_outlasts_a_disturbance(store, remote_folder, kind):
  kvstore = _open(remote_folder, gcs_request_retries={'initial_delay': '50ms'})
  kvstore.write('x', _CONTENT).result()
  start = time.monotonic()
  store.disturb(kind, 0.2)
  assert kvstore.read('x').result().value == _CONTENT
  assert time.monotonic() - start >= 0.2


def test_tensorflow_outlasts_a_disturbance(store, remote_folder):
  _open(remote_folder).write('x', _CONTENT).result()
  start = time.monotonic()
  store.disturb('lost', 0.2)
  with tf.io.gfile.GFile(f'{remote_folder}/x', 'rb') as file:
    assert file.read() == _CONTENT
  assert time.monotonic() - start >= 0.2


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


def test_requests_are_counted_and_wait(store, remote_folder):
  kvstore = _open(remote_folder)
  store.set_latency(0.1)
  before, start = store.requests(), time.monotonic()
  for read in [kvstore.read(f'{i}') for i in range(8)]:
    read.result()
  assert 0.1 <= time.monotonic() - start < 0.8  # They wait together.
  assert (store.requests() - before)['read'] == 8


def test_the_command_prints_the_environment_and_ends_with_ctrl_c():
  command = [sys.executable, emulated_store.__file__]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    lines = []
    while not (lines and lines[-1].startswith('#')):
      lines.append(process.stdout.readline())
    names = {line.split()[1].split('=')[0] for line in lines[:-1]}
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) == 0
    assert process.stderr.read() == ''
  assert {'TENSORSTORE_GCS_HTTP_URL', 'https_proxy'} <= names
