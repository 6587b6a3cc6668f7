"""Evaluation during training: its table, the best weights, early stopping."""

import json
import os
import re
import shutil

import command_lib
import jax
import numpy as np
import pytest

from experiments import (
  configs,
  jaxline_compat,
  recipe,
  run_folder,
  screen,
  validation,
)
from experiments.tools import extract_weights
from nfnets import imagenet, weights
from nfnets.data import dataset
from nfnets.inference import curves

_STEPS = 3, 6, 9, 10


@pytest.fixture
def config(tmp_path):
  config = configs.load('digits')
  config.checkpoint_dir = str(tmp_path / 'run')
  config.training_steps = 10
  config.evaluations = 4  # Every third step, and after the last.
  config.experiment_kwargs.config.fake_data = True
  return config


def _build(config):
  return recipe.build(config.experiment_kwargs.config, jax.random.PRNGKey(0))


@pytest.fixture
def folder(config):
  folder = run_folder.RunFolder(config, _build(config))
  folder.begin()
  return folder


class _Training:
  """In place of an experiment: its metrics, and weights that tell the step."""

  def __init__(self, metrics):
    self._metrics, self.step, self.seen = metrics, 0, []

  def measure(self):
    self.seen.append(self.step)
    return {**self._metrics[self.step], 'eval_num_examples': 8}

  def measure_train_sample(self):
    return {'train_sample_loss': 0.25}

  def weights(self):
    return weights.Weights({'NFNet/~/linear': {'w': np.full(2, self.step)}}, {})


def _train(config, folder, metrics, first=0, last=None):
  """Goes through the steps; returns those that were evaluated."""
  watch = validation.Validation(
    config, folder, folder._built, screen.Reporter(config.training_steps, 64)
  )
  module, last = _Training(metrics), last or config.training_steps
  for module.step in range(first, last + 1):
    if watch(module, module.step):
      break
  assert watch.stopped_early == (module.step < last)
  return module.seen


def _metrics(*values, key='eval_top_1_acc', steps=_STEPS):
  # Of raw weights, the last ones are the best.
  raw = {'eval_loss': 1.0}
  if 'ema' in key:
    raw['eval_ema_loss'] = 0.5
  return {
    s: {**raw, 'eval_top_1_acc': s / 100, key: v}
    for s, v in zip(steps, values, strict=True)
  }


def _rows(lines):
  """Returns the rows of the table among lines of a log."""
  return [x for x in lines if re.fullmatch(r' *\d+\.\d +\d+ .*%.*', x)]


@pytest.mark.parametrize(
  'values, key, is_higher_better, best',
  [
    ((0.5, 0.9, 0.7, 0.8), 'eval_top_1_acc', True, 6),
    ((0.5, 0.9, 0.9, 0.8), 'eval_top_1_acc', True, 9),  # Trained for longer.
    ((0.1, 0.2, 0.3, 0.4), 'eval_top_1_acc', True, 10),
    ((np.nan, 0.2, np.nan, 0.1), 'eval_top_1_acc', True, 6),
    ((0.2, 0.3, 0.1, 0.1), 'eval_ema_top_1_acc', True, 6),
    ((2.0, 1.0, 1.5, 1.2), 'eval_loss', False, 6),
  ],
)
def test_the_best_weights_are_kept_also_by_a_run_that_was_stopped(
  values, key, is_higher_better, best, config, folder, caplog
):
  caplog.set_level('INFO', logger='absl')
  config.best_model_eval_metric = key.replace('ema_', '')
  config.best_model_eval_metric_higher_is_better = is_higher_better
  if 'ema' in key:
    config.experiment_kwargs.config.use_ema = True
  metrics = _metrics(*values, key=key)
  assert _train(config, folder, metrics) == [*_STEPS]
  rows = _rows(caplog.messages)
  marked = [i for i, x in enumerate(rows) if x.endswith('*')]
  assert _STEPS[marked[-1]] == best
  # Again from step 6, whose checkpoint may be older than what was kept.
  for first in (None, 6):
    if first:
      assert _train(config, folder, metrics, first) == [6, 9, 10]
    read = folder.kept_weights().params['NFNet/~/linear']['w']
    assert folder.kept()['step'] == np.unique(read) == best
    assert folder.kept()[key] == metrics[best][key]


def test_what_cannot_be_written_ends_no_training(config, folder, caplog):
  metrics = _metrics(0.5, 0.9, 0.7, 0.8)
  path = os.path.join(config.checkpoint_dir, 'weights.safetensors')
  os.mkdir(path)  # In the way.
  assert _train(config, folder, metrics) == [3, 6, 9, 10]
  assert f'Could not write {path}: Is a directory' in caplog.text
  os.rmdir(path)
  _train(config, folder, metrics, first=9)
  assert folder.kept()['step'] == 10


def test_each_evaluation_is_a_row_below_one_header(config, folder, caplog):
  caplog.set_level('INFO', logger='absl')
  _train(config, folder, _metrics(0.5, 0.9, 0.7, 0.85))
  header, *rows = caplog.messages
  names = 'epoch', 'step', 'train loss', 'valid loss', 'accuracy', 'lr'
  # Numbers end where their names do; 9 columns are the time of the log.
  ends = [header.index(name) + len(name) for name in names]
  assert _rows(rows) == rows and len(rows) == 4
  schedule = folder._built.schedule
  for step, accuracy, row in zip(_STEPS, (50, 90, 70, 85), rows, strict=True):
    cells = [
      row[a:b].strip() for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert cells[0] == f'{step * 64 / 10_000:.1f}'  # 10,000 random images.
    assert cells[1:5] == [str(step), '0.2500', '1.0000', f'{accuracy}.00%']
    assert float(cells[5]) == pytest.approx(float(schedule(step - 1)), rel=0.05)
    assert row.endswith('*') == (step in (3, 6))
    assert 9 + max(len(row), len(header)) <= 80


_MANY = range(1, 11)


class _Folder:
  """In place of a run's folder, without files."""

  is_writer = True

  def __init__(self, built):
    self._built, self._kept = built, {}

  def kept(self):
    return self._kept

  def keep(self, kept, step, **facts):
    assert np.all(kept.params['NFNet/~/linear']['w'] == step)
    self._kept = {'step': step, **facts}


@pytest.mark.parametrize(
  'values, patience, steps, kept',
  [
    ((1, 2, 3, 2, 2, 2, 2, 9, 9, 9), 3, 6, 3),
    ((1, 2, 3, 2, 2, 4, 2, 2, 2, 2), 3, 9, 6),
    ((5, 1, 5, 1, 5, 5, 5, 5, 5, 5), 4, 5, 5),  # As good is not better.
    ((np.nan,) * 10, 2, 2, None),
    ((1, 2, 1, 2, 3, 4, 5, 6, 7, 8), 3, 10, 10),
    ((9, 1, 1, 1, 1, 1, 1, 1, 1, 1), 9, 10, 1),  # The last step ends it.
  ],
)
def test_training_ends_where_nothing_gets_better_also_after_a_stop(
  values, patience, steps, kept, config, monkeypatch
):
  monkeypatch.setattr(screen.Writer, 'write_scalars', lambda *_: None)
  config.evaluations, config.patience = 10, patience
  metrics = _metrics(*(0.1 * np.array(values)), steps=_MANY)
  built = _build(config)
  assert _train(config, _Folder(built), metrics) == [*_MANY][:steps]
  # Killed after a step, with a checkpoint of this one or of one before.
  for killed in range(1, steps):
    for first in range(killed + 1):
      folder = _Folder(built)
      assert _train(config, folder, metrics, last=killed)[-1] == killed
      assert _train(config, folder, metrics, first)[-1] == steps
      assert folder.kept().get('step') == kept


_SIX = (*command_lib.SMALL, '--training_steps=6', '--evaluations=3')


def _cross_entropy(model, params, batch):
  """Returns the mean over a batch, in float64."""
  images = imagenet.normalize(batch['images'])
  logits = np.asarray(jax.jit(model.logits)(params, images), np.float64)
  log_probs = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
  return -np.mean(log_probs[np.arange(len(logits)), batch['labels']])


@pytest.mark.slow
def test_both_losses_of_a_row_are_measured_alike(run_once, data_dir):
  """Of the averaged weights, without label smoothing, shifts and dropout."""
  dropout = '--model_kwargs.drop_rate=0.5'
  folder, result = run_once('validated', *_SIX, dropout)
  rows = _rows(x[9:] for x in result.log.splitlines())
  assert [int(x.split()[1]) for x in rows] == [2, 4, 6]
  best = weights.read_metadata(folder)['step']
  *_, row = curves.rows(curves.read_scalars(folder / 'eval'), best)
  shown = rows[-1].split()
  assert shown[2:4] == [f'{row.train_loss:.4f}', f'{row.valid_loss:.4f}']

  config = configs.load('digits')
  ours = config.experiment_kwargs.config
  ours.update(image_size=16, eval_image_size=16, data_dir=data_dir)
  built = recipe.build(ours, jaxline_compat.init_rng(config))
  sample = built.train_sample()
  assert len(sample) == len(np.unique(sample)) == 360  # As many as are tested.
  options = dataset.Options(16, 1437, ours.eval_preproc)
  [batch] = dataset.eval_batches(built.builder, 'train_and_valid', options)
  batch = {name: x[sample] for name, x in batch.items()}
  params = extract_weights.read_checkpoint(folder / 'latest' / '6', 'ema')[0][0]
  want = _cross_entropy(built.model, params, batch)
  assert row.train_loss == pytest.approx(want, rel=1e-4)
  options = dataset.Options(16, 360, ours.eval_preproc)
  [batch] = dataset.eval_batches(built.builder, 'test', options)
  want = _cross_entropy(built.model, params, batch)
  assert row.valid_loss == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
def test_a_run_that_stopped_early_has_ended(run_command, tmp_path):
  """Of falling losses none is as high as the first."""
  args = (
    *(*command_lib.SMALL, '--training_steps=12', '--evaluations=6'),
    *('--patience=2', '--best_model_eval_metric=eval_loss'),
    '--save_checkpoint_interval=1',
  )
  straight = run_command(*args, f'--checkpoint_dir={tmp_path}/straight')
  assert straight.status == 0, straight.log
  result = straight.json
  assert (result['step'], result['best_step']) == (6, 2), straight.log
  assert result['stopped_early'] and not result['stopped_by_sigterm']
  assert 'Stopped early: no improvement in the last 2 eval' in straight.log

  # As SIGKILL leaves it: no results, and the last checkpoints missing.
  killed = tmp_path / 'killed'
  shutil.copytree(tmp_path / 'straight', killed)
  for step in (5, 6):
    shutil.rmtree(killed / 'latest' / str(step))
  info = json.loads((killed / 'run.json').read_text())
  del info['results']
  (killed / 'run.json').write_text(json.dumps(info))
  resumed = run_command(*args, f'--checkpoint_dir={killed}')
  assert 'Continuing from step 4 of' in resumed.log
  for key in ('step', 'best_step', 'stopped_early', 'test_loss'):
    assert resumed.json[key] == result[key]
  want, got = (
    command_lib.read_arrays(tmp_path / name, 6)
    for name in ('straight', 'killed')
  )
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)
  first, second = (
    (tmp_path / name / 'weights.safetensors').read_bytes()
    for name in ('straight', 'killed')
  )
  assert first == second

  again = run_command(*args, f'--checkpoint_dir={killed}')
  assert again.json == resumed.json
  assert 'This run had ended at step 6; nothing was done' in again.log
  assert 'Stopped early' in again.log
  on = run_command(*args, '--patience=3', f'--checkpoint_dir={killed}')
  assert on.json['step'] == 8 and on.json['best_step'] == 2
