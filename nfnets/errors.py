"""The one error that a user can act on, and how other errors become it."""

from collections.abc import Iterator
import contextlib


class UserError(ValueError):
  """An error whose message tells a user what is wrong, where and what to do.

  The code that finds the problem raises it, and each `main` catches it once.

  Attributes:
    status: exit status of the command: 1 for a failure, 2 for a wrong command.
  """

  def __init__(self, message: str = '', status: int = 1):
    super().__init__(message)
    self.status = status


class ImageError(UserError):
  """An error about a single image. The message does not contain its path."""


@contextlib.contextmanager
def prefix(where: str, status: int = 1) -> Iterator[None]:
  """Turn an OSError or ValueError into a UserError that begins with `where`.

  A UserError passes unchanged, because its message is complete.
  """
  try:
    yield
  except UserError:
    raise
  except (OSError, ValueError) as error:
    text = getattr(error, 'strerror', None) or str(error)
    if where not in text:
      # Do not repeat a name at the end of `where`.
      text = text.removeprefix(f'{where.split(": ")[-1]}: ')
      text = f'{where}: {text}'
    raise UserError(text, status) from error
