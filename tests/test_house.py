"""Who may import whom, and how much code there may be."""

import ast
import pathlib

import nfnets
from tools import count_statements

_ROOT = pathlib.Path(nfnets.__file__).parent
# Statements that there were when this was last changed.
_SOURCE_STATEMENTS = 13_550
_TEST_STATEMENTS = 13_850


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


def test_there_is_not_much_more_code_than_there_was():
  for folders, before in (
    (count_statements.SOURCES, _SOURCE_STATEMENTS),
    (['tests'], _TEST_STATEMENTS),
  ):
    now = count_statements.count(*folders)['sum']['statements']
    assert now <= 1.03 * before, folders
