"""Tests of what a run shows: a bar on a terminal, and a summary at its end."""

import contextlib
import io
import logging as stdlib_logging
import pathlib
import re
import shlex
import shutil
import sys
import types

from absl import flags, logging
import command_lib
import jax
import numpy as np
import pytest

from experiments import (
  command_line,
  configs,
  recipe,
  screen,
  train,
)
import nfnets
from nfnets import weights as weights_lib

_ROOT = pathlib.Path(__file__).parents[2]


class _Terminal(io.StringIO):
  def isatty(self):
    return True

  def lines(self):
    """Returns what is on the screen."""
    shown = []
    for line in self.getvalue().split('\n'):
      screen = ''
      for part in line.split('\r'):
        screen = part + screen[len(part) :]
      shown.append(screen.rstrip())
    return shown


def test_curves_are_in_the_folder_of_the_checkpoints(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  screen.Writer(types.SimpleNamespace(checkpoint_dir='~/rr'), 'train')
  assert [x.name for x in (tmp_path / 'rr').iterdir()] == ['train']
  assert not any((tmp_path / 'here').iterdir())


@pytest.fixture
def clock(monkeypatch):
  """A list with the time in seconds, which tests set."""
  now = [100.0]
  monkeypatch.setattr(screen.time, 'monotonic', lambda: now[0])
  return now


def test_speed_is_that_of_all_steps_or_since_the_last_line(clock):
  reporter = screen.Reporter(1000, batch_size=8)

  def images_per_second(step, time, reports='log'):
    clock[0] = time
    return reporter.speed(step, reports).get('images_per_second')

  assert images_per_second(1, 100.0) is None  # Still compiling.
  reporter.start_clock(1)
  assert images_per_second(1, 100.0) is None
  assert images_per_second(3, 100.5) == pytest.approx(8 * 2 / 0.5)
  assert images_per_second(11, 102) == pytest.approx(8 * 10 / 2)
  # Not of these few steps alone: they took no second.
  assert images_per_second(13, 102.01) == pytest.approx(8 * 12 / 2.01)
  # The curves have an interval of their own.
  assert images_per_second(13, 102.01, 'curves') == pytest.approx(8 * 12 / 2.01)
  assert images_per_second(31, 104) == pytest.approx(8 * 20 / 2)
  assert images_per_second(31, 104.0, '') == pytest.approx(8 * 30 / 4)
  assert reporter.speed(501, '')['seconds_left'] == pytest.approx(
    499 / (500 / 4)
  )


def test_the_bar_ends_full_and_log_lines_stand_by_themselves(
  monkeypatch, clock
):
  monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
  reporter = screen.Reporter(40, batch_size=8)
  reporter.start_clock(10)
  clock[0] += 5.0
  metrics = {'train_loss': 2.5, 'top_1_acc': 0.987, 'data_wait': 0.87}
  flags.FLAGS.mark_as_parsed()  # As the command does.
  with contextlib.redirect_stderr(_Terminal()) as terminal:
    screen.set_up_logging()
    assert reporter.start_bar(10)
    reporter._bar.ncols, reporter._bar.dynamic_ncols = 80, None
    reporter.update_bar(30, metrics)
    logging.info('a line of the log')
    reporter.log(20, metrics)  # The bar says it.
    reporter.close(40)
  lines = terminal.lines()
  assert [x[9:] for x in lines if 'line of the log' in x] == [
    'a line of the log'
  ]
  (bar,) = [x for x in lines if '%|' in x]
  assert bar.startswith('100%') and ' 40/40 ' in bar
  assert 'images/s 32 waiting 87%' in bar
  assert not any('step 20/40' in x for x in lines)


@pytest.mark.parametrize(
  'name, settings, warned',
  [
    ('f0', {}, ' years. For a GPU'),
    ('f0', {'backend': 'tpu'}, ''),
    ('f0:small', {}, ''),
    ('digits', {}, ''),
  ],
)
def test_training_for_hours_on_a_cpu_says_how_long_it_takes(
  name, settings, warned, caplog, monkeypatch
):
  backend = settings.get('backend', 'cpu')
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  ours = configs.load(name).experiment_kwargs.config
  ours.fake_data = True
  built = recipe.build(ours, jax.random.key(0))
  steps = configs.load(name).training_steps or 112_602
  train.warn_of_cpu(built, steps if 'f0' in name else 449)
  assert warned in caplog.text and bool(caplog.text) == bool(warned)


def _argv(line, command):
  """Returns the arguments of a command that is shown, whose file exists."""
  program, file, *args = shlex.split(line.partition(': ')[2])
  assert program == 'python' and file == command
  assert (_ROOT / file).is_file()
  return args


def test_the_summary_of_training_names_commands_that_work(
  straight, evaluated, run_command, tmp_path
):
  folder, result = straight
  copy = shutil.copytree(folder, tmp_path / 'run')
  lines = result.log[result.log.index('Trained to step 6 in 0:') :].splitlines()
  assert re.fullmatch(r'Trained to .*, \d+ images per second\.', lines[0])
  assert f'Results: {folder} (checkpoints, TensorBoard curves)' in lines

  (line,) = [x for x in lines if x.startswith('Evaluate: ')]
  line = line.replace(str(folder), str(copy))
  again = run_command(*_argv(line, 'experiments/experiment.py'))
  assert again.status == 0, again.log
  assert again.json['eval_loss'] == evaluated[1].json['eval_loss']
  assert re.search(r'\nEvaluated in 0:\d\d:\d\d\.\nAccuracy: ', again.log)
  best = again.json['eval_top_1_acc']
  assert f'Best eval_top_1_acc so far: {best:.4g}, at step 6' in again.log
  assert weights_lib.read_metadata(copy)['eval_top_1_acc'] == best

  (line,) = [x for x in lines if x.startswith('Classify: ')]
  _, program, option, module, weights, image = shlex.split(line)
  assert (program, option, image) == ('python', '-m', 'IMAGE')
  assert (_ROOT / f'{module.replace(".", "/")}.py').is_file()
  model, _, _ = weights_lib.open_model(weights.removeprefix('--weights='))
  assert model.class_names == tuple('0123456789')


@pytest.mark.parametrize('flag', [['--weights=x.npz'], ['--weights', 'x.npz']])
def test_the_summary_evaluates_the_run_and_not_the_weights_it_began_with(
  tmp_path, flag
):
  argv = ['experiments/experiment.py', '--config=digits', *flag]
  _, config = command_line.parse(argv)
  results = {'mode': 'train', 'step': 7, 'checkpoint_dir': str(tmp_path)}
  text = screen.describe_end(argv, config, results, 1.0)
  (line,) = [x for x in text.splitlines() if x.startswith('Evaluate: ')]
  assert '--weights' not in line
  again = command_line.without(shlex.split(line)[2:], 'jaxline_mode')
  _, config = command_line.parse(again)
  assert config.experiment_kwargs.config.weights is None


def test_evaluation_of_weights_that_are_not_finite_is_a_failure(
  run_command, tmp_path
):
  path = tmp_path / 'w.npz'
  params, _ = nfnets.create_model('nfnet_digits', 10).init(jax.random.key(1))
  params['NFNet/~/linear']['b'] = np.full(10, np.nan, np.float32)
  weights_lib.save_weights(path, params)
  args = (*command_lib.SMALL, '--jaxline_mode=eval', '--eval_initial_weights')
  result = run_command(*args, f'--weights={path}')
  assert result.status == 1
  assert result.json['eval_num_examples'] > 0
  for key in ('eval_loss', 'eval_top_1_acc', 'eval_top_5_acc'):
    assert result.json[key] is None
  assert '\nAccuracy' not in result.log
  last = result.log.splitlines()[-1]
  assert last.startswith('error: not finite: eval_loss, eval_top_1_acc, ')


@pytest.mark.parametrize(
  'file, level, is_shown',
  [
    ('/home/me/jaxline/nfnets/experiments/trainer.py', 'INFO', True),
    ('/venv/lib/site-packages/jax/_src/xla_bridge.py', 'INFO', False),
    ('/venv/lib/site-packages/jax/_src/xla_bridge.py', 'WARNING', True),
    ('/usr/lib/python3/dist-packages/jaxline/utils.py', 'ERROR', False),
  ],
)
def test_the_log_is_ours_wherever_the_clone_is(
  file, level, is_shown, monkeypatch
):
  monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
  number = getattr(stdlib_logging, level)
  record = stdlib_logging.LogRecord('absl', number, file, 1, 'line', (), None)
  with contextlib.redirect_stderr(io.StringIO()) as shown:
    screen.set_up_logging()
    logging.get_absl_handler().handle(record)
  assert ('line' in shown.getvalue()) == is_shown
