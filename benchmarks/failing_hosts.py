"""Runs of two processes that are disturbed, started again, and must end alike.

python benchmarks/failing_hosts.py [--rounds=20] [--seed=0] [--kinds=kill,stop]

Trains a small network on digits, on two devices of this machine's CPU: first
undisturbed, as two processes and as one. Then in each round two processes are
disturbed at a random moment, and started again, as two processes or as one, as
often as it takes. A round is good if the weights at the end are those of the
undisturbed run to the last bit, if nobody waited for more than two minutes, and
if the last line of each process that failed names the cause.

  kill       one process is killed (SIGKILL)
  stop       one process is stopped (SIGSTOP) until the other has ended
  pause      one process is stopped for some seconds
  terminate  one process is asked to end (SIGTERM)
  disk       the disk of the checkpoints is full, for a while or until the end
             (a small tmpfs: needs the right to mount one)
  damage     all processes are killed, and bytes of the last checkpoint changed
  store      checkpoints are in a bucket of the emulated store, which fails

A line of JSON is added to --output for each round. Standard output has the
table in Markdown; its last line is JSON.
"""

import argparse
import contextlib
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any
from urllib import parse, request

from failing_runs import (
  STEPS,
  RoundError,
  Run,
  hash_weights,
  run_undisturbed,
  small_disk,
)

_KINDS = ('kill', 'stop', 'pause', 'terminate', 'disk', 'damage', 'store')
# The last line of a process that fails, by the cause.
_LOST = r'error: process \d of 2 has lost '
_FULL = r'error: .*(disk|No space left)'
_DAMAGED = r'error: The checkpoint (\S+) is damaged: '


class Round:
  """One round: what happens, and whether it is good.

  Attributes:
    facts: what happened, for the record.
  """

  def __init__(self, number: int, kind: str, seed: int, folder, store):
    """Chooses when, to whom and how to go on.

    Args:
      number: of the round.
      kind: what disturbs it.
      seed: decides with `number`.
      folder: for the logs and the checkpoints of all rounds, and the dataset.
      store: the emulated store, if there is one.
    """
    self._random = random.Random(f'{seed} {number}')
    self._kind, self._folder, self._emulator = kind, folder / f'{number}', store
    self._victim = self._random.randrange(2)
    self._again = self._random.choice((1, 2))
    # A step, or before the first one, and then a while.
    self._at = self._random.randrange(-STEPS // 6, STEPS * 4 // 5)
    self._while = self._random.uniform(0, 5 if self._at < 1 else 0.5)
    self._environment, self._checkpoints = {}, self._folder / 'run'
    if kind == 'store':
      self._environment = store.environment
      self._checkpoints = f'{store.bucket}/{number}'
    self.facts = {'round': number, 'kind': kind, 'said': []}

  def run(self) -> str:
    """Runs it; returns the hash of the weights at the end.

    Raises:
      RoundError: if it is not good.
    """
    with contextlib.ExitStack() as stack:
      if self._kind == 'disk':
        stack.enter_context(small_disk(self._checkpoints))
      run = self._start(2)
      stack.callback(run.kill)
      if self._at < 1:
        run.wait_for(lambda: 'results in' in run.log(0))
      else:
        run.wait_for(lambda: run.step() >= self._at)
      time.sleep(self._while)
      self.facts['at_step'] = run.step()
      start = time.monotonic()
      getattr(self, f'_{self._kind}')(run)
      self.facts['seconds'] = round(time.monotonic() - start, 1)
      if any(process.returncode for process in run.processes) or (
        self._kind == 'terminate'
      ):
        self.facts['again_as'] = self._again
        self._finish()
      return hash_weights(self._read_weights())

  def _start(self, count: int) -> Run:
    return Run(self._folder, count, self._checkpoints, self._environment)

  def _finish(self) -> None:
    """Runs to the end, and deletes what is said to be damaged on the way."""
    damaged = True
    while damaged:
      run = self._start(self._again)
      try:
        run.wait_for_end(going_on=True)
      finally:
        run.kill()
      damaged = re.match(_DAMAGED, run.last_line(0))
      if damaged:
        self._note(run.last_line(0))
        for number in range(self._again):
          run.check(number, 1, f'{_DAMAGED}|{_LOST}')
        shutil.rmtree(damaged[1])
    for number in range(self._again):
      run.check(number, 0)

  def _note(self, *lines: str) -> None:
    here = f'{self._folder}/'
    self.facts['said'].extend(line.replace(here, '') for line in lines)

  def _go_on(self, run: Run) -> None:
    run.wait_for_end(going_on=True)
    for number in range(2):
      run.check(number, 0)

  # What may happen to a run.

  def _kill(self, run: Run) -> None:
    run.processes[self._victim].kill()
    self._survive(run)

  def _survive(self, run: Run) -> None:
    run.wait_for_end(1 - self._victim)
    self._check_survivor(run)

  def _check_survivor(self, run: Run) -> None:
    other = 1 - self._victim
    self._note(run.last_line(other))
    run.check(other, 1, _LOST)

  def _stop(self, run: Run) -> None:
    run.processes[self._victim].send_signal(signal.SIGSTOP)
    self._survive(run)
    run.processes[self._victim].send_signal(signal.SIGCONT)
    run.wait_for_end()
    self._note(run.last_line(self._victim))
    run.check(self._victim, 1, _LOST)

  def _pause(self, run: Run) -> None:
    self.facts['how'] = seconds = self._random.randint(3, 40)
    run.processes[self._victim].send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    run.processes[self._victim].send_signal(signal.SIGCONT)
    self._go_on(run)

  def _terminate(self, run: Run) -> None:
    run.processes[self._victim].terminate()
    run.wait_for_end(going_on=True)
    if run.processes[self._victim].returncode == -signal.SIGTERM:
      # It was too early for that to be noted: there is nothing to save.
      self._check_survivor(run)
      return
    self._go_on(run)
    said = _lines_with('SIGTERM: ending after this step', run.log(self._victim))
    if not said:
      raise RoundError('SIGTERM is not mentioned')
    self._note(*said)

  def _disk(self, run: Run) -> None:
    full = self._checkpoints / 'full'
    with contextlib.suppress(OSError), full.open('wb', buffering=0) as file:
      while file.write(bytes(2**14)):
        pass
    seconds = self._random.choice((5, 20, 0))
    self.facts['how'] = seconds or 'until the end'
    if seconds:
      time.sleep(seconds)
      full.unlink()
      self._go_on(run)
      self._note(*_lines_with('No space left|is full', run.log(0))[:1])
    else:
      run.wait_for_end(going_on=True)
      full.unlink()
      self._note(run.last_line(0), run.last_line(1))
      run.check(0, 1, _FULL)
      run.check(1, 1, _LOST)

  def _damage(self, run: Run) -> None:
    run.kill()
    series = self._checkpoints / 'latest'
    steps = [int(p.name) for p in series.glob('*') if p.name.isdigit()]
    if not steps:
      self.facts['how'] = 'there was no checkpoint yet'
      return
    folder = series / str(max(steps))
    files = [path for path in sorted(folder.rglob('*')) if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    flips = self._random.choice((1, 4, 64))
    for _ in range(flips):
      content[self._random.randrange(len(content))] ^= 128
    path.write_bytes(content)
    self.facts['how'] = f'{flips} bytes of step {folder.name}'

  def _store(self, run: Run) -> None:
    kind = self._random.choice(('lost', '429', '503'))
    seconds = self._random.randint(5, 40)
    self.facts['how'] = f'{kind} for {seconds} s'
    self._emulator.disturb(kind, seconds)
    self._go_on(run)
    self._note(*_lines_with('gs://.*(again|fail|not)', run.log(0))[:1])

  # The end.

  def _read_weights(self) -> bytes:
    if self._kind != 'store':
      return (self._checkpoints / 'weights.safetensors').read_bytes()
    bucket, _, name = self._checkpoints.removeprefix('gs://').partition('/')
    url = self._environment['TENSORSTORE_GCS_HTTP_URL']
    name = parse.quote(f'{name}/weights.safetensors', safe='')
    # Not by the proxy that TensorFlow is led through.
    opener = request.build_opener(request.ProxyHandler({}))
    with opener.open(f'{url}/storage/v1/b/{bucket}/o/{name}?alt=media') as file:
      return file.read()


def _lines_with(pattern: str, log: str) -> list[str]:
  return [line for line in log.splitlines() if re.search(pattern, line)]


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--first', type=int, default=1, help='of the rounds')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kinds', default=','.join(_KINDS))
  parser.add_argument('--folder', type=pathlib.Path, help='kept, for the logs')
  parser.add_argument('--output', default='failing_hosts.jsonl')
  args = parser.parse_args()
  with contextlib.ExitStack() as stack:
    folder = args.folder or pathlib.Path(
      stack.enter_context(tempfile.TemporaryDirectory())
    )
    kinds, store = args.kinds.split(','), None
    if 'store' in kinds:
      import emulated_store

      store = stack.enter_context(emulated_store.start())
    expected = run_undisturbed(folder)
    # Each kind as often as the others, in a random order.
    order = [kinds[i % len(kinds)] for i in range(args.rounds)]
    random.Random(args.seed).shuffle(order)
    rows = []
    for number, kind in list(enumerate(order, 1))[args.first - 1 :]:
      disturbed = Round(number, kind, args.seed, folder, store)
      facts = disturbed.facts
      try:
        facts['equal'] = disturbed.run() == expected
        facts['good'] = facts['equal']
      except (RoundError, OSError, subprocess.CalledProcessError) as error:
        facts.update(good=False, error=str(error))
      rows.append(facts)
      with open(args.output, 'a') as file:
        file.write(json.dumps(facts) + '\n')
      print(json.dumps(facts), file=sys.stderr, flush=True)
  print('\n'.join(_table(rows)))
  good = sum(facts['good'] for facts in rows)
  print(json.dumps({'rounds': len(rows), 'good': good, 'seed': args.seed}))
  return 0 if good == len(rows) else 1


def _table(rows: list[dict[str, Any]]) -> list[str]:
  head = ('round', 'kind', 'how', 'at_step', 'seconds', 'again_as', 'equal')
  lines = [' | '.join(head), ' | '.join('---' for _ in head)]
  lines += [' | '.join(str(row.get(key, '')) for key in head) for row in rows]
  return [f'| {line} |' for line in lines]


if __name__ == '__main__':
  sys.exit(main())
