"""Commands that were stopped, and those that go on with what they left."""

import contextlib
import errno
import json
import os
import signal
import time

import filelock
import many_lib
import pytest

from nfnets import classify, embed
from nfnets.inference.many import formats, journal

network, pictures, run = many_lib.network, many_lib.pictures, many_lib.run
BATCH = '--batch_size=4'


class Stopped(BaseException):
  """Stands for the end of the process."""


@contextlib.contextmanager
def stopped_at(number, part):
  """Has a write be the last, of which only a part is done."""
  write = journal.Journal._write

  def write_some(self, path, content):
    nonlocal number
    number -= 1
    write(
      self, path, content if number else content[: int(part * len(content))]
    )
    if not number:
      raise Stopped

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(journal.Journal, '_write', write_some)
    yield


def fails_with_a_full_disk(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize(
  ('main', 'suffix'),
  [
    *((classify.main, suffix) for suffix in ('.csv', '.jsonl', '.parquet')),
    *((embed.main, suffix) for suffix in formats.WRITERS),
  ],
)
def test_the_file_is_that_of_a_command_that_was_not_stopped(
  run, pictures, tmp_path, main, suffix
):
  whole, output = tmp_path / f'whole{suffix}', tmp_path / f'x{suffix}'
  status, whole_out, err = run(main, pictures, BATCH, f'--output={whole}')
  assert status == 1 and '3 of 22 images failed' in err
  args = pictures, BATCH, f'--output={output}'
  for number, part in ((1, 0.5), (3, 0.99), (4, 0.0), (5, 0.3)):
    with stopped_at(number, part):
      run(main, *args)
    assert not output.exists()
    with stopped_at(1, 0.7):
      run(main, *args, '--resume')
    status, out, err = run(main, *args, '--resume')
    assert status == 1 and '3 of 22 images failed' in err
    assert output.read_bytes() == whole.read_bytes()
    for key in ('images', 'failed'):
      assert json.loads(out)[key] == json.loads(whole_out)[key]
    output.unlink()
  found = sorted(path.name for path in tmp_path.iterdir())
  assert found == ['fake.npz', 'pictures', f'whole{suffix}']


def test_only_what_is_missing_is_computed(run, pictures, tmp_path, network):
  args = classify.main, pictures, BATCH, f'--output={tmp_path / "x.csv"}'
  with stopped_at(4, 0.9):
    run(*args)
  read = []

  def watch(image):
    read.append(image)
    return many_lib.Network().preprocess(image)

  network.preprocess = watch
  _, out, err = run(*args, '--resume')
  assert err.startswith('Goes on after 12 images.')
  # In the order of the folders: 00, 03, ... 21, 01, ... 19, 02, ... 20.
  order = [*range(0, 22, 3), *range(1, 22, 3), *range(2, 22, 3)]
  assert len(read) == sum(i not in many_lib.BROKEN for i in order[12:])
  assert json.loads(out)['images'] == 19


@pytest.fixture
def stopped(run, pictures, tmp_path):
  """Returns the arguments of a command that was stopped."""
  output = tmp_path / 'x.csv'
  args = [classify.main, pictures, BATCH, f'--output={output}']
  with stopped_at(3, 0.5):
    run(*args)
  return args


def test_what_was_stopped_is_not_lost_without_resume(run, stopped, tmp_path):
  status, out, err = run(*stopped)
  assert (status, out) == (1, '')
  assert '--resume' in err and 'x.csv.partial' in err
  assert len(err.splitlines()) == 1
  assert (tmp_path / 'x.csv.partial' / 'rows.jsonl').stat().st_size


def test_a_command_that_has_computed_nothing_leaves_nothing_to_go_on_with(
  run, pictures, tmp_path
):
  args = [classify.main, pictures, BATCH, f'--output={tmp_path / "x.csv"}']
  with stopped_at(1, 0):
    run(*args)
  status, _, err = run(*args, '--top=2')
  assert status == 1 and 'Goes on' not in err
  assert (tmp_path / 'x.csv').exists()


def test_other_settings_are_refused(run, stopped, tmp_path, network):
  def check(message, *args):
    status, out, err = run(*stopped, '--resume', *args)
    assert (status, out) == (1, '') and len(err.splitlines()) == 1
    assert message in err

  check('begun with top 5, and now it is 2', '--top=2')
  check('begun with batch_size 4, and now it is 5', '--batch_size=5')
  network.precision = 'bfloat16'
  check('begun with precision "float32", and now it is "bfloat16"')
  del network.precision
  (tmp_path / 'fake.npz').write_bytes(b'other weights')
  check('begun with weights')
  (tmp_path / 'fake.npz').write_bytes(b'weights')
  assert run(*stopped, '--resume')[0] == 1


def test_other_images_are_refused(run, stopped, pictures):
  added = pictures / '0' / '00a.png'
  added.touch()
  status, out, err = run(*stopped, '--resume')
  assert (status, out) == (1, '') and len(err.splitlines()) == 1
  assert f'image 2 was {pictures}/0/03.png and is {added} now' in err
  added.unlink()
  assert run(*stopped, '--resume')[0] == 1


def test_two_commands_do_not_write_the_same_file(run, stopped, tmp_path):
  with filelock.FileLock(tmp_path / 'x.csv.partial' / 'lock'):
    for args in (stopped, [*stopped, '--resume']):
      status, _, err = run(*args)
      assert status == 1 and 'another command is writing' in err


def test_a_finished_output_is_left_alone(run, pictures, tmp_path):
  output = tmp_path / 'x.csv'
  args = classify.main, pictures, BATCH, f'--output={output}', '--resume'
  assert run(*args)[0] == 1
  before = output.stat()
  status, out, err = run(*args)
  assert status == 0 and json.loads(out) == {'output': str(output)}
  assert 'nothing to do' in err and output.stat() == before


def test_a_damaged_row_and_what_follows_is_computed_again(
  run, stopped, tmp_path
):
  rows = tmp_path / 'x.csv.partial' / 'rows.jsonl'
  content = rows.read_bytes()
  rows.write_bytes(content[:200] + bytes(50) + content[250:])
  run(*stopped, '--resume')
  again = tmp_path / 'again.csv'
  run(*stopped[:-1], f'--output={again}')
  assert (tmp_path / 'x.csv').read_bytes() == again.read_bytes()


def test_a_full_disk_is_told_and_nothing_lost(
  run, pictures, tmp_path, monkeypatch
):
  output = tmp_path / 'x.npz'
  output.write_bytes(b'old')
  args = embed.main, pictures, BATCH, f'--output={output}'
  with monkeypatch.context() as patch:
    patch.setitem(formats.WRITERS, '.npz', fails_with_a_full_disk)
    status, out, err = run(*args)
  assert (status, out) == (1, '')
  assert 'x.npz: No space left on device' in err.splitlines()[-1]
  assert '--resume' in err.splitlines()[-1]
  assert output.read_bytes() == b'old'
  with monkeypatch.context() as patch:
    patch.setattr(journal.Journal, '_write', fails_with_a_full_disk)
    status, _, err = run(*args, '--resume')
  assert status == 1 and 'No space left on device' in err.splitlines()[-1]
  assert run(*args, '--resume')[0] == 1
  assert output.read_bytes() != b'old'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_command_with_a_word(
  run, pictures, tmp_path, network, monkeypatch, capsys, number
):
  def end(status):
    raise Stopped(status)

  monkeypatch.setattr(os, '_exit', end)
  once = iter([True])

  def send(_):
    if next(once, False):
      os.kill(os.getpid(), number)
    time.sleep(0.5)  # This thread is not the one that gets it.

  network.preprocess = send
  before = signal.getsignal(number)
  with pytest.raises(Stopped, match=str(128 + number)):
    run(embed.main, pictures, f'--output={tmp_path / "x.npz"}')
  assert signal.getsignal(number) == before
  err = capsys.readouterr().err
  assert err.endswith(
    'error: interrupted; the same command with --resume goes on with '
    f'{tmp_path / "x.npz"}\n'
  )


def test_rows_whose_vectors_are_lost_are_computed_again(
  run, pictures, tmp_path
):
  whole, output = tmp_path / 'whole.npz', tmp_path / 'x.npz'
  run(embed.main, pictures, BATCH, f'--output={whole}')
  args = embed.main, pictures, BATCH, f'--output={output}'
  with stopped_at(9, 0.5):
    run(*args)
  os.truncate(tmp_path / 'x.npz.partial' / 'vectors-12.f32', 5 * 12 * 4 + 3)
  _, _, err = run(*args, '--resume')
  assert err.startswith('Goes on after 4 images.')
  assert output.read_bytes() == whole.read_bytes()
