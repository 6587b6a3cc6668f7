"""Studies networks: how their signals propagate, what their settings do.

python experiments/tools/study.py signal --models=resnet50,nf_resnet50
python experiments/tools/study.py lr --config=finetune --data=DIR --weights=W
python experiments/tools/study.py sweep FILE
"""

import argparse
import importlib
import pathlib
import sys

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nfnets.inference import command_line  # noqa: E402

# What each is for. They are modules of `experiments.studies`, of which only the
# one that is asked for is imported.
_STUDIES = {
  'signal': 'draw how means and variances propagate through networks, by depth',
  'lr': 'find a learning rate: raise it over a short training, draw the loss',
  'sweep': 'train one recipe with many settings and seeds, and compare',
}


def main(argv: list[str]) -> int:
  """Runs a study; returns its exit status.

  0 is success, 1 a failure, 2 a wrong command.
  """
  parser = command_line.Parser(
    prog='study.py',
    description=__doc__.split('\n')[0],
    allow_abbrev=False,
  )
  studies = parser.add_subparsers(dest='study', required=True, metavar='STUDY')
  for name, text in _STUDIES.items():
    study = studies.add_parser(
      name,
      help=text,
      description=f'{text[0].upper()}{text[1:]}.',
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    if name in argv[1:2]:
      module = importlib.import_module(f'experiments.studies.{name}')
      module.add_arguments(study)

  def run(argv: list[str]) -> int:
    if argv[:1] == ['lr']:  # The rest is settings of the recipe.
      args, args.settings = parser.parse_known_args(argv)
    else:
      args = parser.parse_args(argv)
    return module.run(args)

  return command_line.run(run, argv[1:])


if __name__ == '__main__':
  sys.exit(main(sys.argv))
