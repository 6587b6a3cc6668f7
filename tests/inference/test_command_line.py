"""What the commands do with errors, whichever command it is."""

import errno
import os
import subprocess
import sys

import golden_lib
import pytest

from nfnets.inference import command_line


def fails_with(error):
  """Returns a command that fails."""

  def command(args):
    raise error

  return command


@pytest.mark.parametrize(
  ('error', 'status', 'err'),
  [
    (command_line.CommandError('a\\b is wrong'), 1, 'error: a\\b is wrong\n'),
    (command_line.CommandError(ValueError('x'), 2), 2, 'error: x\n'),
    (KeyboardInterrupt(), 130, 'error: interrupted\n'),
    (OSError(errno.ENOSPC, 'No space'), 1, 'error: [Errno 28] No space\n'),
    (BrokenPipeError(), 1, ''),
  ],
)
def test_errors_are_told_in_one_line(capfd, error, status, err):
  assert command_line.run(fails_with(error), None) == status
  assert capfd.readouterr() == ('', err)


@pytest.mark.parametrize(
  ('output', 'status', 'message'),
  [
    ('a.npz', 2, 'a.npz does not end in .onnx.'),
    ('none/a.onnx', 1, 'there is no folder'),
    ('folder.onnx', 1, 'is a folder.'),
  ],
)
def test_outputs_that_cannot_be_written_are_told(
  tmp_path, output, status, message
):
  (tmp_path / 'folder.onnx').mkdir()
  with pytest.raises(command_line.CommandError, match=message) as error:
    command_line.check_output(str(tmp_path / output), '.onnx')
  assert str(error.value).startswith(f'--output={tmp_path / output}')
  assert error.value.status == status


def test_folders_of_others_are_told(tmp_path, monkeypatch):
  command_line.check_output(str(tmp_path / 'a.npz'))
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  with pytest.raises(command_line.CommandError, match='nothing can be written'):
    command_line.check_output(str(tmp_path / 'a.npz'))


def test_results_that_nobody_reads_end_the_command():
  command = """
import sys
from nfnets.inference import command_line

def command(args):
  print('result', flush=True)
  return 0

sys.exit(command_line.run(command, None))
"""
  reading, writing = os.pipe()
  os.close(reading)
  process = subprocess.run(
    [sys.executable, '-c', command],
    cwd=golden_lib.GOLDEN.parents[1],
    env={**os.environ, 'PYTHONUNBUFFERED': ''},  # Or nothing would be left.
    stdout=writing,
    stderr=subprocess.PIPE,
    timeout=300,
    check=False,
  )
  os.close(writing)
  # Python tries once more at its end, and would fail with status 120.
  assert (process.returncode, process.stderr) == (1, b'')
