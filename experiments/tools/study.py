"""Studies networks: signal propagation, learning rate, sweeps of settings.

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

# {module of `experiments.studies`: help}. Only the selected one is imported.
_STUDIES = {
  'signal': 'draw means and variances of the signal by depth',
  'lr': 'run a learning rate range test',
  'sweep': 'train one recipe with many settings and seeds, and compare',
}


def main(argv: list[str]) -> int:
  """Run a study; return its exit status.

  0: success; 1: failure; 2: wrong command.
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
    if argv[:1] == ['lr']:  # Other options are settings of the recipe.
      args, args.settings = parser.parse_known_args(argv)
    else:
      args = parser.parse_args(argv)
    return module.run(args)

  return command_line.run(run, argv[1:])


if __name__ == '__main__':
  sys.exit(main(sys.argv))
