"""Says whether a recipe fits a device that is not at hand, and how fast it is.

python experiments/tools/plan.py --config=NAME --device=DEVICE [options]
"""

import argparse
import functools
import json
import pathlib
import sys
from typing import Any

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.planning import environment

if __name__ == '__main__':
  environment.prepare(sys.argv)  # Before JAX is imported.

from experiments import command_line, recipe  # noqa: E402
from experiments.planning import (  # noqa: E402
  changes,
  chips,
  compiling,
  estimate,
  screen,
  table,
  workload,
)
from nfnets.data import dataset  # noqa: E402

_EPILOG = """\
Any setting of the recipe may be given by its name, such as --remat=24,
--accumulate_steps=2, --bfloat16=False or --train_batch_size=2048; see
experiments/experiment.py --help.

The whole update and a step of evaluation are compiled by the device's own
compiler, which takes from half a minute to many. Where the update does not fit,
other settings are tried. Nothing is run: times are the compiler's estimates.
The last line of standard output is JSON.
"""

# Errors whose message says it all: the command is wrong, or has failed.
_WRONG = (command_line.UsageError, recipe.ConfigError, chips.UnknownChipError)
_FAILED = (compiling.CompilerMissingError, dataset.DatasetError, OSError)


def main(argv: list[str]) -> int:
  """Runs the command; returns its exit status.

  0 is success, whether it fits or not, 1 a failure, 2 a wrong command.
  """
  args, rest = _parser().parse_known_args(argv[1:])
  try:
    if args.all or args.table:
      results = _make_table(args, rest)
    else:
      results = _plan(args, [argv[0], *rest])
  except _WRONG as error:
    return _fail(error, 2)
  except _FAILED as error:
    return _fail(error, 1)
  print(json.dumps(results), flush=True)
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__.split('\n')[0],
    usage='plan.py --config=NAME --device=DEVICE [options] [--SETTING=VALUE]\n'
    '       plan.py --all --output=FILE',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  # --config=NAME is read with the settings, by `command_line`.
  parser.add_argument(
    '--device', help=f'for which device: {", ".join(chips.CHIPS)}'
  )
  parser.add_argument(
    '--devices', type=_positive, metavar='N', help='how many of them'
  )
  parser.add_argument(
    '--batch',
    type=_positive,
    metavar='N',
    help='images of each in an update; without this and --devices, 32 and as '
    'many devices as train_batch_size needs',
  )
  for flag, text in (
    ('--search', 'find the largest batch of each device that fits'),
    (
      '--quick',
      'the update of training alone: no evaluation, and no other settings '
      'where it does not fit',
    ),
    (
      '--all',
      'all variants of NFNet-F for all devices, one after the other, into '
      '--output; what it has already is left out',
    ),
    ('--table', 'print the tables of --output in Markdown'),
  ):
    parser.add_argument(flag, action='store_true', help=text)
  parser.add_argument(
    '--output', type=pathlib.Path, metavar='FILE', help='JSON to write, too'
  )
  return parser


def _positive(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is not at least 1')
  return number


def _plan(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
  """Returns the results for one recipe and device."""
  name, config = command_line.parse(argv)
  if not args.device:
    raise command_line.UsageError(
      f'--device is missing; it is one of {", ".join(chips.CHIPS)}.'
    )
  chip = chips.get(args.device)

  def attempt(
    evaluates: bool = False,
    devices: int | None = args.devices,
    batch: int | None = args.batch,
    **settings,
  ) -> estimate.Plan:
    changed = config.copy_and_resolve_references()
    with changed.ignore_type():  # `remat` may be a bool or a number.
      changed.experiment_kwargs.config.update(settings)
    work = workload.build(changed, devices, batch)
    _log(f'compiling {name} for {chip.name}: {screen.name_settings(work)}')
    plan = estimate.plan(chip, work, evaluates)
    _log(f'  {screen.summarize(plan)}')
    return plan

  first = attempt(evaluates=not args.quick)
  print(screen.describe(first, name), flush=True)
  results = {'config': name, **first.to_json()}
  if args.search:
    at_devices = functools.partial(attempt, devices=first.work.devices)
    found = changes.largest_batch(first, at_devices)
    results['largest_batch'] = found and found.to_json()
    print(f'\n{screen.describe_largest_batch(found)}', flush=True)
  elif not first.update.fits and not args.quick:
    found = changes.find(first, attempt)
    results['changes'] = [change.to_json() for change in found]
    print(f'\n{screen.describe_changes(found)}', flush=True)
  if args.output:
    args.output.write_text(f'{json.dumps(results, indent=1)}\n')
  return results


def _make_table(args: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
  """Makes the tables of all variants, or prints them."""
  if rest:
    raise command_line.UsageError(f'Unknown arguments: {" ".join(rest)}')
  if not args.output:
    raise command_line.UsageError('--output=FILE is missing.')
  if args.all:
    table.make(args.output, _log)
  print(table.render(args.output), flush=True)
  return {'output': str(args.output)}


def _log(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _fail(error: Exception, status: int) -> int:
  _log(f'error: {error}')
  return status


if __name__ == '__main__':
  sys.exit(main(sys.argv))
