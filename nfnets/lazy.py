"""Lazy imports: a package imports its public names at their first use.

Commands that need neither JAX nor Haiku start without them.
"""

from collections.abc import Callable, Mapping
import importlib
import importlib.util
import sys
from typing import Any


def attributes(
  package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """Return `__getattr__` and `__dir__` of a package (PEP 562).

  Args:
    package: name of the package.
    homes: {public name: its module}. Submodules need no entry.
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
