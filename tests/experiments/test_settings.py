"""Tests of settings on the command line, and of what --help says of them."""

from absl import flags
import pytest

from experiments import command_line, configs, help_text

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
  name, config = parse(
    '--lr', '0.5', '--config', 'f6:sam', '--jaxline_mode=eval'
  )
  assert (name, flags.FLAGS.jaxline_mode) == ('f6:sam', 'eval')
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
    ('--jaxline_mod=eval', 'Did you mean --jaxline_mode'),
    ('--lr_schedul.end=1', 'Did you mean --lr_schedule.end'),
    ('--zzz=1', "There is no setting 'zzz'. --help explains all of them."),
    ('--config.zzz=1', "There is no setting 'zzz'. --help explains all"),
    ('--lr', '--lr has no value; write --lr=VALUE.'),
    ('--lr=high', 'lr=high'),
    ('--optimizer.name.x=1', "no setting 'optimizer.name.x'"),
  ],
)
def test_a_wrong_setting_is_answered_with_the_nearest(parse, arg, message):
  with pytest.raises(command_line.UsageError) as error:
    parse('--config=f0', arg)
  assert message in str(error.value)


@pytest.mark.parametrize('name', configs.names())
def test_no_name_stands_for_two_things(name):
  config = configs.load(name)
  ours = set(config.experiment_kwargs.config)
  assert not ours & set(config)
  assert not (ours | set(config)) - {'config'} & set(flags.FLAGS)


def _words(text):
  return ' '.join(text.split())


def test_help_explains_every_setting(run_command):
  result = run_command('--help')
  assert result.status == 0
  assert result.log == ''
  shown, comments = _words(result.output), help_text.comments()
  config = configs.load('f0')
  for key, value in command_line.leaves(config):
    short = key.removeprefix('experiment_kwargs.config.')
    assert f' --{short}={value}' in shown, key
    # Settings within one are explained together.
    ours = 'experiment_kwargs.config.' if short != key else ''
    explained = comments.get(ours + short.partition('.')[0], '')
    assert explained, f'{key} has no comment'
    assert _words(explained) in shown, key
  assert ' f6:sam' in shown and '--jaxline_mode=MODE' in shown


def test_help_shows_the_values_of_the_recipe(run_command):
  shown = run_command('--config=digits', '--help').output
  assert 'as --config=digits has them' in shown
  assert '--train_batch_size=64\n' in shown
  assert '--train_preproc=shift_3\n' in shown
