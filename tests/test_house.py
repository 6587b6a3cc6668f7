"""Who may import whom."""

import ast
import pathlib

import nfnets

_ROOT = pathlib.Path(nfnets.__file__).parent


def imported(file: pathlib.Path) -> set[str]:
  """Returns the packages that a module imports, wherever it does."""
  found = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      found |= {name.name.partition('.')[0] for name in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      found.add(str(node.module).partition('.')[0])
  return found


def test_dependencies_point_one_way():
  for file in _ROOT.rglob('*.py'):
    names = imported(file)
    assert 'experiments' not in names, file
    is_data = file.is_relative_to(_ROOT / 'data')
    assert is_data or 'tensorflow' not in names, file
