"""What the commands do with errors, whichever command it is."""

import errno
import os
import subprocess
import sys

import golden_lib
import pytest

from nfnets.errors import UserError
from nfnets.inference import command_line


def fails_with(error):
  """Returns a command that fails."""

  def command(args):
    raise error

  return command


@pytest.mark.parametrize(
  ('error', 'status', 'err'),
  [
    (UserError('a\\b is wrong'), 1, 'error: a\\b is wrong\n'),
    (UserError('x', 2), 2, 'error: x\n'),
    (
      ModuleNotFoundError("No module named 'x'", name='x'),
      1,
      'error: this needs a package that is not installed: x; pip install '
      '".[train]" in the folder of this project.\n',
    ),
    (KeyboardInterrupt(), 130, 'error: interrupted\n'),
    (OSError(errno.ENOSPC, 'No space', 'a'), 1, 'error: a: No space\n'),
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
  with pytest.raises(UserError, match=message) as error:
    command_line.check_output(str(tmp_path / output), '.onnx')
  assert str(error.value).startswith(f'--output={tmp_path / output}')
  assert error.value.status == status


def test_folders_of_others_are_told(tmp_path, monkeypatch):
  command_line.check_output(str(tmp_path / 'a.npz'))
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  with pytest.raises(UserError, match='nothing can be written'):
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


_LOG = """
import logging
from absl import logging as absl_logging
from nfnets.inference import command_line
def command(args):
  logging.getLogger('nfnets.inference.networks').info('runs')
  logging.warning('of the root')
  absl_logging.warning('of the data')
  return 0
command_line.run(command, None)
"""


def test_log_lines_have_no_prefix_and_come_once():
  result = subprocess.run(
    [sys.executable, '-c', _LOG], capture_output=True, text=True, check=True
  )
  assert result.stderr.splitlines() == ['runs', 'of the root', 'of the data']


@pytest.mark.parametrize(
  ('option', 'hint'),
  [
    ('--weight=x', 'There is no option --weight. Did you mean --weights?'),
    ('--imagesize=3', 'Did you mean --image_size?'),
    ('--zzz', 'There is no option --zzz.\n'),
  ],
)
def test_a_misspelt_option_is_answered_with_the_nearest(capsys, option, hint):
  parser = command_line.make_parser('classify', 'What.\n\nEnd.')
  with pytest.raises(SystemExit, match='2'):
    parser.parse_args([option])
  assert hint in capsys.readouterr().err
