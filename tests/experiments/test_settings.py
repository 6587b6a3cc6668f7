"""Tests of settings on the command line, and of what --help says of them."""

import pytest

from experiments import command_line, configs, experiment
from experiments.configs import settings
from nfnets.errors import UserError

_LONG = '--config.experiment_kwargs.config'


@pytest.mark.parametrize(
  'short, long, value',
  [
    (['--train_batch_size=64'], f'{_LONG}.train_batch_size=64', 64),
    (['--weights=a=b.npz'], f'{_LONG}.weights=a=b.npz', 'a=b.npz'),
    (['--checkpoint_dir=x'], '--config.checkpoint_dir=x', 'x'),
    (
      ['--lr_schedule.warmup_epochs=1'],
      f'{_LONG}.lr_schedule.warmup_epochs=1',
      1.0,
    ),
    (['--fake_data'], f'{_LONG}.fake_data=True', True),
    (['--use_ema=False'], f'{_LONG}.use_ema=False', False),
    (['--lr', '0.5'], f'{_LONG}.lr=0.5', 0.5),
    (
      ['--model_kwargs.drop_rate', '1'],
      f'{_LONG}.model_kwargs.drop_rate=1',
      1.0,
    ),
    (['--data=x/y'], f'{_LONG}.which_dataset=x/y', 'x/y'),
    (['--remat'], f'{_LONG}.remat=True', True),
    (['--remat=True'], f'{_LONG}.remat=true', True),
    (['--remat=1'], f'{_LONG}.remat=1', 1),
    (['--one_off_evaluate'], '--config.one_off_evaluate=True', True),
  ],
)
def test_a_setting_has_a_short_form_and_a_long_one(parse, short, long, value):
  _, want = parse('--config=f0', long)
  name, got = parse('--config=f0', *short)
  assert name == 'f0'
  assert got.to_json() == want.to_json()
  path = long.partition('=')[0].removeprefix('--config.')
  settings = dict(command_line.leaves(got))
  assert settings[path] == value and type(settings[path]) is type(value)
  assert settings != dict(command_line.leaves(parse('--config=f0')[1]))


def test_the_users_folder_is_expanded_in_all_settings(
  parse, tmp_path, monkeypatch
):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.py').write_text(
    'from experiments.configs import digits\n'
    'def get_config():\n'
    '  config = digits.get_config()\n'
    "  config.checkpoint_dir = '~/rr'\n"
    "  config.experiment_kwargs.config.weights = '~/w'\n"
    '  return config\n'
  )
  _, config = parse('--config=~/mine.py', '--data=~/p', '--data_dir=~/d')
  ours = config.experiment_kwargs.config
  found = config.checkpoint_dir, ours.weights, ours.which_dataset, ours.data_dir
  assert found == tuple(str(tmp_path / x) for x in ('rr', 'w', 'p', 'd'))


def test_remat_of_a_config_file_may_be_overridden(parse, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from experiments import configs\n'
    'def get_config():\n'
    '  config = configs.get_base("mine", "nfnet_digits")\n'
    '  config.experiment_kwargs.config.remat = 12\n'
    '  return config\n'
  )
  for args, value in (
    ([], 12),
    (['--remat=24'], 24),
    (['--remat=True'], True),
    (['--remat=False'], False),
  ):
    config = parse(f'--config={path}', *args)[1].experiment_kwargs.config
    assert config.remat == value and type(config.remat) is type(value)


@pytest.mark.parametrize('value', ['-1', 'all', '0.5', 'None'])
def test_remat_is_a_number_or_a_bool(run_command, tmp_path, value):
  result = run_command(
    '--config=digits', f'--remat={value}', f'--checkpoint_dir={tmp_path / "x"}'
  )
  assert result.status == 2
  assert 'remat is' in result.log and 'must be True, False or' in result.log
  assert not (tmp_path / 'x').exists()


def test_the_config_and_flags_may_stand_anywhere(parse):
  name, config = parse('--lr', '0.5', '--config', 'f6:sam')
  assert name == 'f6:sam'
  ours = config.experiment_kwargs.config
  assert (ours.lr, ours.sam_rho) == (0.5, 0.05)
  assert config.checkpoint_dir == 'runs/f6_sam'


@pytest.mark.parametrize(
  'arg, message',
  [
    ('--train_batchsize=64', "no setting 'train_batchsize'. Did you mean --tr"),
    (
      '--optimizer.kwargs.cliping=1',
      'Did you mean --optimizer.kwargs.clipping',
    ),
    ('--sam-rho=1', 'Did you mean --sam_rho'),
    ('--lr_schedul.end=1', 'Did you mean --lr_schedule.end'),
    ('--zzz=1', "There is no setting 'zzz'. --help explains all of them."),
    ('--config.zzz=1', "There is no setting 'zzz'. --help explains all"),
    ('--lr', '--lr has no value; write --lr=VALUE.'),
    ('--lr=high', 'lr=high'),
    ('--optimizer.name.x=1', "no setting 'optimizer.name.x'"),
  ],
)
def test_a_wrong_setting_is_answered_with_the_nearest(parse, arg, message):
  with pytest.raises(UserError) as error:
    parse('--config=f0', arg)
  assert message in str(error.value)


@pytest.mark.parametrize('name', configs.names())
def test_no_name_stands_for_two_things(name):
  config = configs.load(name)
  ours = set(config.experiment_kwargs.config)
  assert not ours & set(config)
  options = {x.dest for x in experiment._parser()._actions}
  assert not (ours | set(config)) & options


def _words(text):
  return ' '.join(text.split())


def test_help_explains_every_setting(run_command):
  result = run_command('--help')
  assert result.status == 0
  assert result.log == ''
  shown = _words(result.output)
  config = configs.load('f0')
  for key, value in command_line.leaves(config):
    short = key.removeprefix('experiment_kwargs.config.')
    assert f' --{short}={value}' in shown, key
    # Settings within one are explained together.
    table = settings.EXPERIMENT if short != key else settings.RUN
    assert _words(table[short.partition('.')[0]][1]) in shown, key
  assert ' f6:sam' in shown and '--jaxline_mode=MODE' in shown


@pytest.mark.parametrize(
  'setting, value, kind',
  [
    ('lr', 0.5, float),
    ('training_steps', 7, int),
    ('augment_name', 'cutmix', str),
    ('lr_schedule.warmup_part', 0.25, float),
    ('per_example.chunk', 4, int),
  ],
)
def test_none_is_unset_and_keeps_the_type(parse, setting, value, kind):
  def read(*args):
    values = dict(command_line.leaves(parse('--config=f0', *args)[1]))
    return (
      values[setting]
      if setting in values
      else values[f'experiment_kwargs.config.{setting}']
    )

  for unset in ('None', ''):
    assert read(f'--{setting}={value}', f'--{setting}={unset}') is None
  again = read(f'--{setting}=None', f'--{setting}={value}')
  assert again == value and type(again) is kind
  if kind is not str:
    with pytest.raises(UserError, match=f'--{setting}=much'):
      parse('--config=f0', f'--{setting}=much')


def test_settings_of_one_config_are_not_those_of_another():
  first, second = configs.load('f0'), configs.load('f0')
  first.experiment_kwargs.config.private.delta = 0.5
  first.experiment_kwargs.config.lr = 0.5
  first.training_steps = 3
  assert second.to_json() == configs.load('f0').to_json()
  assert second.experiment_kwargs.config.private.delta is None


def test_help_shows_the_values_of_the_recipe(run_command):
  shown = run_command('--config=digits', '--help').output
  assert 'as --config=digits has them' in shown
  assert '--train_batch_size=64\n' in shown
  assert '--train_preproc=shift_3\n' in shown


@pytest.mark.parametrize(
  'args, message',
  [
    (['--patience=0'], 'patience is 0; it must be positive'),
    (['--patience=-2'], 'patience is -2; it must be positive'),
    (['--patience=2', '--evaluations=0'], 'set --evaluations=10'),
    (['--patience=x'], '--patience=x: '),
  ],
)
def test_patience_that_cannot_be_is_a_wrong_command(parse, args, message):
  with pytest.raises(UserError, match=message) as error:
    parse('--config=finetune', *args)
  assert error.value.status == 2
