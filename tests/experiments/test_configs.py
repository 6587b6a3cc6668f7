"""Tests of the recipes against the published values."""

import re

import jax
from jaxline import base_config
import numpy as np
import pytest

from experiments import configs, defaults, recipe
from nfnets.weights import matching

_IMAGENET_EXAMPLES = 1_281_167

# What the recipes of a family have in common.
_SHARED = {
  'which_dataset': 'imagenet2012',
  'num_classes': 1000,
  'train_preproc': 'crop_flip',
  'eval_subset': 'test',
  'which_loss': 'softmax_cross_entropy',
  'label_smoothing': 0.1,
  'warmup_epochs': 5,
  'optimizer': 'sgd',
  'momentum': 0.9,
  'nesterov': True,
  'clipping': None,
  'eps': None,
  'sam_rho': 0,
  'sam_fraction': 0.2,
  'augment_before_mix': False,
  'wrap_solarize': True,
  'constant_grey': True,
}
_NFNET = {
  **_SHARED,
  'num_epochs': 360,
  'train_batch_size': 4096,
  'peak_lr': 1.6,
  'end_lr': 0,
  'optimizer': 'sgd_agc',
  'weight_decay': 2e-5,
  'clipping': 0.01,
  'eps': 1e-3,
  'stochdepth_rate': 0.25,
  'activation': 'gelu',
  'ema': ('tf1_ema', 0.99999),
  'best': 'eval_ema_top_1_acc',
  'bfloat16': True,
  'eval_preproc': 'resize_crop_32',
}
_NF_REGNET = {
  **_SHARED,
  'num_epochs': 360,
  'train_batch_size': 1024,
  'peak_lr': 0.4,
  'end_lr': 0.001,
  'stochdepth_rate': 0.1,
  'activation': 'silu',
  'augment_name': 'cutmix_mixup',
  'ema': ('tf1_ema', 0.99999),
  'best': 'eval_ema_top_1_acc',
  'bfloat16': False,
  'eval_preproc': 'crop_resize',
}
_RESNET = {
  **_SHARED,
  'num_epochs': 90,
  'train_batch_size': 1024,
  'peak_lr': 0.4,
  'end_lr': 0,
  'weight_decay': 1e-4,
  'stochdepth_rate': 0,
  'drop_rate': 0,
  'activation': 'relu',
  'augment_name': None,
  'ema': None,
  'best': 'eval_top_1_acc',
  'bfloat16': False,
  'eval_preproc': 'crop_resize',
  'image_size': 224,
  'eval_image_size': 224,
}
_NF_RESNET = {
  **_RESNET,
  'weight_decay': 5e-5,
  'stochdepth_rate': 0.1,
  'drop_rate': 0.25,
}
# Training and test pixels, dropout; then RandAugment or weight decay.
_F = {
  'f0': (192, 256, 0.2, '405'),
  'f1': (224, 320, 0.3, '410'),
  'f2': (256, 352, 0.4, '410'),
  'f3': (320, 416, 0.4, '415'),
  'f4': (384, 512, 0.5, '415'),
  'f5': (416, 544, 0.5, '415'),
  'f6': (448, 576, 0.5, '415'),
  'f7': (480, 608, 0.5, '415'),
}
_B = {
  'nf_regnet_b0': (192, 224, 0.2, 5e-5),
  'nf_regnet_b1': (224, 256, 0.2, 6e-5),
  'nf_regnet_b2': (240, 272, 0.3, 7e-5),
  'nf_regnet_b3': (288, 320, 0.3, 8e-5),
  'nf_regnet_b4': (320, 384, 0.4, 9e-5),
  'nf_regnet_b5': (384, 456, 0.4, 10e-5),
  'nf_regnet_b6': (448, 528, 0.5, 11e-5),
  'nf_regnet_b7': (512, 600, 0.5, 12e-5),
  'nf_regnet_b8': (600, 672, 0.5, 13e-5),
}
_DEPTHS = (50, 101, 152, 200, 288, 600)


def _published():
  """Returns {recipe: its settings}, of all but the digits."""
  table = {}
  for name, (size, test_size, drop_rate, randaugment) in _F.items():
    for plus in ('', '+'):
      row = {
        **_NFNET,
        'model': f'nfnet_{name}{plus}',
        'image_size': size,
        'eval_image_size': test_size,
        'drop_rate': drop_rate,
        'augment_name': f'cutmix_mixup_randaugment_{randaugment}',
      }
      table[name + plus] = row
      table[f'{name}{plus}:sam'] = {**row, 'sam_rho': 0.05}
  for name, (size, test_size, drop_rate, weight_decay) in _B.items():
    table[name] = {
      **_NF_REGNET,
      'model': name,
      'image_size': size,
      'eval_image_size': test_size,
      'drop_rate': drop_rate,
      'weight_decay': weight_decay,
    }
  for depth in _DEPTHS:
    for name, row in (
      (f'nf_resnet{depth}', _NF_RESNET),
      (f'resnet{depth}', _RESNET),
      (f'resnet{depth}_v1', _RESNET),
      (f'skipinit_resnet{depth}', _RESNET),
      (f'fixup_resnet{depth}', _RESNET),
    ):
      table[name] = {**row, 'model': name}
  return table


_PUBLISHED = _published()


def _settings_of(config):
  """Returns the settings in the words of the tables above."""
  ours = config.experiment_kwargs.config
  defaults.set_model_defaults(ours)
  kwargs = ours.optimizer.kwargs
  schedule = recipe.create_schedule(
    ours, _IMAGENET_EXAMPLES / ours.train_batch_size
  )
  steps = ours.num_epochs * _IMAGENET_EXAMPLES / ours.train_batch_size
  warmup = np.argmax(schedule(np.arange(361) * steps / 360))
  return {
    **{key: ours[key] for key in _NFNET if key in ours},
    **{key: kwargs.get(key) for key in kwargs},
    **{key: ours.augment_kwargs[key] for key in ours.augment_kwargs},
    'model': ours.model,
    'image_size': ours.image_size,
    'eval_image_size': ours.eval_image_size,
    'optimizer': ours.optimizer.name,
    'clipping': kwargs.get('clipping'),
    'eps': kwargs.get('eps'),
    'warmup_epochs': warmup * ours.num_epochs / 360,
    'peak_lr': float(schedule(5 * steps / ours.num_epochs)),
    'end_lr': float(schedule(steps)),
    'stochdepth_rate': ours.model_kwargs.get('stochdepth_rate', 0),
    'drop_rate': ours.model_kwargs.drop_rate,
    'activation': ours.model_kwargs.activation,
    'augment_name': ours.augment_name,
    'ema': (ours.which_ema, ours.ema_decay) if ours.use_ema else None,
    'best': config.best_model_eval_metric,
  }


def test_every_recipe_is_in_the_tables():
  names = configs.names()
  assert len(set(names)) == len(names) and 'f6:sam' in names
  assert set(names) - set(_PUBLISHED) == {
    *('digits', 'finetune', 'finetune:f4+', 'finetune:2023'),
    *('pretrain:f4+', 'pretrain:2023', 'digits:private', 'nf_resnet50:private'),
  }
  unlisted = set(_PUBLISHED) - set(names)
  assert all(name.endswith(':sam') for name in unlisted)


@pytest.mark.parametrize('name', _PUBLISHED)
def test_recipe_is_the_published_one(name):
  actual, expected = _settings_of(configs.load(name)), _PUBLISHED[name]
  assert set(actual) == set(expected)
  for key, value in expected.items():
    if isinstance(value, float):
      value = pytest.approx(value, rel=1e-6)
    assert actual[key] == value, key


# Those of other sizes are only in the tables.
@pytest.mark.parametrize(
  'name',
  [
    n for n in configs.names() if not re.search(r'[fb][1-57]|b[68]|00|52|88', n)
  ],
)
def test_every_recipe_is_complete_and_its_model_exists(name):
  config = configs.load(name)
  base_config.validate_config(config)
  ours = config.experiment_kwargs.config
  with ours.copy_and_resolve_references().unlocked() as fake:
    fake.fake_data = True
    fake.model = ours.model or 'nfnet_f0'  # That of the weights.
  model = recipe.build(fake, jax.random.key(0)).model
  assert model.num_classes == (ours.num_classes or 10)
  assert config.checkpoint_dir == f'runs/{name.replace(":", "_")}'
  assert ours.accumulate_steps == 1 and not ours.remat
  assert not ours.skip_corrupt and not ours.skip_nonfinite
  assert not ours.fake_data and not ours.transpose
  assert config.test_at_end < 10_000  # ImageNet's are for a second program.


@pytest.mark.parametrize(
  'name, model, num_steps, num_epochs, size',
  [
    ('finetune:f4+', 'nfnet_f4+', 15_000, 23.979, (384, 512)),
    ('finetune:f0', 'nfnet_f0', 15_000, 23.979, (192, 256)),
    ('finetune:2023', 'nfnet_f7+', 31_278, 50, (480, 480)),
  ],
)
def test_published_fine_tuning(
  name, model, num_steps, num_epochs, size, monkeypatch
):
  monkeypatch.setattr(recipe, '_FAKE_EXAMPLES', _IMAGENET_EXAMPLES)
  ours = configs.load(name).experiment_kwargs.config
  assert ours.which_dataset == 'imagenet2012' and not ours.train_only
  ours.fake_data = True
  built = recipe.build(ours, jax.random.key(0))
  assert built.num_steps == num_steps
  assert ours.num_epochs == pytest.approx(num_epochs, abs=1e-3)
  assert (ours.model, ours.train_batch_size) == (model, 2048)
  assert (ours.image_size, ours.eval_image_size) == size
  # 5,000 steps of 15,000 are warm-up, from 0 to 0.1; then a cosine to 0.
  rates = [built.schedule(part * num_steps / 3) for part in (0, 0.5, 1, 2, 3)]
  np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.05, 0], atol=1e-5)
  assert ours.model_kwargs.to_dict() == {
    'stochdepth_rate': 0.1,
    'drop_rate': 0.25,
  }
  assert ours.optimizer.kwargs.weight_decay == 1e-5
  assert (ours.sam_rho, ours.use_ema, ours.which_ema) == (0.05, True, 'tf1_ema')


@pytest.mark.parametrize(
  'name, model', [('pretrain:f4+', 'nfnet_f4+'), ('pretrain:2023', 'nfnet_f7+')]
)
def test_published_pre_training(name, model):
  ours = configs.load(name).experiment_kwargs.config
  assert (ours.model, ours.train_batch_size, ours.image_size) == (
    model,
    4096,
    224,
  )
  assert (ours.train_preproc, ours.augment_name) == ('crop_flip', None)
  assert (ours.lr, ours.lr_scale_by_bs, ours.use_ema) == (1.6, False, False)
  assert ours.optimizer.name == 'sgd_agc'
  assert ours.optimizer.kwargs.weight_decay == 1e-6


def test_the_f0_schedule_is_the_published_one():
  ours = configs.load('f0').experiment_kwargs.config
  schedule = recipe.create_schedule(ours, _IMAGENET_EXAMPLES / 4096)
  steps = [0, 1, 100, 1563, 1564, 5000, 50000, 112602]
  rates = [0, 1.0230673e-3, 0.10230672, 1.5990541, 1.6, 1.5962225]
  rates += [0.95924741, 0]
  for step, rate in zip(steps, rates, strict=True):
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
  'name',
  [
    *('f9', 'resnet50:sam', 'digits:sam', 'f6:', 'f6:sum', 'f6:sam:sam'),
    *('resnet50:private', 'f0:private', 'digits:privat'),
  ],
)
def test_an_unknown_recipe_is_answered_with_the_names(name):
  with pytest.raises(ValueError) as error:
    configs.load(name)
  assert f'no config {name!r}' in str(error.value)
  assert 'nf_resnet50' in str(error.value) and 'f6:sam' in str(error.value)


@pytest.mark.parametrize(
  'name, network',
  [
    ('f0', 'nfnet_digits'),
    ('f6:sam', 'nfnet_digits'),
    ('digits', 'nfnet_digits'),
    ('nf_regnet_b8', 'nf_regnet_b0'),
    ('nf_resnet600', 'nf_resnet50'),
    ('resnet50', 'resnet50'),
    ('resnet152_v1', 'resnet50'),
    ('skipinit_resnet101', 'skipinit_resnet50'),
    ('fixup_resnet50', 'fixup_resnet50'),
  ],
)
def test_a_small_recipe_is_the_same_but_for_its_size(name, network):
  whole, small = configs.load(name), configs.load(f'{name}:small')
  assert small.checkpoint_dir == f'{whole.checkpoint_dir}_small'
  assert small.training_steps < 10
  whole, small = (c.experiment_kwargs.config for c in (whole, small))
  changed = {
    *('model', 'model_kwargs', 'image_size', 'eval_image_size', 'fake_data'),
    *('train_batch_size', 'eval_batch_size'),
  }
  for key in set(whole) - changed:
    assert small[key] == whole[key], key
  for key, value in whole.model_kwargs.items():
    assert small.model_kwargs[key] == value, key
  assert small.fake_data and small.model == network
  model = recipe.build(small, jax.random.key(0)).model
  params, _ = matching.model_shapes(model)
  assert sum(x.size for x in jax.tree.leaves(params)) < 6e6


def test_a_config_file_of_ones_own_is_taken_whole_or_small(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from experiments import configs\n'
    'def get_config(model="timm/nfnet_l0"):\n'
    '  config = configs.get_base("mine", model)\n'
    '  config.experiment_kwargs.config.model_kwargs = {}\n'
    '  config.experiment_kwargs.config.lr = 0.7\n'
    '  return config\n'
  )
  for argument, network in (
    ('', 'timm/test_nfnet'),
    (':nf_resnet101', 'nf_resnet50'),
  ):
    config = configs.load(f'{path}{argument}:small')
    ours = config.experiment_kwargs.config
    assert (ours.model, ours.lr) == (network, 0.7)
    assert recipe.build(ours, jax.random.key(0)).model.num_classes == 1000
  whole = configs.load(f'{path}:resnet50').experiment_kwargs.config
  assert (whole.model, whole.fake_data) == ('resnet50', False)
  with pytest.raises(ValueError, match='no config file'):
    configs.load(str(tmp_path / 'missing.py'))


@pytest.mark.slow
def test_a_small_recipe_runs_to_its_end(run_command, tmp_path):
  """With SAM, AGC, an average and bfloat16."""
  result = run_command('--config=f6:sam:small', f'--checkpoint_dir={tmp_path}')
  assert result.status == 0, result.log
  assert result.json['step'] == configs.load('f6:sam:small').training_steps
  assert result.json['test_num_examples'] > 0
