"""Studies networks: how their signals propagate, what their settings do.

python experiments/tools/study.py signal --models=resnet50,nf_resnet50
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
  'sweep': 'train one recipe with many settings and seeds, and compare',
}


def main(argv: list[str]) -> int:
  """Runs a study; returns its exit status.

  0 is success, 1 a failure, 2 a wrong command.
  """
  parser = argparse.ArgumentParser(
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
  args = parser.parse_args(argv[1:])
  return command_line.run(module.run, args)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
