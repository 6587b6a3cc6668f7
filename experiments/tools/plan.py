"""Estimates memory and time of a recipe on an absent accelerator.

python experiments/tools/plan.py --config=NAME --device=DEVICE [options]
"""

import argparse
import functools
import pathlib
import sys
from typing import Any

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import planning

if __name__ == '__main__':
  planning.prepare()  # Before JAX is imported.

from experiments import command_line  # noqa: E402
from experiments.planning import chips  # noqa: E402
from nfnets import finite_json, paths  # noqa: E402
from nfnets.errors import UserError  # noqa: E402
from nfnets.inference import command_line as commands  # noqa: E402

_EPILOG = """\
Any setting of the recipe can be an option: --remat=24, --accumulate_steps=2,
--bfloat16=False, --train_batch_size=2048, ... See experiments/experiment.py
--help.

The device's compiler compiles the update and an evaluation step, which takes
half a minute or more. If the update does not fit, other settings are tried.
Nothing runs: times are the compiler's estimates. The last line of standard
output is JSON.
"""


def main(argv: list[str]) -> int:
  """Run the command; return its exit status.

  0: success, even if the recipe does not fit; 1: failure; 2: wrong command.
  """
  parser = commands.Parser(
    description=__doc__.split('\n')[0],
    usage='plan.py --config=NAME --device=DEVICE [options] [--SETTING=VALUE]',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  # --config=NAME is read with the settings, by `command_line`.
  parser.add_argument('--device', help=f'the device: {", ".join(chips.CHIPS)}')
  parser.add_argument(
    '--devices', type=commands.positive, metavar='N', help='number of devices'
  )
  parser.add_argument(
    '--batch',
    type=commands.positive,
    metavar='N',
    help='images per device in an update (train_batch_size / devices, or 32 '
    'without --devices)',
  )
  parser.add_argument(
    '--search',
    action='store_true',
    help='find the largest batch per device among powers of two and multiples '
    'of 128',
  )
  parser.add_argument(
    '--quick',
    action='store_true',
    help='compile only the training update: no evaluation step and no other '
    'settings',
  )
  parser.add_argument(
    '--output', type=pathlib.Path, metavar='FILE', help='JSON file to write'
  )
  args, rest = parser.parse_known_args(argv[1:])

  def plan(args: argparse.Namespace) -> int:
    return finite_json.print_results(_plan(args, [argv[0], *rest], parser))

  return commands.run(plan, args)


def _plan(
  args: argparse.Namespace, argv: list[str], parser: argparse.ArgumentParser
) -> dict[str, Any]:
  """Return the results for one recipe and device."""
  name, config = command_line.parse(argv, parser)
  if not args.device:
    raise UserError(
      f'--device is missing; it is one of {", ".join(chips.CHIPS)}.',
      2,
    )
  chip = chips.get(args.device)
  # Slow imports, after the checks of the command.
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
    text = 'No batch fits. Without --search, other settings are tried.'
    if found:
      text = 'the largest of the batches tried that fits:\n'
      text += screen.describe_change('batch', found)
    print(f'\n{text}', flush=True)
  elif not first['fits'] and 'eval_batch' not in first and not args.quick:
    changes = search.changes(first, attempt)
    results['changes'] = [_change(*change) for change in changes]
    text = 'No setting makes it fit. It needs a larger device.'
    if changes:
      text = 'it fits with one of these settings, fastest first:'
      text = '\n'.join([text, *(screen.describe_change(*c) for c in changes)])
    print(f'\n{text}', flush=True)
  if args.output:
    text = f'{finite_json.dumps(results, indent=1)}\n'
    paths.write_bytes(args.output, text.encode())
  return results


def _change(name: str, plan: dict[str, Any]) -> dict[str, Any]:
  """Return the main results of a plan with a changed setting."""
  names = ('devices', 'fits', 'peak_gib', 'step_ms', 'images_per_second')
  return {key: plan[key] for key in (name, *names)}


def _log(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
