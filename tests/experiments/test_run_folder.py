"""What a run leaves beside its checkpoints."""

import os

import command_lib
import jax
import numpy as np
from PIL import Image
import pytest

from experiments import command_line, configs, recipe, run_folder
import nfnets
from nfnets import paths, weights
from nfnets.errors import UserError
from nfnets.weights import matching


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


def _keep(folder):
  """Writes the weights of step 6."""
  shapes, _ = matching.model_shapes(nfnets.create_model('nfnet_digits', 10))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  folder.keep(weights.Weights(params, {}), 6)


def test_the_record_has_what_it_takes_to_do_it_again(config, folder):
  assert run_folder.read_info(f'{config.checkpoint_dir}/none') is None
  folder.end({'test_top_1_acc': 0.5, 'test_loss': np.inf})
  with open(f'{config.checkpoint_dir}/run.json') as file:
    info = command_lib.read_json(file.read())
  assert info == run_folder.read_info(config.checkpoint_dir)
  assert info['command'] == 'python x.py --lr=1'
  assert info['settings']['optimizer.kwargs.clipping'] == 0.04
  assert info['settings']['model'] == 'nfnet_digits'
  assert info['run']['training_steps'] == 10
  assert info['results'] == {'test_top_1_acc': 0.5, 'test_loss': None}
  assert info['versions']['jax'] == jax.__version__


def _again(config, begun, **settings):
  """Starts a run again, evaluated or trained, with other settings."""
  is_training = settings.pop('is_training', True)
  config = config.copy_and_resolve_references()
  command_line.change(config, settings)
  ours = config.experiment_kwargs.config
  built = recipe.build(ours, jax.random.PRNGKey(0))
  folder = run_folder.RunFolder(config, built, 'python x.py --again')
  folder.go_on(begun, 5, is_training)
  return folder


@pytest.mark.parametrize(
  'settings',
  [
    {'lr': 0.05},
    {'optimizer.kwargs.clipping': 0.1},
    {'model_kwargs.alpha': 0.3},
    {'random_seed': 1},
    {'augment_name': 'cutmix'},  # Which is unset in the run.
    {'lr_schedule.warmup_part': 0.5},
    {'num_epochs': 50.0},
    {'evaluations': 5},
    {'eval_image_size': 48},
    {'eval_image_size': 48, 'is_training': False},
    {'model_kwargs.drop_rate': 0.5, 'is_training': False},
  ],
)
def test_settings_that_change_the_result_are_refused(config, folder, settings):
  begun = run_folder.read_info(config.checkpoint_dir)
  with pytest.raises(UserError) as error:
    _again(config, begun, **settings)
  name = next(iter(settings))
  old = begun['settings'].get(name, begun['run'].get(name))
  message = f'  {name}: {old!r} in the run, {settings[name]!r} now'
  assert message in str(error.value).splitlines()
  assert 'another --checkpoint_dir' in str(error.value)
  assert '--change_settings' in str(error.value)
  assert run_folder.read_info(config.checkpoint_dir) == begun


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'checkpoint_dir': 'elsewhere', 'save_checkpoint_interval': 7},
    {'report': False, 'compile_quickly': True, 'log_tensors_interval': 3},
    {'patience': 2},
    {'remat': True, 'accumulate_steps': 2, 'skip_nonfinite': True},
    {'lr': 0.05, 'num_epochs': 50.0, 'is_training': False},
  ],
)
def test_settings_that_change_no_result_may_change(config, folder, settings):
  begun = run_folder.read_info(config.checkpoint_dir)
  _again(config, begun, **settings)


def test_a_run_of_an_older_version_goes_on(config, folder):
  begun = run_folder.read_info(config.checkpoint_dir)
  unset = [k for k, v in begun['settings'].items() if v is None]
  assert {'augment_name', 'lr_schedule.warmup_part'} < set(unset)
  del begun['settings']['private.sampling']  # Which there was not.
  for value in ('', 0, 0.0):
    begun['settings'].update(dict.fromkeys(unset, value))
    _again(config, begun)


def test_what_a_run_was_is_kept_where_its_settings_change(config, folder):
  begun = run_folder.read_info(config.checkpoint_dir)
  again = _again(config, begun, lr=0.05, change_settings=True)
  again.begin()
  info = run_folder.read_info(config.checkpoint_dir)
  assert info['command'] == begun['command']
  assert info['started'] == begun['started']
  assert info['settings']['lr'] == 0.05
  (entry,) = info['history']
  assert (entry['step'], entry['changed']) == (5, {'lr': [0.2, 0.05]})
  # Settings are the same as those of the last start.
  _again(config, info, lr=0.05, training_steps=20).begin()
  info = run_folder.read_info(config.checkpoint_dir)
  assert [x['changed'] for x in info['history']] == [
    {'lr': [0.2, 0.05]},
    {'training_steps': [10, 20]},
  ]
  _keep(again)
  card = paths.read_bytes(f'{config.checkpoint_dir}/README.md').decode()
  assert 'python x.py --again  # from step 5' in card


def test_weights_and_noise_cannot_change_at_all(config, folder):
  begun = run_folder.read_info(config.checkpoint_dir)
  for settings in (
    {'weights': 'nfnet_f0'},
    {
      'private.noise_multiplier': 1.0,
      'private.delta': 1e-5,
      'private.epsilon': 3.0,
      'clip_per_example': 'norm',
    },
  ):
    name = next(iter(settings))
    with pytest.raises(UserError, match=f'{name}.* cannot change within a run'):
      _again(config, begun, **settings, change_settings=True)


def test_the_weights_have_their_model_card(config, folder):
  _keep(folder)
  path = os.path.join(config.checkpoint_dir, 'README.md')
  with open(path) as file:
    text = file.read()
  assert 'python x.py --lr=1' in text and '| Updates | 6 |' in text
  assert 'Not measured yet' in text
  folder.end({'test_top_1_acc': 0.75, 'test_num_examples': 40})
  with open(path) as file:
    assert '**75.0%** of 40 images' in file.read()


def test_pictures_that_cannot_be_decoded_leave_no_record(config, tmp_path):
  for name in ('a', 'b'):
    (tmp_path / 'pictures' / name).mkdir(parents=True)
    for i in range(3):
      image = Image.new('RGB', (8, 8), (i, ord(name), 0))
      image.save(tmp_path / 'pictures' / name / f'{i}.png')
  (tmp_path / 'pictures/a/bad.png').write_bytes(b'')
  ours = config.experiment_kwargs.config
  ours.update(
    fake_data=False, which_dataset=str(tmp_path / 'pictures'), num_classes=None
  )
  built = recipe.build(ours, jax.random.PRNGKey(0))
  folder = run_folder.RunFolder(config, built, '')
  with pytest.raises(UserError, match='a/bad.png: an empty file'):
    folder.begin()
  assert not (tmp_path / 'run').exists()  # It may be deleted then.
