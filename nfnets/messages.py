"""Formats untrusted names and errors on one line, and logs long waits."""

from collections.abc import Iterator
import contextlib
import logging
import re
import threading
import time
from typing import Any
import unicodedata

# Control characters, marks that hide or reverse text, surrogates of invalid
# UTF-8, and line breaks.
_UNSEEN = ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')
_JOINERS = '\u200c\u200d'  # Persian, Indian scripts and emoji need these.
_LOG_SECONDS = 20.0


def printable(text: str) -> str:
  """Return text on one line, with invisible characters escaped."""
  if text.isprintable():
    return text
  return ''.join(
    ascii(c)[1:-1]
    if unicodedata.category(c) in _UNSEEN and c not in _JOINERS
    else c
    for c in text
  )


def one_line(error: Any) -> str:
  """Return the message of an error on one line of at most 300 characters."""
  message = getattr(error, 'strerror', None) or str(error)
  if hasattr(error, 'node_def'):  # TensorFlow: a stack, then the reason.
    message = re.sub(
      r'\{\{.*?\}\}|\[Op:.*', '', error.message.split('\n\n')[-1]
    ).strip()
    # tf.Assert escapes quotes.
    message = message.split('\n')[0].strip().rstrip('.')
    message = re.sub(r'.*assertion failed: \[(.*)\]', r'\1', message)
    message = re.sub(r'\\(["\'])', r'\1', message)
  # TensorStore appends a description of the request.
  message = ' '.join(message.split(' [tensorstore_spec')[0].split())
  return printable(message)[:300] or type(error).__name__


@contextlib.contextmanager
def log_waiting(doing: str) -> Iterator[None]:
  """Log every 20 seconds that the body of this context still runs."""
  done, start = threading.Event(), time.monotonic()

  def log():
    while not done.wait(_LOG_SECONDS):
      logging.getLogger(__name__).warning(
        'Still %s, for %.0f s.', doing, time.monotonic() - start
      )

  threading.Thread(target=log, daemon=True).start()
  try:
    yield
  finally:
    done.set()
