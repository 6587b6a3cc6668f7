"""Tests of nfnets.paths: which names there are, and writing in one piece."""

from concurrent import futures
import os
import pathlib

import numpy as np
import process_lib
import pytest

from nfnets import paths
from nfnets.errors import UserError


@pytest.mark.parametrize('name', ['runs/f0', 'a:b/c', 'C:/f0', './gs', '.'])
def test_any_other_name_is_local(name):
  assert paths.path(name) == pathlib.Path(name)
  assert not paths.is_remote(name)


def test_tilde_is_the_users_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  assert paths.path('~/runs') == pathlib.Path('/home/somebody/runs')


@pytest.mark.slow
def test_without_a_home_folder_there_is_a_temporary_one(tmp_path):
  # HOME is not set, and /etc/passwd does not have the user.
  code = """
import os, pwd
del os.environ['HOME']
def getpwuid(uid):
  raise KeyError(uid)
pwd.getpwuid = getpwuid
from nfnets import paths
import nfnets.data.dataset
print(paths.cache_folder())
print(paths.path('name'))
paths.path('~/name')
"""
  ended = process_lib.run_python(code, XDG_CACHE_HOME='', TMPDIR=str(tmp_path))
  cache, other = ended.stdout.splitlines()
  assert cache.startswith(str(tmp_path)) and other == 'name'
  assert 'HOME is not set' in ended.stderr.splitlines()[0]
  assert '~/name: HOME is not set' in ended.stderr.splitlines()[-1]
  assert not list(tmp_path.iterdir())  # It is gone in the end.


def test_tilde_is_expanded_in_arguments_and_their_values(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  for given, wanted in (
    ('~/a b/*.png', '/home/me/a b/*.png'),
    ('--output=~/x.npz', '--output=/home/me/x.npz'),
    ('~', '/home/me'),
    ('a~/b', 'a~/b'),
    ('--lr=1', '--lr=1'),
    ('a=~/b', 'a=~/b'),
    ('-', '-'),
  ):
    assert paths.arguments([given]) == [wanted]


def test_a_variable_is_expanded_where_a_name_begins(monkeypatch):
  monkeypatch.setenv('SCRATCH', '/disk')
  monkeypatch.delenv('UNSET', raising=False)
  for given, wanted in (
    ('$SCRATCH/runs', '/disk/runs'),
    ('${SCRATCH}', '/disk'),
    ('$SCRATCH.png', '$SCRATCH.png'),
    ('a/$SCRATCH', 'a/$SCRATCH'),
    ('$UNSET/a', '$UNSET/a'),
  ):
    assert str(paths.path(given)) == wanted
    assert paths.arguments([f'--data={given}']) == [f'--data={wanted}']
  monkeypatch.setenv('SCRATCH', 'gs://bucket')
  assert str(paths.path('$SCRATCH/a')) == 'gs://bucket/a'
  assert paths.is_remote('$SCRATCH/a')


def test_cache_is_where_the_system_has_caches(monkeypatch):
  monkeypatch.setenv('NFNETS_CACHE', '~/w')
  monkeypatch.setenv('XDG_CACHE_HOME', '/xdg')
  monkeypatch.setenv('HOME', '/home/me')
  assert str(paths.cache_folder()) == '/xdg/nfnets'
  assert str(paths.cache_folder('weights')) == '/home/me/w'
  monkeypatch.delenv('NFNETS_CACHE')
  assert str(paths.cache_folder('weights')) == '/xdg/nfnets/weights'
  monkeypatch.setenv('XDG_CACHE_HOME', '')
  assert str(paths.cache_folder('weights')) == '/home/me/.cache/nfnets/weights'


def test_gs_is_a_bucket():
  name = paths.path('gs://bucket/runs/f0')
  assert str(name / 'run.json') == 'gs://bucket/runs/f0/run.json'
  assert paths.is_remote(name)
  assert paths.path(name) == paths.absolute(name) == name
  assert str(paths.path('gs://bucket')) == 'gs://bucket'


@pytest.mark.parametrize(
  'name',
  ['s3://b/x', 'hdfs://b/x', 'file:///x', 'az://b', 'http://b/x', 's3:/b'],
)
def test_other_schemes_are_named_and_refused(name):
  with pytest.raises(UserError, match='mounted') as raised:
    paths.path(name)
  assert str(raised.value).startswith(f'{name}: {name.partition(":")[0]}://')


@pytest.mark.parametrize(
  'name',
  [
    *('gs://', 'gs:///x', 'gs://b/x', 'gs://Bucket/x', 'gs:/bucket/x'),
    pathlib.Path('gs://bucket/x'),
  ],
)
def test_gs_needs_a_bucket(name):
  with pytest.raises(UserError, match='gs://BUCKET/NAME'):
    paths.path(name)


def test_packages_that_are_missing_are_named(monkeypatch):
  find_spec = paths.importlib.util.find_spec
  monkeypatch.setattr(
    paths.importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorflow' else find_spec(name),
  )
  paths.path('runs/f0')
  with pytest.raises(UserError, match=r'tensorflow; pip install ".\[tr'):
    paths.path('gs://bucket/x')


def test_writing_replaces_a_file_in_one_piece(tmp_path):
  path = tmp_path / 'x.txt'
  path.write_text('before')
  with paths.writing(path) as temporary:
    temporary.write_text('after')
    assert path.read_text() == 'before'
  assert path.read_text() == 'after'
  with pytest.raises(ZeroDivisionError), paths.writing(path) as temporary:
    temporary.write_text('half')
    _ = 1 / 0
  assert path.read_text() == 'after'
  assert os.listdir(tmp_path) == ['x.txt']


def test_arrays_that_many_write_at_once_are_whole(tmp_path):
  path = tmp_path / 'a' / 'b' / 'x.npz'
  with futures.ThreadPoolExecutor(8) as pool:
    for done in [
      pool.submit(paths.save_arrays, path, x=np.full(10_000, i))
      for i in range(32)
    ]:
      done.result()
  with np.load(path) as arrays:
    assert len(set(arrays['x'].tolist())) == 1
  assert os.listdir(path.parent) == ['x.npz']


def test_files_and_folders_are_removed(tmp_path):
  (tmp_path / 'a' / 'b').mkdir(parents=True)
  (tmp_path / 'a' / 'b' / 'x').touch()
  (tmp_path / 'y').touch()
  for name in ('a', 'y', 'missing'):
    paths.remove(tmp_path / name)
  assert not os.listdir(tmp_path)
