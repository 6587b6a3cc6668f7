"""Tests of what a run shows: a bar on a terminal, and a summary at its end."""

import contextlib
import io
import pathlib
import re
import shlex
import sys

from absl import flags, logging
import command_lib
import pytest

from experiments import command_line, configs, progress, summary
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


def test_the_bar_ends_full_and_log_lines_stand_by_themselves(monkeypatch):
  monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
  flags.FLAGS.mark_as_parsed()  # Else absl says that it has not.
  reporter = progress.Reporter(40, batch_size=8)
  metrics = {'train_loss': 2.5, 'steps_per_sec': 4.0}
  with contextlib.redirect_stderr(_Terminal()) as terminal:
    progress.set_up_logging()
    assert reporter.start_bar(10)
    reporter.update_bar(20, metrics)
    logging.info('a line of the log')
    reporter.log(20, metrics)  # The bar says it.
    reporter.update_bar(30, metrics)
    reporter.close(40)
  lines = terminal.lines()
  assert [x[9:] for x in lines if 'line of the log' in x] == [
    'a line of the log'
  ]
  (bar,) = [x for x in lines if '%|' in x]
  assert bar.startswith('100%') and ' 40/40 ' in bar and 'images/s 32' in bar
  assert not any('step 20/40' in x for x in lines)


def test_without_a_terminal_there_is_a_line(caplog):
  reporter = progress.Reporter(40, batch_size=8)
  assert not reporter.start_bar(0)
  caplog.set_level('INFO', logger='absl')
  reporter.log(20, {'train_loss': 2.5, 'steps_per_sec': 4.0})
  assert 'step 20/40  loss 2.500  images/s 32  0:00:05 left' in caplog.text


def _argv(line, command):
  """Returns the arguments of a command that is shown, whose file exists."""
  program, file, *args = shlex.split(line.partition(': ')[2])
  assert program == 'python' and file == command
  assert (_ROOT / file).is_file()
  return args


def test_the_summary_of_training_names_commands_that_work(
  straight, evaluated, run_command, tmp_path, capsys
):
  folder, result = straight
  lines = result.log[result.log.index('Trained to step 6 in 0:') :].splitlines()
  assert re.fullmatch(r'Trained to .*, \d+ images per second\.', lines[0])
  assert f'Results: {folder} (checkpoints, TensorBoard curves)' in lines

  (line,) = [x for x in lines if x.startswith('Evaluate: ')]
  again = run_command(*_argv(line, 'experiments/experiment.py'))
  assert again.status == 0, again.log
  assert again.json['eval_loss'] == evaluated.json['eval_loss']
  assert re.search(r'\nEvaluated in 0:\d\d:\d\d\.\nAccuracy: ', again.log)
  best = again.json['eval_top_1_acc']
  assert f'Best eval_top_1_acc so far: {best:.4g}, at step 6' in again.log
  assert weights_lib.read_metadata(folder)['eval_top_1_acc'] == best

  (line,) = [x for x in lines if x.startswith('Classify: ')]
  _, program, option, module, weights, image = shlex.split(line)
  assert (program, option, image) == ('python', '-m', 'IMAGE')
  assert (_ROOT / f'{module.replace(".", "/")}.py').is_file()
  model, _, _ = weights_lib.open_model(weights.removeprefix('--weights='))
  assert model.class_names == tuple('0123456789')


def test_the_summary_of_a_stopped_run_says_so(tmp_path):
  config = configs.load('digits')
  results = {'mode': 'train', 'step': 7, 'stopped_by_sigterm': True}
  results['checkpoint_dir'] = str(tmp_path)
  argv = ['experiments/experiment.py', '--config=digits']
  text = summary.describe(argv, config, results, 61.2)
  assert text.startswith(
    'Stopped at step 7 after 0:01:01; the same command goes on.\n'
  )
  assert f'Results: {tmp_path} ' in text and 'Best' not in text


def test_the_summary_evaluates_the_run_and_not_the_weights_it_began_with(
  tmp_path,
):
  argv = ['experiments/experiment.py', '--config=digits', '--weights=x.npz']
  _, config = command_line.parse(argv)
  results = {'mode': 'train', 'step': 7, 'checkpoint_dir': str(tmp_path)}
  text = summary.describe(argv, config, results, 1.0)
  command_lib.forget_flags()
  (line,) = [x for x in text.splitlines() if x.startswith('Evaluate: ')]
  _, config = command_line.parse(shlex.split(line)[2:])
  command_lib.forget_flags()
  assert config.experiment_kwargs.config.weights == ''


@pytest.mark.slow
def test_a_run_on_a_terminal_ends_with_a_full_bar(run_command, tmp_path):
  screen = _Terminal()
  result = run_command(
    *command_lib.SMALL,
    f'--checkpoint_dir={tmp_path}',
    '--training_steps=4',
    log=screen,
  )
  assert result.status == 0, result.log
  lines = screen.lines()
  (bar,) = [x for x in lines if '%|' in x]
  assert bar.startswith('100%') and ' 4/4 ' in bar
  for line in lines:
    if 'Compiling' in line or 'evaluated' in line:
      assert re.match(r'\d\d:\d\d:\d\d ', line), line
