"""Says whether a recipe fits a device that is not at hand, and how fast it is.

python experiments/tools/plan.py --config=NAME --device=DEVICE [options]
"""

import argparse
import functools
import pathlib
import sys
from typing import Any

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.planning import environment

if __name__ == '__main__':
  environment.prepare()  # Before JAX is imported.

from experiments import command_line  # noqa: E402
from experiments.planning import chips  # noqa: E402
from nfnets import finite_json, paths  # noqa: E402
from nfnets.errors import UserError  # noqa: E402
from nfnets.inference import command_line as commands  # noqa: E402

_EPILOG = """\
Any setting of the recipe may be given by its name, such as --remat=24,
--accumulate_steps=2, --bfloat16=False or --train_batch_size=2048; see
experiments/experiment.py --help.

The whole update and a step of evaluation are compiled by the device's own
compiler, which takes from half a minute to many. Where the update does not fit,
other settings are tried. Nothing is run: times are the compiler's estimates.
The last line of standard output is JSON.
"""


def main(argv: list[str]) -> int:
  """Runs the command; returns its exit status.

  0 is success, whether it fits or not, 1 a failure, 2 a wrong command.
  """
  parser = _parser()
  args, rest = parser.parse_known_args(argv[1:])

  def plan(args: argparse.Namespace) -> int:
    return finite_json.print_results(_plan(args, [argv[0], *rest], parser))

  return commands.run(plan, args)


def _parser() -> argparse.ArgumentParser:
  parser = commands.Parser(
    description=__doc__.split('\n')[0],
    usage='plan.py --config=NAME --device=DEVICE [options] [--SETTING=VALUE]',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  # --config=NAME is read with the settings, by `command_line`.
  parser.add_argument(
    '--device', help=f'for which device: {", ".join(chips.CHIPS)}'
  )
  parser.add_argument(
    '--devices', type=commands.positive, metavar='N', help='how many of them'
  )
  parser.add_argument(
    '--batch',
    type=commands.positive,
    metavar='N',
    help='images of each in an update; without this and --devices, 32 and as '
    'many devices as train_batch_size needs',
  )
  parser.add_argument(
    '--search',
    action='store_true',
    help='find the largest batch of each device that fits, among powers of two '
    'and multiples of 128',
  )
  parser.add_argument(
    '--quick',
    action='store_true',
    help='the update of training alone: no evaluation, and no other settings '
    'where it does not fit',
  )
  parser.add_argument(
    '--output', type=pathlib.Path, metavar='FILE', help='JSON to write, too'
  )
  return parser


def _plan(
  args: argparse.Namespace, argv: list[str], parser: argparse.ArgumentParser
) -> dict[str, Any]:
  """Returns the results for one recipe and device."""
  name, config = command_line.parse(argv, parser)
  if not args.device:
    raise UserError(
      f'--device is missing; it is one of {", ".join(chips.CHIPS)}.',
      2,
    )
  chip = chips.get(args.device)
  # They take seconds; a wrong command is answered before that.
  from experiments.planning import estimate, screen, search, workload

  def attempt(
    evaluates=False, devices=args.devices, batch=args.batch, **settings
  ) -> dict[str, Any]:
    changed = config.copy_and_resolve_references()
    with changed.ignore_type():  # `remat` may be a bool or a number.
      changed.experiment_kwargs.config.update(settings)
    work = workload.build(changed, devices, batch)
    ours = work.recipe.config
    _log(
      f'compiling {name} for {chip.name}: {work.batch} images on each of '
      f'{work.devices}, remat={ours.remat}, '
      f'accumulate_steps={ours.accumulate_steps}'
    )
    plan = estimate.plan(chip, work, evaluates)
    _log(f'  {screen.summarize(plan)}')
    return plan

  first = attempt(evaluates=not args.quick)
  print(screen.describe(first, name), flush=True)
  results = {'config': name, **first}
  if args.search:
    at_devices = functools.partial(attempt, devices=first['devices'])
    found = search.largest_batch(first, at_devices)
    results['largest_batch'] = found and _change('batch', found)
    text = 'No batch fits: see what does without --search.'
    if found:
      text = 'the largest of the batches tried that fits:\n'
      text += screen.describe_change('batch', found)
    print(f'\n{text}', flush=True)
  elif not first['fits'] and 'eval_batch' not in first and not args.quick:
    changes = search.changes(first, attempt)
    results['changes'] = [_change(*change) for change in changes]
    text = 'Nothing that was tried makes it fit: it needs a larger device.'
    if changes:
      text = 'it fits with, the cheapest first:'
      text = '\n'.join([text, *(screen.describe_change(*c) for c in changes)])
    print(f'\n{text}', flush=True)
  if args.output:
    text = f'{finite_json.dumps(results, indent=1)}\n'
    paths.write_bytes(args.output, text.encode())
  return results


def _change(name: str, plan: dict[str, Any]) -> dict[str, Any]:
  """Returns the setting, and what comes of it."""
  names = ('devices', 'fits', 'peak_gib', 'step_ms', 'images_per_second')
  return {key: plan[key] for key in (name, *names)}


def _log(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
