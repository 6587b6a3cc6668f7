"""Tests of weights, pictures and outputs in a bucket."""

import io

import numpy as np
from PIL import Image
import pytest

from nfnets import messages, paths, weights
from nfnets.errors import ImageError, UserError
from nfnets.inference import command_line, images
from nfnets.inference.many import sources
from nfnets.weights import fetching

_PARAMS = {'net/~/linear': {'w': np.arange(6, dtype=np.float32).reshape(2, 3)}}


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_weights_are_read_as_they_were_written(remote_folder, suffix):
  name = f'{remote_folder}/w{suffix}'
  weights.save_weights(name, _PARAMS, metadata={'step': 3})
  read = weights.read_weights(name).params
  np.testing.assert_array_equal(
    read['net/~/linear']['w'], [[0, 1, 2], [3, 4, 5]]
  )
  assert weights.read_metadata(name) == {'step': 3}
  assert paths.names(remote_folder) == [f'w{suffix}']


def test_weights_of_a_run_are_fetched_again_when_they_have_changed(
  remote_folder, store
):
  name = f'{remote_folder}/weights.safetensors'
  weights.save_weights(name, _PARAMS, metadata={'step': 3})
  first = fetching.find(remote_folder)
  written = first.stat().st_mtime_ns
  assert fetching.find(remote_folder) == first
  assert first.stat().st_mtime_ns == written
  weights.save_weights(name, _PARAMS, metadata={'step': 4})
  assert weights.read_metadata(remote_folder) == {'step': 4}


def test_missing_weights_and_other_schemes_are_named(remote_folder):
  with pytest.raises(FileNotFoundError, match=f'{remote_folder}/x: there is'):
    fetching.find(f'{remote_folder}/x')
  with pytest.raises(UserError, match='s3:// is not known'):
    fetching.find('s3://bucket/x')
  with pytest.raises(UserError, match='s3:// is not known'):
    weights.save_weights('s3://bucket/x.npz', _PARAMS)


def test_pictures_of_a_folder_are_found_and_read(remote_folder):
  picture = io.BytesIO()
  Image.new('RGB', (3, 2), 'red').save(picture, 'png')
  for name in ('b.png', 'a/c.PNG', '.hidden/d.png', 'a/.e.png', 'text.txt'):
    paths.write_bytes(f'{remote_folder}/{name}', picture.getvalue())
  found = [*sources.find(f'{remote_folder}/')]
  assert found == [f'{remote_folder}/a/c.PNG', f'{remote_folder}/b.png']
  assert images.read_image(found[0]).tolist() == [[[255, 0, 0]] * 3] * 2
  assert [*sources.find(f'{remote_folder}/b.png')] == found[1:]
  with pytest.raises(ImageError, match='there is no such file'):
    images.read_image(f'{remote_folder}/missing.png')


def test_an_output_that_cannot_be_written_is_told_beforehand(remote_folder):
  command_line.check_output(f'{remote_folder}/x.npz', '.npz')
  assert not paths.names(remote_folder)
  for bucket, reason in (('forbidden', 'forbidden'), ('no', 'no bucket')):
    with pytest.raises(UserError, match=reason):
      command_line.check_output(f'gs://{bucket}-bucket/x.npz')
  with pytest.raises(UserError, match='s3:// is not known'):
    command_line.check_output('s3://bucket/x.npz')


def test_files_and_folders_are_removed(remote_folder):
  for name in ('a', 'a/x', 'a/b/y', 'ab', 'c'):
    paths.write_bytes(f'{remote_folder}/{name}', b'1')
  for name in ('a', 'c', 'missing'):
    paths.remove(f'{remote_folder}/{name}')
  assert paths.names(remote_folder) == ['ab']
  with pytest.raises(PermissionError):
    paths.remove('gs://forbidden-bucket/a')


@pytest.mark.parametrize('kind', ['lost', '429', '503'])
def test_a_store_that_fails_for_a_while_is_asked_again(
  store, remote_folder, kind
):
  store.disturb(kind, 0.5)
  paths.write_bytes(f'{remote_folder}/x', b'1')
  assert paths.read_bytes(f'{remote_folder}/x') == b'1'


@pytest.mark.parametrize(
  'kind, ask',
  [
    ('lost', paths.names),
    *(('forbidden', x) for x in (paths.names, paths.is_file, paths.read_bytes)),
  ],
)
def test_a_store_that_fails_is_no_empty_folder(store, remote_folder, kind, ask):
  store.disturb(kind, 60)
  with pytest.raises(OSError) as raised:
    ask(f'{remote_folder}/x')
  assert not isinstance(raised.value, FileNotFoundError)


def test_what_is_waited_for_is_logged(
  store, remote_folder, monkeypatch, caplog
):
  monkeypatch.setattr(messages, '_LOG_SECONDS', 0.1)
  store.disturb('503', 1)
  paths.write_bytes(f'{remote_folder}/x', b'')
  assert f'Still writing {remote_folder}/x, for 0 s.' in caplog.messages
