"""Commands that were stopped, and those that continue with what they left."""

import contextlib
import errno
import json

import filelock
import many_lib
import numpy as np
from pyarrow import parquet
import pytest

from nfnets import classify, embed
from nfnets.inference.many import formats

network, pictures, run = many_lib.network, many_lib.pictures, many_lib.run
BATCH = '--batch_size=4'


class Stopped(BaseException):
  """Stands for the end of the process."""


@contextlib.contextmanager
def stopped_at(number, part):
  """Has a write be the last, of which only a part is done."""
  write = formats.Journal.append

  def write_some(self, content):
    nonlocal number
    number -= 1
    write(self, content if number else content[: int(part * len(content))])
    if not number:
      raise Stopped

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(formats.Journal, 'append', write_some)
    yield


def read_rows(path):
  """Returns the content of a file of results, in its order."""
  if path.suffix == '.npz':
    with np.load(path) as file:
      return {name: array.tolist() for name, array in file.items()}
  if path.suffix == '.parquet':
    return parquet.read_table(path).to_pylist()
  return path.read_text().splitlines()


def fails_with_a_full_disk(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize(
  ('main', 'suffix'),
  [
    *((classify.main, suffix) for suffix in ('.csv', '.jsonl', '.parquet')),
    *((embed.main, suffix) for suffix in ('.npz', '.jsonl', '.parquet')),
  ],
)
def test_the_rows_are_those_of_a_command_that_was_not_stopped(
  run, pictures, tmp_path, main, suffix
):
  whole, output = tmp_path / f'whole{suffix}', tmp_path / f'x{suffix}'
  status, whole_out, err = run(main, pictures, BATCH, f'--output={whole}')
  assert status == 1 and '3 of 22 images failed' in err
  args = pictures, BATCH, f'--output={output}'
  for number, part in ((1, 0.5), (3, 0.99), (4, 0.0)):
    with stopped_at(number, part):
      run(main, *args)
    assert not output.exists()
    with stopped_at(1, 0.7):
      run(main, *args, '--resume')
    status, out, err = run(main, *args, '--resume', '--batch_size=3')
    assert status == 1 and '3 of 22 images failed' in err
    assert read_rows(output) == read_rows(whole)
    for key in ('images', 'failed'):
      assert json.loads(out)[key] == json.loads(whole_out)[key]
    output.unlink()
  found = sorted(path.name for path in tmp_path.iterdir())
  assert found == ['fake.npz', 'pictures', f'whole{suffix}']


@pytest.fixture
def stopped(run, pictures, tmp_path):
  """Returns the arguments of a command that was stopped."""
  args = [classify.main, pictures, BATCH, f'--output={tmp_path / "x.csv"}']
  with stopped_at(4, 0.9):
    run(*args)
  return args


def test_only_missing_images_are_computed(run, stopped, network):
  read = []

  def watch(image):
    read.append(image)
    return many_lib.Network().preprocess(image)

  network.preprocess = watch
  _, out, err = run(*stopped, '--resume')
  assert err.startswith('Goes on after 15 images.')
  # In the order of the folders: 00, 03, ... 21, 01, ... 19, 02, ... 20.
  order = [*range(0, 22, 3), *range(1, 22, 3), *range(2, 22, 3)]
  assert len(read) == sum(i not in many_lib.BROKEN for i in order[15:])
  assert json.loads(out)['images'] == 19


def test_results_are_not_lost_without_resume(run, stopped, tmp_path):
  status, out, err = run(*stopped)
  assert (status, out) == (1, '')
  assert '--resume' in err and 'x.csv.partial' in err
  assert len(err.splitlines()) == 1
  assert (tmp_path / 'x.csv.partial' / 'rows.jsonl').stat().st_size


def test_a_command_that_has_computed_nothing_leaves_nothing(
  run, pictures, tmp_path
):
  args = [classify.main, pictures, BATCH, f'--output={tmp_path / "x.csv"}']
  with stopped_at(1, 0):
    run(*args)
  status, _, err = run(*args, '--top=2')
  assert status == 1 and 'Goes on' not in err
  assert (tmp_path / 'x.csv').exists()


@pytest.mark.parametrize(
  ('message', 'change'),
  [
    ('begun with top 5, and now it is 2', '--top=2'),
    ('precision "float32", and now it is "bfloat16"', 'precision'),
    ('begun with tta null, and now it is "flip"', 'tta'),
    ('begun with weights', 'weights'),
    ('image 2 was {0}/0/03.png and is {0}/0/00a.png now', 'picture'),
    ('image 2 was {0}/0/03.png and is {0}/0/06.png now', 'no picture'),
    ('another command is writing', 'lock'),
    ('is damaged; delete', 'journal'),
  ],
)
def test_other_circumstances_are_refused(
  run, stopped, pictures, tmp_path, network, message, change
):
  folder = tmp_path / 'x.csv.partial'
  args = [*stopped, '--resume']
  lock = filelock.FileLock(folder / 'lock')
  if change == 'precision':
    network.precision = 'bfloat16'
  elif change == 'tta':
    network.tta = 'flip'
  elif change == 'weights':
    (tmp_path / 'fake.npz').write_bytes(b'other weights')
  elif change == 'picture':
    (pictures / '0' / '00a.png').touch()
  elif change == 'no picture':
    (pictures / '0' / '03.png').unlink()
  elif change == 'lock':
    lock.acquire()
  elif change == 'journal':
    content = (folder / 'rows.jsonl').read_bytes()
    (folder / 'rows.jsonl').write_bytes(b'}' + content)
  else:
    args.append(change)
  before = (folder / 'rows.jsonl').read_bytes()
  status, out, err = run(*args)
  assert (status, out) == (1, '') and len(err.splitlines()) == 1
  assert message.format(pictures) in err
  assert (folder / 'rows.jsonl').read_bytes() == before


def test_a_finished_output_is_left_alone(run, pictures, tmp_path):
  output = tmp_path / 'x.csv'
  args = classify.main, pictures, BATCH, f'--output={output}', '--resume'
  assert run(*args)[0] == 1
  before = output.stat()
  status, out, err = run(*args)
  assert status == 0 and json.loads(out) == {'output': str(output)}
  assert 'nothing to do' in err and output.stat() == before


def test_a_damaged_row_and_those_after_it_are_computed_again(
  run, stopped, tmp_path
):
  rows = tmp_path / 'x.csv.partial' / 'rows.jsonl'
  lines = rows.read_bytes().splitlines(keepends=True)
  rows.write_bytes(b''.join([*lines[:3], bytes(50), *lines[4:]]))
  _, _, err = run(*stopped, '--resume')
  assert err.startswith('Goes on after 2 images.')
  again = tmp_path / 'again.csv'
  run(*stopped[:-1], f'--output={again}')
  assert read_rows(tmp_path / 'x.csv') == read_rows(again)


@pytest.mark.parametrize(
  ('where', 'name', 'again'),
  [(formats.Journal, 'append', []), (formats, 'write', ['--resume'])],
)
def test_a_full_disk_is_reported_and_nothing_lost(
  run, pictures, tmp_path, monkeypatch, where, name, again
):
  output = tmp_path / 'x.npz'
  output.write_bytes(b'old')
  args = embed.main, pictures, BATCH, f'--output={output}'
  with monkeypatch.context() as patch:
    patch.setattr(where, name, fails_with_a_full_disk)
    status, out, err = run(*args)
  assert (status, out) == (1, '')
  assert 'x.npz: No space left on device' in err.splitlines()[-1]
  assert '--resume' in err.splitlines()[-1]
  assert output.read_bytes() == b'old'
  assert run(*args, *again)[0] == 1
  assert len(read_rows(output)['paths']) == 19
