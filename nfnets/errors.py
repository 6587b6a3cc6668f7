"""The one error that a user can act on, and how other errors become it."""

from collections.abc import Iterator
import contextlib


class UserError(ValueError):
  """An error whose message tells a user what is wrong, where and what to do.

  It is raised where the problem is found, and each `main` catches it once.

  Attributes:
    status: exit status of the command: 1 for a failure, 2 for a wrong command.
  """

  def __init__(self, message: str = '', status: int = 1):
    super().__init__(message)
    self.status = status


class ImageError(UserError):
  """One image cannot be used; others may be fine. The message has no path."""


@contextlib.contextmanager
def prefix(where: str, status: int = 1) -> Iterator[None]:
  """Turn an OSError or ValueError into a UserError that begins with `where`.

  A UserError passes as it is: its message is whole.
  """
  try:
    yield
  except UserError:
    raise
  except (OSError, ValueError) as error:
    text = getattr(error, 'strerror', None) or str(error)
    if where not in text:
      # The message may begin with the name that `where` ends with.
      text = text.removeprefix(f'{where.split(": ")[-1]}: ')
      text = f'{where}: {text}'
    raise UserError(text, status) from error
