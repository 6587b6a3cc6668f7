"""Tests of what is made of the words of others."""

import time

from nfnets import messages


def test_characters_that_nobody_sees_are_escaped():
  assert messages.printable('a\n\x1b[31m\u202egnp') == r'a\n\x1b[31m\u202egnp'
  assert messages.printable('\ud8ff\u2028\u200b') == r'\ud8ff\u2028\u200b'
  for name in ('Käse', '日本\u3000語', '👨\u200d👩', 'می\u200cخواهم', "it's"):
    assert messages.printable(name) == name


def test_an_error_is_one_short_line():
  one_line = messages.one_line
  assert one_line(FileNotFoundError(2, 'No such file', 'x')) == 'No such file'
  assert one_line(ValueError('a\n  b\x1b')) == r'a b\x1b'
  assert one_line(ValueError()) == 'ValueError'
  assert one_line('word ' * 1000) == 'word ' * 60
  assert one_line(ValueError('NOT_FOUND [tensorstore_spec={}]')) == 'NOT_FOUND'


def test_what_takes_long_is_logged_while_it_lasts(monkeypatch, caplog):
  monkeypatch.setattr(messages, '_LOG_SECONDS', 0.05)
  with messages.log_waiting('reading x'):
    time.sleep(0.2)
  assert 'Still reading x, for 0 s.' in caplog.messages
  logged = len(caplog.messages)
  time.sleep(0.2)
  assert len(caplog.messages) == logged
