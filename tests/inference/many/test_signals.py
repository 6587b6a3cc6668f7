"""Signals end commands, with a word about what is left to do."""

import signal

import many_lib
import process_lib
import pytest

from nfnets import embed

network, pictures, run = many_lib.network, many_lib.pictures, many_lib.run
NUMBERS = signal.SIGINT, signal.SIGTERM

# Preprocessing is in a thread, which is not the one that gets the signal.
COMMAND = """
import os, sys, time
import many_lib
from nfnets import classify, embed
from nfnets.inference import command_line

once = iter([True])

class Network(many_lib.Network):
  def preprocess(self, image):
    if next(once, False):
      os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)

command_line.open_network = lambda *_, **__: Network()
command = {'classify': classify, 'embed': embed}[sys.argv[2]]
sys.exit(command.main(sys.argv[3:]))
"""


@pytest.mark.parametrize('number', NUMBERS)
def test_a_command_with_an_output_says_how_to_go_on(
  pictures, tmp_path, network, number
):
  output = tmp_path / 'x.npz'
  args = pictures, f'--weights={tmp_path / "fake.npz"}', f'--output={output}'
  ended = process_lib.run_python(COMMAND, int(number), 'embed', *args)
  assert ended.returncode == 128 + number
  assert ended.stderr.endswith(
    f'error: interrupted; the same command with --resume goes on with {output}'
    '\n'
  )


def test_a_command_that_prints_ends_with_a_line(pictures, tmp_path, network):
  args = pictures, f'--weights={tmp_path / "fake.npz"}'
  number = int(signal.SIGINT)
  ended = process_lib.run_python(COMMAND, number, 'classify', *args)
  assert (ended.returncode, ended.stdout) == (130, '')
  assert ended.stderr == 'error: interrupted\n'


def test_handlers_are_those_before_at_the_end(run, pictures, tmp_path):
  before = [signal.getsignal(number) for number in NUMBERS]
  run(embed.main, pictures, f'--output={tmp_path / "x.npz"}')
  assert [signal.getsignal(number) for number in NUMBERS] == before
