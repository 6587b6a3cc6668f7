"""The command: reads the flags, runs JAXline, and ends with a line of JSON."""

import functools
import json
import logging as stdlib_logging
import os
import pathlib
import sys
import textwrap
import threading
from typing import Any
import warnings

from absl import flags, logging
import jax
from jaxline import base_config, train
import ml_collections

from experiments import (
  checkpoint_files,
  checkpoints,
  configs,
  experiment,
  initial_weights,
  jaxline_compat,
  preemption,
  progress,
  settings,
)
from nfnets import weights as weights_lib
from nfnets.data import dataset

_USAGE = """\
usage: python experiments/experiment.py --config=NAME [options]

  --config=NAME        a recipe, or the path of a config file; recipes:
{names}
  --config.KEY=VALUE   another value of a setting, such as
                       --config.training_steps=1000
                       --config.checkpoint_dir=/data/runs/f0
                       --config.experiment_kwargs.config.train_batch_size=256
  --jaxline_mode=MODE  train (the default), eval, or train_eval_multithreaded
  --coordinator_address=HOST:PORT --num_processes=N --process_id=I
                       for several hosts: the address of process 0, the same
                       for all, and the number of each, from 0. TPU pods, Slurm
                       and Open MPI tell these by themselves.

With --config.experiment_kwargs.config.weights=FILE training starts from the
weights of a file, and eval evaluates these, once, and no checkpoint.

Running the same command again continues from the last checkpoint. SIGTERM has
training save and end; a second one ends it at once. The last line of standard
output is JSON; everything else goes to standard error.
"""

_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'host:port of process 0, for several hosts.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes there are.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'The number of this process, from 0.', lower_bound=0
)

# Seconds after which a host that is not heard of counts as lost.
_HEARTBEAT_TIMEOUT = 60
# Errors whose message says it all.
_EXPECTED = (
  checkpoints.CheckpointError,
  dataset.DatasetError,
  experiment.NonFiniteError,
  initial_weights.WeightsError,
  settings.ConfigError,
)
_MODES = ('train', 'eval', 'train_eval_multithreaded')


class UsageError(ValueError):
  """The command line is wrong."""


def main(argv: list[str]) -> int:
  """Runs the command; returns its exit status.

  0 is success, 1 a failure, 2 a wrong command.
  """
  if '--help' in argv or '-h' in argv:
    print(_usage(), file=sys.stderr)
    return 0
  _set_up_logging()
  try:
    name, config, mode = parse(argv)
    _join_other_processes()
  except UsageError as error:
    return _fail(error, 2)
  try:
    results = run(config, mode)
  except _EXPECTED as error:
    # A wrong setting is a wrong command.
    return _fail(error, 2 if isinstance(error, settings.ConfigError) else 1)
  except KeyboardInterrupt:
    return _fail('interrupted; the last checkpoint is kept', 130)
  except Exception as error:  # pylint: disable=broad-except
    if not jax.distributed.is_initialized():
      raise
    return _fail(_of_several_processes(error), 1)
  results = {'config': name, 'mode': mode, **results}
  if jax.process_index() == 0:
    print(json.dumps(results), flush=True)
  return 0


def run(config: ml_collections.ConfigDict, mode: str) -> dict[str, Any]:
  """Trains, evaluates, or both.

  Args:
    config: JAXline's; `training_steps` of 0 is set to the recipe's.
    mode: 'train', 'eval' or 'train_eval_multithreaded'.

  Returns:
    The last metrics and where the results are.
  """
  ours = config.experiment_kwargs.config
  num_examples = settings.check(ours)
  if mode == 'eval' and ours.weights:
    return _evaluate_weights(config)
  weights = _weights_to_start_from(config) if ours.weights else None
  if not config.training_steps:
    images = ours.num_epochs * num_examples
    config.training_steps = max(1, int(images / ours.train_batch_size))
  logging.info(
    '%d steps of %d images (%d for training) on %d %s device(s) of %d '
    'process(es); results in %s',
    config.training_steps,
    ours.train_batch_size,
    num_examples,
    jax.device_count(),
    jax.devices()[0].device_kind,
    jax.process_count(),
    config.checkpoint_dir,
  )
  reporter = progress.Reporter(config.training_steps, ours.train_batch_size)
  jaxline_compat.log_train_metrics_with(reporter.log)
  experiment_class = functools.partial(experiment.Experiment, reporter=reporter)
  if mode == 'eval':
    last = _evaluate(experiment_class, config)
  else:
    train = _train if mode == 'train' else _train_and_evaluate
    with preemption.Notice() as notice:
      experiment_class = functools.partial(
        experiment_class, notice=notice, weights=weights
      )
      last = train(experiment_class, config, reporter, notice)
  return {**last, 'checkpoint_dir': config.checkpoint_dir}


def _evaluate_weights(config) -> dict[str, Any]:
  """Evaluates the file of weights, without any folder of results."""
  ours = config.experiment_kwargs.config
  weights = initial_weights.read(ours, is_training=False)
  if _has_checkpoint(config):
    logging.info(
      'The checkpoints in %s are not evaluated; for these, leave out weights.',
      config.checkpoint_dir,
    )
  module = experiment.Experiment(
    'eval',
    jax.random.PRNGKey(config.random_seed),
    ours,
    weights=weights,
  )
  metrics = module.evaluate(global_step=None, rng=None, writer=None)
  return {**metrics, 'weights': ours.weights}


def _weights_to_start_from(config) -> weights_lib.Weights | None:
  """Reads the file of weights, unless there is a checkpoint to go on from."""
  ours = config.experiment_kwargs.config
  if not _has_checkpoint(config):
    return initial_weights.read(ours, is_training=True)
  logging.info(
    'There is a checkpoint in %s, so training goes on from there and not from '
    '%s. To start from that again, choose another --config.checkpoint_dir.',
    config.checkpoint_dir,
    ours.weights,
  )
  return None


def _has_checkpoint(config) -> bool:
  folder = pathlib.Path(config.checkpoint_dir) / 'latest'
  return checkpoint_files.latest_step(folder) is not None


def _train(experiment_class, config, reporter, notice) -> dict[str, Any]:
  checkpointer = checkpoints.OrbaxCheckpointer(config, 'train')
  writer = progress.Writer(config, 'train', reporter)
  try:
    train.train(experiment_class, config, checkpointer, writer)
  finally:
    checkpointer.close()
  step = int(checkpointer.get_experiment_state('latest').global_step)
  stopped = step < config.training_steps
  if stopped:
    logging.info(
      'Ended at step %d of %d as asked, and saved. Run the same command to go '
      'on.',
      step,
      config.training_steps,
    )
  return {**writer.last, 'step': step, 'stopped_by_sigterm': stopped}


def _evaluate(experiment_class, config, check_training=None) -> dict[str, Any]:
  checkpointer = checkpoints.OrbaxCheckpointer(config, 'eval', check_training)
  if check_training is None:
    # Before anything is made in a folder that may be a misspelt one.
    checkpointer.check_folder()
  writer = progress.Writer(config, 'eval')
  try:
    train.evaluate(experiment_class, config, checkpointer, writer, 'eval')
  except preemption.StoppedError:
    pass
  finally:
    checkpointer.close()
  return writer.last


def _train_and_evaluate(
  experiment_class, config, reporter, notice
) -> dict[str, Any]:
  """Trains in a thread and evaluates each new checkpoint in this one."""
  trained, failure = {}, []

  def target():
    try:
      trained.update(_train(experiment_class, config, reporter, notice))
    except BaseException as error:  # pylint: disable=broad-except
      failure.append(error)

  # A daemon, so that a failure of evaluation ends the program as well.
  thread = threading.Thread(target=target, name='train', daemon=True)
  thread.start()

  def check_training():
    if notice.is_set() or not thread.is_alive():
      raise preemption.StoppedError

  evaluated = _evaluate(
    functools.partial(experiment_class, weights=None), config, check_training
  )
  thread.join()
  if failure:
    raise failure[0]
  return {**evaluated, **trained}


def _join_other_processes() -> None:
  """Connects the processes of a run, if there are several.

  Raises:
    UsageError: if the flags do not say which.
  """
  flags_given = {
    'coordinator_address': _COORDINATOR.value,
    'num_processes': _NUM_PROCESSES.value,
    'process_id': _PROCESS_ID.value,
  }
  given = {k: v for k, v in flags_given.items() if v is not None}
  # It would take SIGTERM to itself.
  jax.config.update('jax_enable_preemption_service', False)
  with warnings.catch_warnings():
    # In a Kubernetes pod, of a package that this run may well not need.
    warnings.simplefilter('ignore')
    try:
      jax.distributed.initialize(
        **given, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT
      )
    except ValueError as error:
      # Without an address there is no cluster, and without flags either this
      # is a single process. Anything else must not train as one by mistake.
      if given or 'coordinator_address' not in str(error):
        flags_text = ', '.join(
          f'--{key}={value}' for key, value in given.items()
        )
        raise UsageError(
          f'{flags_text or "The cluster"}: {error} Several processes need '
          '--coordinator_address=HOST:PORT, --num_processes and --process_id '
          '(from 0), where the cluster does not tell them by itself.'
        ) from error


def _of_several_processes(error: Exception) -> str:
  """Describes what may be the end of another process; logs it in full."""
  logging.error('%s', error, exc_info=error)
  return (
    f'process {jax.process_index()} of {jax.process_count()} cannot go on: '
    f'{str(error).splitlines()[0][:300]}\nIf this names a connection, another '
    'process has ended; its own messages say why. Start all of them again to '
    'go on from the last checkpoint.'
  )


def parse(argv: list[str]) -> tuple[str, ml_collections.ConfigDict, str]:
  """Returns the config's name, the config and the mode.

  Raises:
    UsageError: for anything that the command line has wrong.
  """
  name, args = None, [argv[0]]
  for i, arg in enumerate(argv[1:], start=1):
    if arg == '--config' and i + 1 < len(argv):
      raise UsageError(f'Write --config={argv[i + 1]}, with an equals sign.')
    if arg.startswith('--config='):
      name = arg.removeprefix('--config=')
      try:
        arg = f'--config={configs.find(name)}'
      except ValueError as error:
        raise UsageError(str(error)) from error
    args.append(arg)
  if name is None:
    raise UsageError(f'--config is missing.\n\n{_usage()}')
  try:
    rest = flags.FLAGS(args)[1:]
  except (AttributeError, KeyError) as error:
    # ml_collections says no more than the name.
    key = str(error).strip('"\'')
    raise UsageError(
      f'The config has no setting {key!r}. It has:\n{configs.load(name)}'
    ) from error
  except (flags.Error, TypeError, ValueError) as error:
    raise UsageError(str(error)) from error
  if rest:
    raise UsageError(f'Unknown arguments: {" ".join(rest)}')
  config = flags.FLAGS.config
  mode = flags.FLAGS.jaxline_mode
  if mode not in _MODES:
    raise UsageError(
      f'--jaxline_mode is {mode!r}; it must be one of {", ".join(_MODES)}.'
    )
  try:
    base_config.validate_config(config)
  except ValueError as error:
    raise UsageError(str(error)) from error
  if not config.get('checkpoint_dir'):
    path, _, argument = name.partition(':')
    run_name = '_'.join(filter(None, (pathlib.Path(path).stem, argument)))
    config.checkpoint_dir = f'runs/{run_name}'
  _check_what_to_evaluate(config, mode)
  return name, config, mode


def _check_what_to_evaluate(config, mode) -> None:
  """Raises UsageError where it is unclear, or not what would be evaluated."""
  weights = config.experiment_kwargs.config.weights
  if mode == 'eval' and weights:
    if 'config.checkpoint_dir' in flags.FLAGS and _has_checkpoint(config):
      raise UsageError(
        f'Evaluate either the checkpoints of {config.checkpoint_dir} or '
        f'{weights}: leave out weights or --config.checkpoint_dir.'
      )
  elif config.eval_initial_weights:
    raise UsageError(
      'eval_initial_weights is for the weights of a file: it needs '
      '--jaxline_mode=eval and --config.experiment_kwargs.config.weights=FILE.'
    )


def _usage() -> str:
  """Returns the help text, with the names of the recipes in lines."""
  names = textwrap.fill(', '.join(configs.names()), 54)
  return _USAGE.format(names=textwrap.indent(names, ' ' * 23))


def _fail(error: Any, status: int) -> int:
  print(f'error: {error}', file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    # An orderly end would wait for the other processes, which wait for this
    # one; without it they notice within two minutes, and end too.
    os._exit(status)
  return status


def _set_up_logging() -> None:
  """Logs to standard error, without what libraries tell of their workings."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    stdlib_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
  )

  def is_ours(record: stdlib_logging.LogRecord) -> bool:
    if 'orbax' in record.pathname:
      return False  # Its errors are raised, too.
    is_library = 'site-packages' in record.pathname
    return record.levelno > stdlib_logging.INFO or not is_library

  handler.addFilter(is_ours)

  def excepthook(kind, error, traceback):
    # TensorStore's threads say so of every array that they could not write.
    if str(error) != 'Event loop is closed':
      sys.__excepthook__(kind, error, traceback)

  sys.excepthook = excepthook
