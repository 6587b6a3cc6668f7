"""The table of all variants on all devices: made row by row, and rendered."""

import collections
from collections.abc import Callable, Iterator
import json
import pathlib
import subprocess
import sys
from typing import Any

from experiments.planning import chips

_TOOL = pathlib.Path(__file__).parents[1] / 'tools' / 'plan.py'
# Milliseconds of a step with 32 images on each core of TPU v3, as measured for
# arXiv 2102.06171, table 3.
MEASURED_V3 = {
  'f0': 73.3,
  'f1': 158.5,
  'f2': 295.8,
  'f3': 532.2,
  'f4': 1033.3,
  'f5': 1398.5,
  'f6:sam': 2774.1,
}
# With what they fit 16 GiB, where they do not as they are.
_REMAT = {'f5': '--remat=18', 'f6:sam': '--remat=True'}
_FIRST = ('tpu_v3', 'tpu_v5e')


def rows() -> Iterator[tuple[str, str, str]]:
  """Yields (recipe, device, another setting or ''), the most wanted first."""
  names = list(MEASURED_V3)
  rest = [device for device in chips.CHIPS if device not in _FIRST]
  for name in names:
    for device in _FIRST:
      yield name, device, ''
  for name, setting in _REMAT.items():
    for device in _FIRST:
      yield name, device, setting
  for group in (['f6', 'f7'], [f'f{i}+' for i in range(8)]):
    for name in group:
      for device in _FIRST:
        yield name, device, ''
    for name in [*names, *group]:
      for device in rest:
        yield name, device, ''
    names = []


def make(path: pathlib.Path, log: Callable[[str], None]) -> None:
  """Plans what the file does not have yet; writes it after each.

  Args:
    path: JSON, a list of results.
    log: takes lines on the way.
  """
  results = _read(path)
  done = {(r['config'], r['device'], r['setting']) for r in results}
  for name, device, setting in rows():
    if (name, device, setting) in done:
      continue
    log(f'{name} on {device} {setting}')
    # In a process of its own, so that nothing is kept from one to the next.
    command = [f'--config={name}', f'--device={device}', '--quick']
    process = subprocess.run(
      [sys.executable, str(_TOOL), *command, *filter(None, [setting])],
      capture_output=True,
      text=True,
    )
    row = {'config': name, 'device': device, 'setting': setting}
    if process.returncode:
      row['error'] = process.stderr.strip().splitlines()[-1:]
      log(f'  failed: {row["error"]}')
    else:
      row = {**json.loads(process.stdout.splitlines()[-1]), **row}
    results.append(row)
    part = path.with_name(f'{path.name}.part')
    part.write_text(json.dumps(results, indent=1) + '\n')
    part.replace(path)


def render(path: pathlib.Path) -> str:
  """Returns the tables of a file in Markdown.

  Args:
    path: what `make` writes.
  """
  results = [row for row in _read(path) if 'error' not in row]
  return f'{_all_devices(results)}\n\n{_beside_the_paper(results)}'


def _all_devices(results: list[dict[str, Any]]) -> str:
  names = list(dict.fromkeys(r['config'] for r in results))
  devices = [d for d in chips.CHIPS if any(r['device'] == d for r in results)]
  by_place = collections.defaultdict(list)
  for row in results:
    by_place[row['config'], row['device']].append(row)
  lines = [
    f'| | {" | ".join(devices)} |',
    f'|---|{"---|" * len(devices)}',
  ]
  for name in names:
    cells = [_cell(by_place[name, device]) for device in devices]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _cell(rows: list[dict[str, Any]]) -> str:
  """Returns what a recipe needs as it is, or with what it fits."""
  plain = [row for row in rows if not row['setting']]
  if any(row['fits'] for row in plain):
    return _describe(plain[0])
  texts = [f'{row["peak_gib"]:.1f} GiB: no' for row in plain]
  fitting = [row for row in rows if row['fits']]
  if fitting:
    best = min(fitting, key=lambda row: row['step_ms'] or 0)
    texts.append(f'`{best["setting"]}`: {_describe(best)}')
  return '; '.join(texts)


def _describe(row: dict[str, Any]) -> str:
  memory = f'{row["peak_gib"]:.1f} GiB'
  if row['step_ms'] is None:
    return memory
  return f'{memory}, {row["step_ms"]:,.0f} ms, {100 * row["mfu"]:.0f} %'


def _beside_the_paper(results: list[dict[str, Any]]) -> str:
  lines = [
    '| 32 images on a v3 core | estimated, ms | measured, ms | measured / '
    'estimated |',
    '|---|---|---|---|',
  ]
  for name, measured in MEASURED_V3.items():
    for row in results:
      if (row['config'], row['device']) == (name, 'tpu_v3') and row['fits']:
        label = f'{name} {row["setting"].removeprefix("--")}'.strip()
        lines.append(
          f'| {label} | {row["step_ms"]:,.1f} | {measured:,.1f} | '
          f'{measured / row["step_ms"]:.2f} |'
        )
  return '\n'.join(lines)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  return json.loads(path.read_text()) if path.is_file() else []
