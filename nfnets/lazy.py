"""Names of a package that are imported when they are first asked for.

So that a command that needs neither JAX nor Haiku starts without them.
"""

from collections.abc import Callable, Mapping
import importlib
import importlib.util
import sys
from typing import Any


def attributes(
  package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """Returns `__getattr__` and `__dir__` of a package (PEP 562).

  Args:
    package: its name.
    homes: the module that each public name is from. Modules of the package are
      found besides.
  """

  def get(name: str) -> Any:
    if name in homes:
      value = getattr(importlib.import_module(homes[name]), name)
      setattr(sys.modules[package], name, value)
      return value
    full = f'{package}.{name}'
    if not name.startswith('_') and importlib.util.find_spec(full):
      return importlib.import_module(full)
    raise AttributeError(f'module {package!r} has no attribute {name!r}')

  def names() -> list[str]:
    return sorted({*vars(sys.modules[package]), *homes})

  return get, names
