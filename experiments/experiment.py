"""Trains and evaluates the networks of `nfnets` with JAXline.

python experiments/experiment.py --config=NAME [--SETTING=value ...]
"""

import glob
import os
import pathlib
import shlex
import sys
import textwrap
import time
from typing import Any

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import command_line, configs
from nfnets import finite_json, paths
from nfnets.errors import UserError
from nfnets.inference import command_line as commands

_USAGE = """\
usage: python experiments/experiment.py --config=NAME [options]

  --config=NAME        a recipe, or the path of a config file; recipes:
{names}
                       NAME:small is a few steps of a small network on random
                       images, to look around.
  --data=DIR           the pictures: a folder with a folder for each class, or
                       the name of a dataset of TFDS.
  --SETTING=VALUE      another value of a setting, such as
                       --training_steps=1000 --train_batch_size=256
                       --checkpoint_dir=/data/runs/f0 --weights=F0_haiku.npz
                       --lr_schedule.warmup_epochs=1; all of them stand below.
                       None is unset.
  --jaxline_mode=MODE  train (the default), eval, or train_eval_multithreaded
  --coordinator_address=HOST:PORT --num_processes=N --process_id=I
                       for several hosts: the address of process 0, the same
                       for all, and the number of each, from 0. TPU pods, Slurm
                       and Open MPI tell these by themselves.

With --weights=W training starts from weights, and eval evaluates these, once,
and no checkpoint. W is a file, a run's folder or a name, such as nfnet_f0;
--config=finetune --data=DIR --weights=nfnet_f0 fine-tunes it on pictures.

Running the same command again continues from the last checkpoint; settings that
change the result must then be the same, unless --change_settings allows others.
Ctrl-C or SIGTERM has training save and end; a second one ends it at once. The
last line of standard output is JSON; everything else goes to standard error.

{settings}"""

HOST_FLAGS = ('coordinator_address', 'num_processes', 'process_id')
_MODES = ('train', 'eval', 'train_eval_multithreaded')


def main(argv: list[str], experiment_class: type | None = None) -> int:
  """Run the command; return its exit status.

  0 is success, 1 a failure, 2 a wrong command, and 130 Ctrl-C.

  Args:
    argv: the program's name, and its arguments.
    experiment_class: the experiment. None: `trainer.Experiment`.
  """
  if '--help' in argv or '-h' in argv:
    return _show_help(argv)
  parser = _parser()
  try:
    args, rest = parser.parse_known_args(argv[1:])
    name, config = command_line.parse([argv[0], *rest], parser)
    _check_mode(argv, config, args.jaxline_mode)
    command_line.check_exist(config)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return error.status
  print('Loading TensorFlow and JAX.', file=sys.stderr, flush=True)
  # They take seconds; a mistake is answered before that.
  import jax

  from experiments import hosts, screen, train

  screen.set_up_logging()
  mode, start = args.jaxline_mode, time.monotonic()
  try:
    hosts.join(**{key: getattr(args, key) for key in HOST_FLAGS})
    if args.jaxline_ensure_tpu and jax.default_backend() != 'tpu':
      raise UserError('There is no TPU, which --jaxline_ensure_tpu asks for.')
    jax.config.update('jax_disable_most_optimizations', config.compile_quickly)
    if config.compilation_cache:
      hosts.keep_compiled_programs()
    results = train.train_and_evaluate(
      *(config, mode, f'python {shlex.join(argv)}'),
      **({'experiment_class': experiment_class} if experiment_class else {}),
    )
  except UserError as error:
    return hosts.fail(error, error.status)
  except KeyboardInterrupt:
    return hosts.fail('interrupted', 130)
  except Exception as error:
    if not jax.distributed.is_initialized():
      raise
    return hosts.fail(hosts.describe_failure(error), 1)
  had_ended = results.pop('had_ended', False)
  results = {'config': name, 'mode': mode, **results}
  if jax.process_index() == 0:
    seconds = None if had_ended else time.monotonic() - start
    text = screen.describe_end(argv, config, results, seconds)
    print(f'\n{text}', file=sys.stderr)
    status = finite_json.print_results(results)
    if status:
      return status
  return 130 if results.get('interrupted') else 0


def _parser() -> commands.Parser:
  """Return the parser of the options that are no settings."""
  parser = commands.Parser(add_help=False, allow_abbrev=False)
  parser.add_argument('--jaxline_mode', default='train')
  parser.add_argument('--jaxline_ensure_tpu', action='store_true')
  parser.add_argument('--coordinator_address')
  parser.add_argument('--num_processes', type=commands.positive)
  parser.add_argument('--process_id', type=int)
  return parser


def _show_help(argv: list[str]) -> int:
  names = textwrap.indent(
    textwrap.fill(', '.join(configs.names()), 54), ' ' * 23
  )
  settings = command_line.explain_settings(argv)
  try:
    print(_USAGE.format(names=names, settings=settings), flush=True)
  except BrokenPipeError:  # `--help | head` closes the pipe.
    # Python flushes once more at its end, and would fail then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0


def _check_mode(argv: list[str], config: Any, mode: str) -> None:
  """Raise UserError where a mode does not exist, or nothing is evaluated."""
  if mode not in _MODES:
    raise UserError(
      f'--jaxline_mode is {mode!r}; it must be one of {", ".join(_MODES)}.', 2
    )
  if mode == 'train_eval_multithreaded' and config.patience:
    raise UserError(
      'patience is for --jaxline_mode=train, where training evaluates itself.',
      2,
    )
  weights = config.experiment_kwargs.config.weights
  folder = config.checkpoint_dir
  if mode == 'eval' and weights:
    names = '--checkpoint_dir', '--config.checkpoint_dir'
    is_given = any(arg.partition('=')[0] in names for arg in argv)
    if is_given and glob.glob(f'{glob.escape(folder)}/latest/[0-9]*'):
      raise UserError(
        f'Evaluate either the checkpoints of {folder} or {weights}: leave out '
        '--weights or --checkpoint_dir.',
        2,
      )
  elif config.eval_initial_weights:
    raise UserError(
      'eval_initial_weights is for the weights of a file: it needs '
      '--jaxline_mode=eval and --weights=FILE.',
      2,
    )
  elif mode == 'eval' and not (
    paths.is_remote(folder) or os.path.isdir(folder)
  ):
    raise UserError(f'No checkpoint in {folder}/latest: there is no {folder}.')


if __name__ == '__main__':
  sys.exit(main(sys.argv))
