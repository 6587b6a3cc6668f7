"""Trains and evaluates: from a config to a folder of results."""

from collections.abc import Callable
import dataclasses
import functools
import threading
import time
from typing import Any

from absl import flags, logging
import haiku as hk
import jax
from jaxline import train
import ml_collections
import numpy as np

from experiments import (
  checkpoints,
  defaults,
  hosts,
  jaxline_compat,
  loop,
  recipe,
  run_folder,
  screen,
  validation,
)
from experiments import step as step_lib
from nfnets import errors, paths

# Speed of the networks here on a CPU, as a part of that of matrix products.
_PART_OF_PEAK = 0.3


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  mode: str = 'train',
  command: str = '',
  make_steps: Callable[..., step_lib.CompiledSteps] = step_lib.make_compiled,
  experiment_class: type[loop.Experiment] = loop.Experiment,
) -> dict[str, Any]:
  """Train, evaluate, or both.

  Args:
    config: JAXline's; unset settings are set, also `training_steps`.
    mode: 'train', 'eval' or 'train_eval_multithreaded'.
    command: the command line, for the record.
    make_steps: `step.make_compiled`, or a `step.make_shared()` of several runs.
    experiment_class: the experiment.

  Returns:
    The last metrics and where the results are; `interrupted` where Ctrl-C ended
    training, and `had_ended` where the run had, and nothing was done.
  """
  if not flags.FLAGS.is_parsed():  # JAXline reads its own.
    flags.FLAGS.mark_as_parsed()
  ours, is_training = config.experiment_kwargs.config, mode != 'eval'
  where = {'checkpoint_dir': config.checkpoint_dir}
  if is_training and not jax.process_index():
    if paths.is_remote(config.checkpoint_dir):  # That leaves nothing behind.
      with errors.prefix(f'Could not write to {config.checkpoint_dir}'):
        paths.make_folder(config.checkpoint_dir)
  step = checkpoints.latest_step(paths.path(config.checkpoint_dir) / 'latest')
  goes_on = step is not None if is_training else not ours.weights
  begun = run_folder.read_info(config.checkpoint_dir) if goes_on else None
  if begun:
    defaults.restore_settings(ours, begun['settings'])
  if not is_training and ours.weights:
    ours.num_classes = None  # The dataset's, which may be some of the weights'.
  read = [ours.weights, None if ours.fake_data else ours.which_dataset]
  if any(read):
    logging.info('Opening %s.', ' and '.join(filter(None, read)))
  rng = jaxline_compat.init_rng(config)
  built = recipe.build(ours, rng, training_steps=config.training_steps)
  weights = None
  if ours.weights and (not is_training or step is None):
    weights = defaults.read_weights(built, is_training)
  if weights and not is_training:  # Without any folder of results.
    built = dataclasses.replace(built, model=recipe.create_model(ours))
    module = experiment_class('eval', rng, ours, built, weights=weights)
    metrics = module.evaluate(global_step=None, rng=None, writer=None)
    return {**metrics, 'weights': ours.weights}
  config.training_steps = config.training_steps or built.num_steps
  if built.privacy:
    built.privacy.limit_steps(config, begun, step or 0)
  folder = run_folder.RunFolder(config, built, command)
  if begun:
    folder.go_on(begun, step, is_training)
    if is_training and _has_ended(begun, config, step):
      files = ('report', 'report.html'), ('suspects', 'suspects.csv')
      for name, file in files if config.report else ():
        path = paths.path(config.checkpoint_dir) / file
        where |= {name: str(path)} if paths.is_file(path) else {}
      return {**begun['results'], **where, 'had_ended': True}
  logging.info(
    '%d steps of %d images (%d for training) on %s; results in %s',
    config.training_steps,
    ours.train_batch_size,
    built.num_examples,
    _describe_devices(),
    config.checkpoint_dir,
  )
  reporter = screen.Reporter(
    config.training_steps, ours.train_batch_size, built.privacy
  )
  jaxline_compat.log_train_metrics_with(reporter.log)
  make = functools.partial(
    experiment_class, recipe=built, reporter=reporter, make_steps=make_steps
  )
  if not is_training:
    return {**_evaluate(make, config, folder), **where}
  warn_of_cpu(built, config.training_steps - (step or 0))
  with hosts.Notice() as notice:
    make = functools.partial(make, notice=notice)
    make_training = functools.partial(make, weights=weights)
    folder.begin()
    if mode == 'train':
      last = _train_and_test(make_training, config, built, reporter, folder)
    else:
      last = _train_and_evaluate(
        make, make_training, config, reporter, notice, folder
      )
    if not last['stopped_by_sigterm']:
      folder.end(last)
      if config.report and built.builder and not jax.process_index():
        found = _report(config.checkpoint_dir)
        where |= {k: found.pop(k) for k in ('report', 'suspects') if k in found}
        last |= found
        folder.record(last)
    elif notice.is_interrupt:
      last |= {'stopped_by_sigterm': False, 'interrupted': True}
  return {**last, **where}


def _has_ended(begun: dict[str, Any], config: Any, step: int) -> bool:
  """Return whether a run with these settings has come to its end."""
  results = begun.get('results')
  if results is None:
    return False
  # With another patience it may go on.
  stops = results.get('stopped_early')
  stops = stops and begun['run']['patience'] == config.patience
  return stops or step >= config.training_steps


def _describe_devices() -> str:
  """Return such as '8 TPU v3 devices of 4 processes'."""
  number, kind = jax.device_count(), jax.devices()[0].device_kind
  devices = f'{number} {kind} device{"s" if number > 1 else ""}'
  if jax.process_count() == 1:
    return devices
  return f'{devices} of {jax.process_count()} processes'


def warn_of_cpu(built: recipe.Recipe, num_steps: int) -> None:
  """Log how long training will take, where that is hours on a CPU."""
  if jax.default_backend() != 'cpu':
    return
  config, model = built.config, built.model

  def count():
    kwargs = {**model.entry.kwargs, **model.overrides}
    network = model.entry.module(num_classes=model.num_classes, **kwargs)
    return network.count_flops(config.image_size, config.image_size)[1]

  # Each multiply-add is two operations, and the backward pass takes twice as
  # many as the forward pass.
  work = 6 * hk.transform(count).apply({}, None)
  work *= num_steps * config.train_batch_size * config.augmentation_multiplicity
  matrix = np.ones((1024, 1024), np.float32)
  matrix @ matrix  # The first takes longer.
  start = time.perf_counter()
  for _ in range(4):
    matrix @ matrix
  rate = 4 * 2 * len(matrix) ** 3 / (time.perf_counter() - start)
  hours = work / (_PART_OF_PEAK * rate * jax.process_count()) / 3600
  if hours > 1:
    logging.warning(
      'This trains on a CPU, where %d steps take about %s. For a GPU or TPU, '
      'install its build of JAX (./run.sh does); NAME:small in --config is a '
      'few steps of a small network, to look around.',
      num_steps,
      f'{hours / 8760:,.0f} years'
      if hours > 2 * 8760
      else f'{hours / 24:.0f} days'
      if hours > 48
      else f'{hours:.0f} hours',
    )


def _train_and_test(make, config, built, reporter, folder) -> dict[str, Any]:
  """Train, keep the weights to use, and measure them on the test split."""
  validates = config.evaluations > 0
  if validates:
    watch = validation.Validation(config, folder, built, reporter)
    make = functools.partial(make, validate=watch)
  try:
    last, module = _train(make, config, reporter)
  finally:
    if validates:
      watch.close()
  if validates:
    watch.save()
    if watch.stopped_early:
      last |= {'stopped_by_sigterm': False, 'stopped_early': True}
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
    last['best_step'] = folder.kept()['step']
  if validates or built.num_eval_examples('test') <= most:
    try:
      tested = module.test(weights)
    except hosts.StoppedError:
      return {**last, 'stopped_by_sigterm': True}
    if not validates:  # Validation has written its own points.
      prefix = 'eval_ema_' if built.config.use_ema else 'eval_'
      named = {k.replace('test_', prefix): v for k, v in tested.items()}
      writer = screen.Writer(config, 'eval')
      writer.write_scalars(last['step'], named)
      writer.finish()
    chosen = folder.has_best() and built.chooses_by_test
    last |= {**tested, 'test_split': built.test_split}
    last['test_chose_weights'] = chosen
  return last


def _report(folder: str) -> dict[str, Any]:
  """Write the page on a run; without it, the results are as good."""
  from nfnets.inference import report  # Brings matplotlib.

  try:
    found = report.write(folder)
    named = {f'test_{k}': v for k, v in found.items() if k[:5] == 'macro'}
    return {'report': found['output'], 'suspects': found['suspects'], **named}
  except (OSError, ValueError) as error:
    logging.warning('There is no report: %s', error)
    return {}


def _train(make, config, reporter) -> tuple[dict[str, Any], loop.Experiment]:
  """Return the last metrics, and what was trained."""
  checkpointer = checkpoints.OrbaxCheckpointer(config, 'train')
  writer = screen.Writer(config, 'train', reporter)
  logging.info('Initializing the network.')
  try:
    train.train(make, config, checkpointer, writer)
  finally:
    checkpointer.close()
    writer.finish()
  state = checkpointer.get_experiment_state('latest')
  step = int(state.global_step)
  last = {**writer.last, **reporter.known(step), **reporter.speed(step)}
  last |= {'step': step, 'stopped_by_sigterm': step < config.training_steps}
  return last, state.experiment_module


def _evaluate(make, config, folder, check_training=None) -> dict[str, Any]:
  checkpointer = checkpoints.OrbaxCheckpointer(
    config, 'eval', check_training, folder.keep_best
  )
  if check_training is None:
    # Before anything is made in a folder that may be a misspelt one.
    checkpointer.check_folder()
  writer = screen.Writer(config, 'eval')
  try:
    train.evaluate(make, config, checkpointer, writer, 'eval')
  except hosts.StoppedError:
    pass
  finally:
    checkpointer.close()
    writer.finish()
  return writer.last


def _train_and_evaluate(make, make_training, config, reporter, notice, folder):
  """Train in a thread and evaluate each new checkpoint in this one."""
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
      raise hosts.StoppedError

  evaluated = _evaluate(make, config, folder, check_training)
  thread.join()
  if failure:
    raise failure[0]
  return {**evaluated, **trained}
