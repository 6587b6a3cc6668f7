"""Tests of nfnets.paths: which names there are, and writing in one piece."""

import os
import pathlib

import pytest

from nfnets import paths


@pytest.mark.parametrize('name', ['runs/f0', 'a:b/c', 'C:/f0', './gs', '.'])
def test_any_other_name_is_local(name):
  assert paths.path(name) == pathlib.Path(name)
  assert not paths.is_remote(name)


def test_tilde_is_the_users_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  assert paths.path('~/runs') == pathlib.Path('/home/somebody/runs')


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
  with pytest.raises(paths.PathError, match='mounted') as raised:
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
  with pytest.raises(paths.PathError, match='gs://BUCKET/NAME'):
    paths.path(name)


def test_packages_that_are_missing_are_named(monkeypatch):
  find_spec = paths.importlib.util.find_spec
  monkeypatch.setattr(
    paths.importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorflow' else find_spec(name),
  )
  paths.path('runs/f0')
  with pytest.raises(paths.PathError, match=r'tensorflow; pip install ".\[tr'):
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
