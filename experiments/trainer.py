"""Our experiment for JAXline's launcher, which runs it as the command does.

`platform.main` keeps checkpoints in memory alone. Importing this module
replaces it: our experiment, or a subclass, gets the command's files, signals
and last line, and any other is run as JAXline runs it.
"""

import sys
from typing import Any

from absl import flags
from jaxline import platform, utils

from experiments import experiment
from experiments.loop import Experiment, NonFiniteError  # noqa: F401

# absl reads the line before the command does.
for _name in experiment.HOST_FLAGS:
  flags.DEFINE_string(_name, None, 'As in python experiments/experiment.py.')


@utils.debugger_fallback
def main(experiment_class: Any, argv: list[str], *args, **kwargs) -> int | None:
  """Run an experiment; return the exit status of ours.

  Args:
    experiment_class: `Experiment`, a subclass, or another experiment.
    argv: what absl left of the command line; ours reads all of it.
    *args: a function that makes checkpointers; JAXline then runs ours, too.
    **kwargs: the same.
  """
  is_ours = isinstance(experiment_class, type) and issubclass(
    experiment_class, Experiment
  )
  if not is_ours or args or kwargs:
    return _main(experiment_class, argv, *args, **kwargs)
  # The command reads its line itself, where absl takes no override twice.
  for name in list(flags.FLAGS):
    if name.startswith('config.'):
      delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  return experiment.main(sys.argv, experiment_class)


_main = platform.main
platform.main = main
