"""Trains and evaluates the networks of `nfnets` with JAXline.

python experiments/experiment.py --config=NAME [--SETTING=value ...]
"""

from collections.abc import Callable
import functools
import json
import pathlib
import shlex
import sys
import textwrap
import threading
import time
from typing import Any

from absl import flags, logging
import jax
from jaxline import train
import ml_collections

# The command works from a clone that is not installed, too.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import (
  checkpoint_files,
  checkpoints,
  command_line,
  compilation_cache,
  configs,
  derived,
  help_text,
  initial_weights,
  jaxline_compat,
  preemption,
  privacy,
  processes,
  programs,
  progress,
  recipe,
  run_folder,
  summary,
  trainer,
)
from nfnets import paths
from nfnets import weights as weights_lib
from nfnets.data import dataset

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
  --jaxline_mode=MODE  train (the default), eval, or train_eval_multithreaded
  --coordinator_address=HOST:PORT --num_processes=N --process_id=I
                       for several hosts: the address of process 0, the same
                       for all, and the number of each, from 0. TPU pods, Slurm
                       and Open MPI tell these by themselves.

With --weights=W training starts from weights, and eval evaluates these, once,
and no checkpoint. W is a file, a run's folder or a name, such as nfnet_f0;
--config=finetune --data=DIR --weights=nfnet_f0 fine-tunes it on pictures.

Running the same command again continues from the last checkpoint. SIGTERM has
training save and end; a second one ends it at once. The last line of standard
output is JSON; everything else goes to standard error.

{settings}"""

# Errors whose message says it all.
_EXPECTED = (
  checkpoints.CheckpointError,
  dataset.DatasetError,
  derived.WeightsError,
  recipe.ConfigError,
  trainer.NonFiniteError,
)
_MODES = ('train', 'eval', 'train_eval_multithreaded')


def main(argv: list[str]) -> int:
  """Runs the command; returns its exit status.

  0 is success, 1 a failure, 2 a wrong command.
  """
  if '--help' in argv or '-h' in argv:
    names = textwrap.fill(', '.join(configs.names()), 54)
    names = textwrap.indent(names, ' ' * 23)
    settings = help_text.explain_settings(argv)
    help_text.show(_USAGE.format(names=names, settings=settings))
    return 0
  progress.set_up_logging()
  try:
    name, config = command_line.parse(argv)
    mode = flags.FLAGS.jaxline_mode
    _check_mode(config, mode)
    processes.join()
  except ValueError as error:
    return processes.fail(error, 2)
  except checkpoints.CheckpointError as error:
    return processes.fail(error, 1)
  if config.compile_quickly:
    jax.config.update('jax_disable_most_optimizations', True)
  if config.compilation_cache:
    compilation_cache.enable()
  start = time.monotonic()
  try:
    results = run(config, mode, f'python {shlex.join(argv)}')
  except _EXPECTED as error:
    # A wrong setting is a wrong command.
    is_usage = isinstance(error, recipe.ConfigError)
    return processes.fail(error, 2 if is_usage else 1)
  except KeyboardInterrupt:
    return processes.fail('interrupted; the last checkpoint is kept', 130)
  except Exception as error:
    if not jax.distributed.is_initialized():
      raise
    return processes.fail(processes.describe_failure(error), 1)
  results = {'config': name, 'mode': mode, **results}
  if jax.process_index() == 0:
    seconds = time.monotonic() - start
    text = summary.describe(argv, config, results, seconds)
    print(f'\n{text}', file=sys.stderr)
    print(json.dumps(results), flush=True)
  return 0


def run(
  config: ml_collections.ConfigDict,
  mode: str,
  command: str = '',
  make_programs: Callable[..., programs.Programs] = programs.make,
) -> dict[str, Any]:
  """Trains, evaluates, or both.

  Args:
    config: JAXline's; `training_steps` of 0 is set to the recipe's.
    mode: 'train', 'eval' or 'train_eval_multithreaded'.
    command: the command line, for the record.
    make_programs: `programs.make`, or a `programs.Shared` of several runs.

  Returns:
    The last metrics and where the results are.
  """
  ours = config.experiment_kwargs.config
  if mode != 'eval' and jax.process_index() == 0:
    run_folder.check_bucket(config.checkpoint_dir)
  begun = run_folder.read_info(config.checkpoint_dir)
  if begun and _has_checkpoint(config):
    derived.recall(ours, begun['settings'])
  built = recipe.build(ours, jaxline_compat.init_rng(config))
  if mode == 'eval' and ours.weights:
    return _evaluate_weights(config, built)
  weights = None
  if mode != 'eval':
    weights = _weights_to_start_from(config, built)
  if not config.training_steps:
    config.training_steps = built.num_steps
  _plan_privacy(config, built, begun)
  logging.info(
    '%d steps of %d images (%d for training) on %d %s device(s) of %d '
    'process(es); results in %s',
    config.training_steps,
    ours.train_batch_size,
    built.num_examples,
    jax.device_count(),
    jax.devices()[0].device_kind,
    jax.process_count(),
    config.checkpoint_dir,
  )
  folder = run_folder.RunFolder(config, built, command)
  reporter = progress.Reporter(
    config.training_steps, ours.train_batch_size, built.privacy
  )
  jaxline_compat.log_train_metrics_with(reporter.log)
  make = functools.partial(
    trainer.Experiment,
    recipe=built,
    reporter=reporter,
    make_programs=make_programs,
  )
  if mode == 'eval':
    last = _evaluate(make, config, folder)
  else:
    with preemption.Notice() as notice:
      make = functools.partial(make, notice=notice)
      if mode == 'train':
        make = functools.partial(make, weights=weights)
        last = _train_and_test(make, config, built, reporter, folder)
      else:
        folder.begin()
        make_training = functools.partial(make, weights=weights)
        last = _train_and_evaluate(
          make, make_training, config, reporter, notice, folder
        )
  return {**last, 'checkpoint_dir': config.checkpoint_dir}


def _evaluate_weights(config, built) -> dict[str, Any]:
  """Evaluates the file of weights, without any folder of results."""
  ours = config.experiment_kwargs.config
  weights = initial_weights.read(built, is_training=False)
  if _has_checkpoint(config):
    logging.info(
      'The checkpoints in %s are not evaluated; for these, leave out weights.',
      config.checkpoint_dir,
    )
  module = trainer.Experiment(
    'eval', jaxline_compat.init_rng(config), ours, built, weights=weights
  )
  metrics = module.evaluate(global_step=None, rng=None, writer=None)
  return {**metrics, 'weights': ours.weights}


def _weights_to_start_from(config, built) -> weights_lib.Weights | None:
  """Reads the file of weights, unless there is a checkpoint to go on from."""
  ours = config.experiment_kwargs.config
  if not ours.weights:
    return None
  if not _has_checkpoint(config):
    return initial_weights.read(built, is_training=True)
  logging.info(
    'There is a checkpoint in %s, so training goes on from there and not from '
    '%s. To start from that again, choose another --checkpoint_dir.',
    config.checkpoint_dir,
    ours.weights,
  )
  return None


def _has_checkpoint(config) -> bool:
  return _last_checkpoint(config) is not None


def _last_checkpoint(config) -> int | None:
  folder = paths.path(config.checkpoint_dir) / 'latest'
  return checkpoint_files.latest_step(folder)


def _plan_privacy(config, built, begun) -> None:
  """Has training end where its budget of privacy does."""
  wanted = config.training_steps
  try:
    privacy.plan(config, built.privacy, begun, _last_checkpoint(config) or 0)
  except ValueError as error:
    raise recipe.ConfigError(str(error)) from error
  if config.training_steps < wanted:
    logging.info(
      'The budget of epsilon, %g, is spent after %d of %d steps.',
      built.privacy.budget,
      config.training_steps,
      wanted,
    )


def _train_and_test(make, config, built, reporter, folder) -> dict[str, Any]:
  """Trains, keeps the weights to use, and measures them on the test split."""
  folder.begin()
  validates = config.evaluations > 0
  if validates:
    validation = run_folder.Validation(config, folder)
    make = functools.partial(make, validate=validation)
  try:
    last, module = _train(make, config, reporter)
  finally:
    if validates:
      validation.close()
  if validates:
    validation.finish()
  if last['stopped_by_sigterm']:
    return last
  most = config.test_at_end
  if built.builder is None:  # Large batches of random images are not worth it.
    most = min(most, 100)
  weights = module.weights()
  if not folder.has_best():
    folder.keep(weights, last['step'])
  elif validates:
    weights = folder.kept_weights()
  if validates or built.num_eval_examples('test') <= most:
    tested = _test(module, weights, config, built, last['step'])
    last = {**last, **tested}
  folder.end(last)
  if config.report and not jax.process_index():
    last = {**last, **_report(config.checkpoint_dir)}
  return last


def _report(folder: str) -> dict[str, str]:
  """Writes the page on a run; without it, the results are as good."""
  from nfnets.inference import report  # Brings matplotlib.

  try:
    return {'report': report.write(folder)}
  except (OSError, ValueError) as error:
    logging.warning('There is no report: %s', error)
    return {}


def _train(make, config, reporter) -> tuple[dict[str, Any], trainer.Experiment]:
  """Returns the last metrics, and what was trained."""
  checkpointer = checkpoints.OrbaxCheckpointer(config, 'train')
  writer = progress.Writer(config, 'train', reporter)
  try:
    train.train(make, config, checkpointer, writer)
  finally:
    checkpointer.close()
    writer.finish()
  state = checkpointer.get_experiment_state('latest')
  step = int(state.global_step)
  stopped = step < config.training_steps
  last = {**writer.last, **reporter.known(step)}
  last = {**last, 'step': step, 'stopped_by_sigterm': stopped}
  return last, state.experiment_module


def _test(module, weights, config, built, step: int) -> dict[str, Any]:
  """Measures weights on the test split, or on what there is in its place."""
  try:
    metrics = module.test(weights)
  except preemption.StoppedError:
    return {}
  if not config.evaluations:  # Whose points make a curve already.
    use_ema = config.experiment_kwargs.config.use_ema
    prefix = 'eval_ema_' if use_ema else 'eval_'
    named = {k.replace('test_', prefix): v for k, v in metrics.items()}
    writer = progress.Writer(config, 'eval')
    writer.write_scalars(step, named)
    writer.finish()
  return {**metrics, 'test_split': built.test_split}


def _evaluate(make, config, folder, check_training=None) -> dict[str, Any]:
  checkpointer = checkpoints.OrbaxCheckpointer(
    config, 'eval', check_training, folder.keep_best
  )
  if check_training is None:
    # Before anything is made in a folder that may be a misspelt one.
    checkpointer.check_folder()
  writer = progress.Writer(config, 'eval')
  try:
    train.evaluate(make, config, checkpointer, writer, 'eval')
  except preemption.StoppedError:
    pass
  finally:
    checkpointer.close()
    writer.finish()
  return writer.last


def _train_and_evaluate(make, make_training, config, reporter, notice, folder):
  """Trains in a thread and evaluates each new checkpoint in this one."""
  trained, failure = {}, []

  def target():
    try:
      trained.update(_train(make_training, config, reporter)[0])
    except BaseException as error:
      failure.append(error)

  # A daemon, so that a failure of evaluation ends the program as well.
  thread = threading.Thread(target=target, name='train', daemon=True)
  thread.start()

  def check_training():
    if notice.is_set() or not thread.is_alive():
      raise preemption.StoppedError

  evaluated = _evaluate(make, config, folder, check_training)
  thread.join()
  if failure:
    raise failure[0]
  return {**evaluated, **trained}


def _check_mode(config, mode: str) -> None:
  """Raises UsageError where it is unclear, or not what would be evaluated."""
  if mode not in _MODES:
    raise command_line.UsageError(
      f'--jaxline_mode is {mode!r}; it must be one of {", ".join(_MODES)}.'
    )
  weights = config.experiment_kwargs.config.weights
  if mode == 'eval' and weights:
    if command_line.is_given('checkpoint_dir') and _has_checkpoint(config):
      raise command_line.UsageError(
        f'Evaluate either the checkpoints of {config.checkpoint_dir} or '
        f'{weights}: leave out --weights or --checkpoint_dir.'
      )
  elif config.eval_initial_weights:
    raise command_line.UsageError(
      'eval_initial_weights is for the weights of a file: it needs '
      '--jaxline_mode=eval and --weights=FILE.'
    )


if __name__ == '__main__':
  sys.exit(main(sys.argv))
