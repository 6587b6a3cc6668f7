"""Tests of weights: to start from, to evaluate, and out of a checkpoint."""

import json
import os
import types

import command_lib
import jax
import numpy as np
import pytest
from quick_lib import quickly_compiled  # noqa: F401

from experiments import (
  checkpoints,
  configs,
  defaults,
  jaxline_compat,
  loop,
  recipe,
  step,
  train,
)
from experiments.tools import extract_weights
import nfnets
from nfnets import weights

_SETTING = '--experiment_kwargs.config'
_HEAD = 'NFNet/~/linear'
_SIZE = 16  # Pixels.


def _config(folder, data_dir, **settings):
  """Has what `command_lib.SMALL` has, so that no step is compiled again."""
  config = configs.load('digits')
  config.checkpoint_dir = str(folder)
  config.report = False
  config.experiment_kwargs.config.update(
    image_size=_SIZE,
    eval_image_size=_SIZE,
    train_batch_size=16,
    eval_batch_size=7,
    num_epochs=0.2,
    lr_schedule={'warmup_epochs': 0.02},
    use_ema=True,
    data_dir=data_dir,
    **settings,
  )
  return config


def _write(path, num_classes):
  """Writes random weights; returns them."""
  params, _ = nfnets.create_model('nfnet_digits', num_classes).init(
    jax.random.key(1), _SIZE
  )
  params = jax.tree.map(np.asarray, params)
  weights.save_weights(path, params)
  return params


def _assert_equal(actual, expected):
  assert set(actual) == set(expected)
  for module, leaves in expected.items():
    assert set(actual[module]) == set(leaves)
    for name, leaf in leaves.items():
      np.testing.assert_array_equal(actual[module][name], leaf, module + name)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data_dir):
  """A run of two steps that began with weights, and its evaluation."""
  run = types.SimpleNamespace(folder=tmp_path_factory.mktemp('trained') / 'run')
  run.weights = run.folder.parent / 'start.npz'
  run.given = _write(run.weights, 10)
  run.config = _config(run.folder, data_dir, weights=str(run.weights))
  run.config.training_steps = 2
  train.train_and_evaluate(run.config, 'train')
  config = _config(run.folder, data_dir)
  config.one_off_evaluate = True
  run.evaluated = train.train_and_evaluate(config, 'eval')
  return run


# Weights out of a checkpoint.


@pytest.mark.parametrize(
  'which, suffix', [('ema', 'npz'), ('raw', 'safetensors')]
)
@pytest.mark.slow
def test_extracted_weights_evaluate_as_the_checkpoint_did(
  which, suffix, trained, data_dir, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  output = f'digits.{suffix}'
  # The average is what is taken if nothing is asked for.
  args = [] if which == 'ema' else ['--which=raw']
  args += [str(trained.folder), f'--output={output}']
  assert extract_weights.main(args) == 0
  assert json.loads(capsys.readouterr().out) == {
    'output': output,
    'step': 2,
    'which': which,
    'model': 'nfnet_digits',
    'num_classes': 10,
  }
  # What the run knows of them comes along.
  model, _, _ = weights.open_model(output)
  assert model.class_names == tuple('0123456789')
  assert (model.test_size, weights.read_metadata(output)['step']) == (_SIZE, 2)
  config = _config('runs/digits', data_dir, weights=output)
  got = train.train_and_evaluate(config, 'eval')
  prefix = 'eval_ema_' if which == 'ema' else 'eval_'
  other = 'eval_' if which == 'ema' else 'eval_ema_'
  for key in ('loss', 'top_1_acc', 'top_5_acc'):
    expected = trained.evaluated[prefix + key]
    assert got[f'eval_{key}'] == pytest.approx(expected, rel=1e-6)
  other_loss = trained.evaluated[f'{other}loss']
  assert got['eval_loss'] != pytest.approx(other_loss, rel=1e-4)
  assert got['eval_num_examples'] == 360
  assert not any('ema' in key for key in got)
  assert os.listdir() == [output]  # No folder of results.


class _Module:
  """In place of an experiment: a network with moving averages."""

  def __init__(self, use_ema):
    def tree(*names):
      rng = np.random.default_rng(len(names))
      return {
        'net/~/norm': {n: rng.standard_normal(3).astype('f4') for n in names}
      }

    self.train_state = step.TrainState(
      step=np.int32(4),
      params=tree('scale'),
      state=tree('average', 'hidden'),
      opt_state=({'trace': tree('a', 'b', 'c')}, ()),
      ema_params=tree('scale', 'x') if use_ema else None,
      ema_state=tree('average', 'hidden', 'x') if use_ema else None,
      skipped=np.int32(0),
    )

  def snapshot_state(self):
    return {'train_state': self.train_state}


def _save(folder, use_ema, series='latest'):
  """Writes a checkpoint of a network with moving averages."""
  config = _config(folder, '')
  checkpointer = checkpoints.OrbaxCheckpointer(config, 'train')
  state = checkpointer.get_experiment_state(series)
  state.global_step, state.experiment_module = 4, _Module(use_ema)
  state.train_step_rng = jaxline_compat.bcast_local_devices(np.zeros(2, 'u4'))
  checkpointer.save(series)
  checkpointer.close()
  return state.experiment_module.train_state


@pytest.mark.parametrize(
  'use_ema, which, expected',
  [
    (True, None, 'ema'),
    (True, 'ema', 'ema'),
    (True, 'raw', 'raw'),
    (False, None, 'raw'),
  ],
)
def test_moving_averages_come_along(use_ema, which, expected, tmp_path, capsys):
  written = _save(tmp_path, use_ema)
  args = [str(tmp_path), f'--output={tmp_path}/x.npz']
  args += [f'--which={which}'] if which else []
  assert extract_weights.main(args) == 0
  last = json.loads(capsys.readouterr().out)
  assert last['which'] == expected
  assert last['model'] is None and last['num_classes'] is None
  read = weights.load_weights(tmp_path / 'x.npz')
  is_ema = expected == 'ema'
  _assert_equal(read.params, written.ema_params if is_ema else written.params)
  _assert_equal(read.state, written.ema_state if is_ema else written.state)


def test_the_best_checkpoint_can_be_taken(tmp_path, capsys):
  written = _save(tmp_path, True, 'best')
  args = [str(tmp_path), f'--output={tmp_path}/x.npz']
  assert extract_weights.main(args) == 1
  assert f'no checkpoint in {tmp_path}/latest' in capsys.readouterr().err
  assert extract_weights.main([*args, '--series=best']) == 0
  assert f'weights of step 4 of {tmp_path}/best' in capsys.readouterr().err
  read = weights.load_weights(tmp_path / 'x.npz')
  _assert_equal(read.params, written.ema_params)


def _flip_a_bit(folder):
  """Changes one byte of each file that holds arrays."""
  for file in (folder / 'latest' / '4' / 'state').rglob('*'):
    if file.is_file() and '/d/' in str(file):
      data = bytearray(file.read_bytes())
      data[len(data) // 2] ^= 1
      file.write_bytes(data)


@pytest.mark.parametrize(
  'args, message',
  [
    (['{}/nowhere', '--output={}/x.npz'], 'no checkpoint in {}/nowhere/latest'),
    (['{}', '--output={}/x.npz', '--which=ema'], 'has no averaged weights'),
    (['{}', '--output={}/no/x.npz'], 'no/x.npz cannot be written: No such'),
    (['{}/damaged', '--output={}/x.npz'], 'is damaged'),
  ],
)
def test_bad_input_to_extraction_is_one_line(args, message, tmp_path, capsys):
  _save(tmp_path, use_ema=False)
  _save(tmp_path / 'damaged', use_ema=False)
  _flip_a_bit(tmp_path / 'damaged')
  assert extract_weights.main([a.format(tmp_path) for a in args]) == 1
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.startswith('error: ')
  assert message.format(tmp_path) in captured.err
  assert not (tmp_path / 'x.npz').exists()


# Weights to start from.


def _start(config):
  """Returns the train state that training from weights begins with."""
  ours = config.experiment_kwargs.config
  key = jax.random.PRNGKey(0)
  built = recipe.build(ours, key)
  given = defaults.read_weights(built, is_training=True)
  module = loop.Experiment('train', key, ours, built, weights=given)
  return module.snapshot_state()['train_state']


@pytest.mark.parametrize(
  'num_classes, message',
  [
    (10, None),
    (1000, 'is for 1000 classes; it was replaced by a new one for 10.'),
    (0, 'has no last layer; it got a new one for 10 classes.'),
  ],
)
@pytest.mark.slow
def test_training_starts_from_the_weights_but_for_another_head(
  num_classes, message, data_dir, tmp_path, caplog
):
  path = str(tmp_path / 'start.npz')
  given = _write(path, num_classes)
  given.setdefault(_HEAD, {'w': np.ones(1), 'b': np.ones(1)})
  caplog.set_level('INFO', logger='absl')
  state = _start(_config(tmp_path, data_dir, weights=path))
  assert state.step == 0
  assert set(state.params) == set(given)
  for params in (state.params, state.ema_params):
    if message is not None:
      assert params[_HEAD]['w'].shape[-1:] == params[_HEAD]['b'].shape == (10,)
      assert params[_HEAD]['w'].std() > 0
      params.pop(_HEAD)
    _assert_equal(params, {module: given[module] for module in params})
  trace = jax.tree.leaves(state.opt_state)
  assert not any(np.any(leaf) for leaf in trace)
  lines = [r.getMessage() for r in caplog.records if path in r.getMessage()]
  assert lines[0] == f'Starting from the weights of {path}'
  assert len(lines) == 1 + (message is not None)
  assert message is None or lines[1].endswith(f'{path} {message}')


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint_and_not_from_weights(trained):
  trained.weights.unlink(missing_ok=True)
  again = train.train_and_evaluate(
    trained.config.copy_and_resolve_references(), 'train'
  )
  assert again['had_ended'] and again['step'] == 2


# Bad input.


@pytest.fixture(scope='module')
def bad_files(tmp_path_factory):
  """A folder of weights that do not fit, and of a checkpoint."""
  folder = tmp_path_factory.mktemp('bad_files')
  params = _write(folder / 'head.npz', 1000)
  weights.save_weights(folder / 'folded.npz', weights.fold_weights(params))
  del params['NFNet/~/stem_conv0']
  weights.save_weights(folder / 'missing.npz', params)
  digits = _write(folder / 'digits.npz', 10)
  names = [*'0123', 'four', *'56789']
  weights.save_weights(
    folder / 'words.npz', digits, metadata={'class_names': names}
  )
  (folder / 'text.npz').write_text('weights')
  _save(folder / 'run', use_ema=True)
  return folder


_EVAL = '--jaxline_mode=eval'
_F0 = '--model=nfnet_f0'
_RESNET = '--model=nf_resnet50'
_MULTITHREADED = '--jaxline_mode=train_eval_multithreaded'


@pytest.mark.parametrize(
  'file, args, status, message',
  [
    ('no.npz', (), 1, 'no.npz: there is no such file'),
    ('text.npz', (_EVAL,), 1, 'is not a file of weights'),
    ('missing.npz', (), 2, 'missing: NFNet/~/stem_conv0/'),
    ('digits.npz', (_RESNET, _EVAL), 2, 'are of nfnet_digits with 10 classes'),
    ('head.npz', (_F0,), 2, 'with 1000 classes, not of nfnet_f0 with 10 '),
    ('digits.npz', (_RESNET, _MULTITHREADED), 2, 'are of nfnet_digits with'),
    (
      'head.npz',
      (_EVAL,),
      2,
      "has classes that the network does not have: '0'",
    ),
    (
      'words.npz',
      (_EVAL,),
      2,
      "'4' (number 4). The network has instead: 'four'",
    ),
    ('folded.npz', (), 2, 'cannot be trained any more'),
    ('', ('--eval_initial_weights',), 2, 'is for the weights of'),
    (
      'head.npz',
      (_EVAL, '--checkpoint_dir={}/run'),
      2,
      'leave out --weights or --checkpoint_dir',
    ),
  ],
)
def test_weights_that_do_not_fit_are_one_line(
  file, args, status, message, bad_files, run_command, tmp_path
):
  path = f'{bad_files}/{file}' if file else ''
  args = [arg.format(bad_files) for arg in args]
  args = ('--config=digits', *args, f'--weights={path}')
  result = run_command(*args, cwd=tmp_path)
  assert result.status == status
  assert result.output == ''
  last = result.log.splitlines()[-1]
  assert last.startswith('error: ')
  assert path in last
  assert message in last
  assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_evaluation_of_weights_ends_with_one_line_of_json(
  run_command, tmp_path_factory, tmp_path
):
  """Also of folded ones, with the same results."""
  folder = tmp_path_factory.mktemp('weights')
  folded = weights.fold_weights(_write(folder / 'plain.safetensors', 10))
  weights.save_weights(folder / 'folded.npz', folded)
  args = (*command_lib.SMALL, _EVAL, '--eval_initial_weights')
  losses = []
  for path in (folder / 'plain.safetensors', folder / 'folded.npz'):
    result = run_command(*args, f'--weights={path}', cwd=tmp_path)
    assert result.status == 0, result.log
    assert len(result.output.splitlines()) == 1
    assert set(result.json) == {
      *('config', 'mode', 'weights', 'eval_loss', 'eval_top_1_acc'),
      *('eval_top_5_acc', 'eval_num_examples'),
    }
    losses.append(result.json['eval_loss'])
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
  assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_labels_are_those_of_the_names(run_command, tmp_path):
  """A network whose classes stand in another order has the same results."""
  params, results = _write(tmp_path / 'plain.npz', 10), []
  for order in (np.arange(10), np.random.default_rng(0).permutation(10)):
    last = {k: v[..., order] for k, v in params[_HEAD].items()}
    names = [*map(str, order)]
    path = tmp_path / 'w.npz'
    weights.save_weights(
      path, {**params, _HEAD: last}, metadata={'class_names': names}
    )
    args = (*command_lib.SMALL, _EVAL, '--eval_initial_weights')
    result = run_command(*args, f'--weights={path}')
    assert result.status == 0, result.log
    results.append({k: v for k, v in result.json.items() if 'eval' in k})
  assert 'labels are matched by name' in result.log
  assert results[0] == pytest.approx(results[1], rel=1e-5)
