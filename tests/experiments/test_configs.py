"""Tests of the recipes against the published values."""

import importlib

from jaxline import base_config
import pytest

from experiments import configs, experiment
import nfnets

# Training pixels, test pixels, dropout; the same for the wider variants.
_F = {
  'f0': (192, 256, 0.2),
  'f1': (224, 320, 0.3),
  'f2': (256, 352, 0.4),
  'f3': (320, 416, 0.4),
  'f4': (384, 512, 0.5),
  'f5': (416, 544, 0.5),
  'f6': (448, 576, 0.5),
  'f7': (480, 608, 0.5),
}


def _load(name):
  path, _, argument = configs.find(name).partition(':')
  module = path.split('/')[-1].removesuffix('.py')
  module = importlib.import_module(f'experiments.configs.{module}')
  return module.get_config(argument)


@pytest.mark.parametrize('name', configs.names())
def test_every_recipe_is_complete_and_its_model_exists(name):
  config = _load(name)
  base_config.validate_config(config)
  settings = config.experiment_kwargs.config
  experiment.check_config(settings.copy_and_resolve_references())
  model = experiment.create_model(settings)
  assert model.num_classes == settings.num_classes
  assert config.checkpoint_dir == f'runs/{name}'


@pytest.mark.parametrize('plus', ['', '+'])
@pytest.mark.parametrize('name', _F)
def test_nfnets_are_trained_as_published(name, plus):
  config = _load(name + plus)
  settings = config.experiment_kwargs.config
  size, test_size, drop_rate = _F[name]
  assert settings.model == f'nfnet_{name}{plus}'
  assert (settings.image_size, settings.eval_image_size) == (size, test_size)
  assert settings.model_kwargs.to_dict() == {
    'stochdepth_rate': 0.25,
    'drop_rate': drop_rate,
    'activation': 'gelu',
  }
  assert settings.optimizer.to_dict() == {
    'name': 'sgd_agc',
    'kwargs': {
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 2e-5,
      'clipping': 0.01,
      'eps': 1e-3,
    },
  }
  assert (settings.num_epochs, settings.train_batch_size) == (360, 4096)
  assert (settings.lr, settings.lr_scale_by_bs) == (0.1, True)
  assert settings.lr_schedule.to_dict() == {
    'name': 'warmup_cosine',
    'warmup_epochs': 5.0,
    'end': 0.0,
  }
  assert settings.label_smoothing == 0.1
  assert settings.use_ema and settings.ema_decay == 0.99999
  assert settings.bfloat16
  assert settings.eval_preproc == 'resize_crop_32'
  assert settings.which_dataset == 'imagenet2012'


@pytest.mark.parametrize('name', nfnets.list_models('nf_resnet'))
def test_nf_resnets_follow_the_text_of_the_paper(name):
  settings = _load(name).experiment_kwargs.config
  assert settings.optimizer.to_dict() == {
    'name': 'sgd',
    'kwargs': {'momentum': 0.9, 'nesterov': True, 'weight_decay': 5e-5},
  }
  assert (settings.num_epochs, settings.train_batch_size) == (90, 1024)
  assert (settings.lr, settings.lr_scale_by_bs) == (0.1, True)
  assert settings.model_kwargs.stochdepth_rate == 0.1
  assert settings.model_kwargs.drop_rate == 0.25
  assert settings.label_smoothing == 0.1
  assert not settings.use_ema and not settings.bfloat16
  assert settings.eval_preproc == 'crop_resize'


def test_the_f0_schedule_is_the_published_one():
  settings = _load('f0').experiment_kwargs.config
  schedule = experiment.create_schedule(settings, 1281167 / 4096)
  steps = [0, 1, 100, 1563, 1564, 5000, 50000, 112602]
  rates = [0, 1.0230673e-3, 0.10230672, 1.5990541, 1.6, 1.5962225]
  rates += [0.95924741, 0]
  for step, rate in zip(steps, rates, strict=True):
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-7)


def test_a_config_file_of_ones_own_is_taken(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('')
  assert configs.find(f'{path}:argument') == f'{path}:argument'
  with pytest.raises(ValueError, match='no config file'):
    configs.find(str(tmp_path / 'missing.py'))


def test_an_unknown_recipe_is_answered_with_the_names():
  with pytest.raises(ValueError) as error:
    configs.find('f9')
  assert "no config 'f9'" in str(error.value)
  assert 'nf_resnet50' in str(error.value)
