"""Counts statements, and lists the files that two commands use.

python tools/count_statements.py [--write] [--flows]

A statement is an `ast.stmt` node, so layout and comments do not count.
"""

import argparse
import ast
import collections
import contextlib
import functools
import importlib
import multiprocessing
import os
import pathlib
import re
import sys
import tempfile
import threading

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE = _ROOT / 'docs' / 'design.md'
SOURCES = ('nfnets', 'experiments', 'benchmarks', 'tools')
_COLUMNS = ('statements', 'lines', 'functions', 'files')
# {module of a command: its arguments}.
_FLOWS = {
  'nfnets.classify': '--runtime=jax --weights={0}/digits.npz {0}/picture.png',
  'experiments.experiment': 'experiment.py --config=digits:small '
  '--fake_data=False --checkpoint_dir={0}/run',
}
sys.path.insert(0, str(_ROOT))  # Also for the processes of the flows.


def _modules(*folders: str) -> dict[str, pathlib.Path]:
  """Return {module: file} for all modules below the folders."""
  files = [f for name in folders for f in sorted((_ROOT / name).rglob('*.py'))]
  names = ['.'.join(f.relative_to(_ROOT).with_suffix('').parts) for f in files]
  names = [name.removesuffix('.__init__') for name in names]
  return dict(zip(names, files, strict=True))


def count(*folders: str) -> dict[str, collections.Counter[str]]:
  """Return {folder: counts}, with the total as 'sum'."""
  counts = collections.defaultdict(collections.Counter)
  for file in _modules(*folders).values():
    row = '/'.join(file.relative_to(_ROOT).parent.parts[:2])
    if row.startswith('experiments/') and row != 'experiments/configs':
      row = 'experiments/planning, studies, tools'
    text = file.read_text()
    nodes = [type(node) for node in ast.walk(ast.parse(text))]
    counts[row].update(
      statements=sum(issubclass(node, ast.stmt) for node in nodes),
      lines=len(text.splitlines()),
      functions=sum('FunctionDef' in node.__name__ for node in nodes),
      files=1,
    )
  counts['sum'] = sum(counts.values(), collections.Counter())
  return counts


def make_table() -> str:
  """Return a Markdown table with a row for each source folder."""
  counts = {**count(*SOURCES), 'tests': count('tests')['sum']}
  lines = [f'| | {" | ".join(_COLUMNS)} |', f'|---|{"---:|" * len(_COLUMNS)}']
  for row, numbers in counts.items():
    cells = [row, *(f'{numbers[column]:,}' for column in _COLUMNS)]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def find_circles() -> list[tuple[str, ...]]:
  """Return groups of modules that import each other, directly or indirectly.

  Imports inside functions count.
  """
  modules = _modules(*SOURCES)
  reached = {}
  for module, file in modules.items():
    found = reached[module] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
      if isinstance(node, ast.Import):
        found |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        for alias in node.names:  # A module of a package, or a name in it.
          full = f'{node.module}.{alias.name}'
          found.add(full if full in modules else node.module)
    found &= modules.keys() - {module}
  for middle in modules:  # Warshall's algorithm.
    for found in reached.values():
      if middle in found:
        found |= reached[middle]
  circles = [{b for b in reached[a] if a in reached[b]} for a in modules]
  return sorted({tuple(sorted(circle)) for circle in circles if circle})


def prepare(folder: str) -> None:
  """Write an image and a small untrained network."""
  import jax
  from PIL import Image

  from nfnets import create_model, weights

  params, state = create_model('nfnet_digits', 10).init(jax.random.key(0))
  weights.save_weights(f'{folder}/digits.npz', params, state)
  Image.new('RGB', (32, 32)).save(f'{folder}/picture.png')


def trace(module: str, arguments: list[str]) -> list[str]:
  """Return the project's files whose functions run in a command.

  Functions that run during imports do not count.
  """
  ours = tuple(f'{_ROOT / name}{os.sep}' for name in SOURCES)
  files = set()

  def profile(frame, event, _):
    file = frame.f_code.co_filename
    if event != 'call' or file in files or not file.startswith(ours):
      return
    while frame:
      code, frame = frame.f_code, frame.f_back
      if code.co_name == '<module>' and code.co_filename.startswith(ours):
        return
    files.add(file)

  main = importlib.import_module(module).main
  threading.setprofile(profile)
  sys.setprofile(profile)
  with contextlib.redirect_stdout(sys.stderr):
    status = main(arguments)
  sys.setprofile(None)
  if status:
    raise RuntimeError(f'{module} ended with status {status}')
  return sorted(os.path.relpath(file, _ROOT) for file in files)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  add = functools.partial(parser.add_argument, action='store_true')
  add('--write', help='write the table into docs/design.md')
  add('--flows', help='run two commands and list the files that they use')
  args = parser.parse_args()
  circles = ' and '.join(' ↔ '.join(circle) for circle in find_circles())
  text = f'{make_table()}\n\nCircles of imports: {circles or "none"}.\n'
  print(text)
  if args.write:
    place = re.compile('(?<=<!-- size -->\n).*(?=<!-- end of size -->)', re.S)
    _PAGE.write_text(place.sub(text, _PAGE.read_text()))
  if args.flows:
    # A new process for each command, so that it imports everything.
    pool = multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1)
    with pool, tempfile.TemporaryDirectory() as folder:
      pool.apply(prepare, [folder])
      for module, arguments in _FLOWS.items():
        arguments = arguments.format(folder).split()
        files = pool.apply(trace, [module, arguments])
        print(f'{module}: {len(files)} files', *files, sep='\n  ', flush=True)


if __name__ == '__main__':
  main()
