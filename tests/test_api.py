"""The index of the Python interface is new, and its examples run."""

import pathlib
import subprocess
import sys

import pytest

_PROGRAM = pathlib.Path(__file__).parents[1] / 'tools' / 'write_api.py'


@pytest.mark.slow
def test_the_page_is_new_and_its_examples_run():
  command = [sys.executable, _PROGRAM, '--check']
  ended = subprocess.run(command, capture_output=True, text=True, check=False)
  assert ended.returncode == 0, ended.stdout + ended.stderr
