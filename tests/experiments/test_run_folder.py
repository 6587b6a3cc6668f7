"""What a run leaves beside its checkpoints."""

import json
import os

import jax
import numpy as np
import pytest

from experiments import configs, recipe, run_folder
from nfnets import weights
from nfnets.weights import shapes


@pytest.fixture
def config(tmp_path):
  config = configs.load('digits')
  config.checkpoint_dir = str(tmp_path / 'run')
  config.training_steps = 10
  config.evaluations = 4  # Every third step, and after the last.
  config.experiment_kwargs.config.fake_data = True
  return config


@pytest.fixture
def folder(config):
  ours = config.experiment_kwargs.config
  built = recipe.build(ours, jax.random.PRNGKey(0))
  folder = run_folder.RunFolder(config, built, 'python x.py --lr=1')
  folder.begin()
  return folder


class _Training:
  """In place of an experiment: its metrics, and weights that tell the step."""

  def __init__(self, model, metrics, step=0):
    self._shapes, _ = shapes.of_model(model)
    self._metrics, self.step = metrics, step

  def evaluate(self, *, global_step, rng, writer):
    return self._metrics[self.step]

  def weights(self):
    params = jax.tree.map(
      lambda x: np.full(x.shape, self.step, np.float32), self._shapes
    )
    return weights.Weights(params, {})


def _train(config, folder, metrics, first=0, last=10):
  """Goes through the steps; returns those that were evaluated."""
  validation = run_folder.Validation(config, folder)
  ours = config.experiment_kwargs.config
  seen = {}
  model = recipe.create_model(ours)
  module = _Training(model, _Noting(metrics, seen))
  for module.step in range(first, last + 1):
    validation(module, module.step)
  return list(seen)


class _Noting(dict):
  def __init__(self, metrics, seen):
    super().__init__(metrics)
    self._seen = seen

  def __getitem__(self, step):
    self._seen[step] = True
    return super().__getitem__(step)


def _accuracies(key='eval_top_1_acc', **values):
  steps = {int(name[1:]): value for name, value in values.items()}
  return {step: {key: value} for step, value in steps.items()}


@pytest.mark.parametrize(
  'accuracies, best',
  [
    ({'s3': 0.5, 's6': 0.9, 's9': 0.7, 's10': 0.8}, 6),
    ({'s3': 0.5, 's6': 0.9, 's9': 0.9, 's10': 0.8}, 9),  # Trained for longer.
    ({'s3': 0.1, 's6': 0.2, 's9': 0.3, 's10': 0.4}, 10),
  ],
)
def test_the_best_weights_are_kept_also_by_a_run_that_was_stopped(
  accuracies, best, config, folder
):
  metrics = _accuracies(**accuracies)
  assert _train(config, folder, metrics) == [3, 6, 9, 10]

  def kept():
    read = folder.kept_weights()
    assert folder.kept()['step'] == np.unique(read.params[_HEAD]['w'])
    assert folder.kept()['eval_top_1_acc'] == accuracies[f's{best}']
    return folder.kept()['step']

  assert kept() == best
  # Again from step 6, whose checkpoint may be older than what was kept.
  assert _train(config, folder, metrics, first=6) == [6, 9, 10]
  assert kept() == best


_HEAD = 'NFNet/~/linear'


def test_averaged_weights_are_judged_where_these_are_kept(config, folder):
  config.experiment_kwargs.config.use_ema = True
  metrics = _accuracies('eval_ema_top_1_acc', s3=0.2, s6=0.3, s9=0.1, s10=0.1)
  for step, value in metrics.items():
    value['eval_top_1_acc'] = step / 10
  _train(config, folder, metrics)
  assert folder.kept()['step'] == 6


def test_what_cannot_be_written_ends_no_training(config, folder, caplog):
  metrics = _accuracies(s3=0.5, s6=0.9, s9=0.7, s10=0.8)
  path = os.path.join(config.checkpoint_dir, 'weights.safetensors')
  os.mkdir(path)  # In the way.
  assert _train(config, folder, metrics) == [3, 6, 9, 10]
  assert f'Could not write {path}: Is a directory' in caplog.text
  os.rmdir(path)
  _train(config, folder, metrics, first=9)
  assert folder.kept()['step'] == 10


def test_a_metric_may_be_better_when_lower(config, folder):
  config.best_model_eval_metric = 'eval_loss'
  config.best_model_eval_metric_higher_is_better = False
  metrics = _accuracies('eval_loss', s3=2.0, s6=1.0, s9=1.5, s10=1.2)
  _train(config, folder, metrics)
  assert folder.kept()['step'] == 6


def test_the_record_has_what_it_takes_to_do_it_again(config, folder):
  folder.end({'test_top_1_acc': 0.5})
  info = run_folder.read_info(config.checkpoint_dir)
  assert info['command'] == 'python x.py --lr=1'
  assert info['settings']['optimizer.kwargs.clipping'] == 0.04
  assert info['settings']['model'] == 'nfnet_digits'
  assert info['run']['training_steps'] == 10
  assert info['results'] == {'test_top_1_acc': 0.5}
  assert info['versions']['jax'] == jax.__version__
  json.dumps(info)


def test_the_weights_have_their_model_card(config, folder):
  _train(config, folder, _accuracies(s3=0.5, s6=0.9, s9=0.7, s10=0.8))
  path = os.path.join(config.checkpoint_dir, 'README.md')
  with open(path) as file:
    text = file.read()
  assert 'python x.py --lr=1' in text and '| Updates | 6 |' in text
  assert 'Not measured yet' in text
  folder.end({'test_top_1_acc': 0.75, 'test_num_examples': 40})
  with open(path) as file:
    assert '**75.0%** of 40 images' in file.read()


def test_there_is_no_record_of_what_never_ran(tmp_path):
  assert run_folder.read_info(str(tmp_path)) is None
