"""Fine-tuning: what is trained, what follows from what, and what is kept."""

import pathlib
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from experiments import (
  command_line,
  configs,
  defaults,
  recipe,
  step,
)
import nfnets
from nfnets import weights
from nfnets.errors import UserError
from nfnets.weights import matching


def _settings(**settings):
  config = configs.load('digits').experiment_kwargs.config
  config.update(fake_data=True, num_classes=10, image_size=16, **settings)
  config.lr_schedule.name = 'constant'  # Which does not begin with 0.
  return config


def _step(**settings):
  """Returns (step function, shapes of its arguments) of a small network."""
  config = _settings(train_batch_size=4, **settings)
  built = recipe.build(config, jax.random.PRNGKey(0))
  state = jax.eval_shape(
    lambda key: step.init_train_state(built.model, built.optimizer, False, key),
    jax.random.PRNGKey(0),
  )
  batch = next(built.train_batches())
  function = step.make_train_step(
    built.model, built.optimizer, built.schedule, config
  )
  return function, (state, batch, jax.random.PRNGKey(1))


def _count(jaxpr, name) -> int:
  """Returns how often an operation is in a program, at any depth."""
  return sum(
    (eqn.primitive.name == name)
    + sum(
      _count(getattr(x, 'jaxpr', x), name)
      for value in eqn.params.values()
      for x in (value if isinstance(value, (tuple, list)) else [value])
      if hasattr(getattr(x, 'jaxpr', x), 'eqns')
    )
    for eqn in jaxpr.eqns
  )


def test_gradients_of_what_is_not_trained_are_not_computed():
  function, args = _step(train_only='last')
  evaluate = step.make_eval_step(recipe.create_model(_settings()), _settings())
  forward = jax.make_jaxpr(evaluate)(
    args[0].params, args[0].state, {**args[1], 'mask': np.ones(4)}
  )
  expected = _count(forward.jaxpr, 'conv_general_dilated')
  program = jax.make_jaxpr(function)(*args)
  assert expected > 0
  assert _count(program.jaxpr, 'conv_general_dilated') == expected


def test_layers_can_learn_at_rates_of_their_own():
  factors = {
    'NFNet/~/linear': 3,
    'NFNet/~/final_conv': 1,
    'NFNet/~/nf_block_4/~/conv0': 0.5,
    'NFNet/~/stem_conv0': 0.5**6,
  }
  params = grads = {module: {'w': np.ones((2, 2))} for module in factors}

  def updates(**settings):
    settings = _settings(lr=0.02, **settings)
    schedule = recipe.create_schedule(settings, 1)
    tx = recipe.create_optimizer(settings, schedule)
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]

  plain, scaled = updates(), updates(lr_head=0.06, layer_decay=0.5)
  for module, factor in factors.items():
    np.testing.assert_allclose(
      scaled[module]['w'], factor * plain[module]['w'], rtol=1e-6
    )


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'train_only': 'conv9'}, "train_only: 'conv9' matches no parameter"),
    ({'model': ''}, 'Neither weights nor a model is named'),
    ({'which_dataset': '', 'fake_data': False}, 'There is no dataset'),
    ({'layer_decay': 0.0}, 'layer_decay is 0.0; it must be positive'),
    ({'num_epochs': -1.0}, 'num_epochs is -1.0; it must be positive'),
  ],
)
def test_wrong_settings_are_told(settings, message):
  config = _settings()
  config.update(**settings)
  with pytest.raises(UserError, match=message):
    recipe.build(config, jax.random.PRNGKey(0))


# What follows from what.


def _write_weights(path, class_names=None, **others):
  """Writes weights of ones for classes that have names."""
  model = nfnets.create_model('nfnet_digits', len(class_names or 'abcde'))
  params, _ = matching.model_shapes(model)
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
  metadata = weights.describe(model, class_names=class_names, **others)
  weights.save_weights(path, params, metadata=metadata)
  return str(path)


def _write_pictures(folder: pathlib.Path, classes, count=4) -> str:
  """Writes noise, other noise for each picture."""
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for name in classes:
      (folder / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(256, size=(9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / name / f'{i}.png')
  return str(folder)


def _finetune(training_steps=0, **settings):
  config = configs.load('finetune').experiment_kwargs.config
  config.update(**settings)
  key = jax.random.PRNGKey(0)
  return config, recipe.build(config, key, training_steps=training_steps)


def test_what_is_left_open_follows_from_weights_and_data(tmp_path):
  path = _write_weights(
    tmp_path / 'w.npz',
    ['x', 'y'],
    image_size=24,
    train_size=20,
    preprocessing='crop_resize',
    train_preprocessing='shift_2',
    model_kwargs={'stochdepth_rate': 0.0},
  )
  data = _write_pictures(tmp_path / 'data', 'abc')
  config, built = _finetune(weights=path, which_dataset=data)
  assert config.model == 'nfnet_digits'
  assert config.model_kwargs.to_dict() == {'stochdepth_rate': 0.0}
  assert (config.image_size, config.eval_image_size) == (20, 24)
  assert config.eval_preproc == 'crop_resize'
  assert config.train_preproc == 'shift_2'
  assert config.num_classes == built.model.num_classes == 3
  assert built.num_steps == 300 and built.test_split == 'test'
  assert built.num_eval_examples('test') == 12
  # A tenth of the steps is warm-up.
  assert built.schedule(15) == pytest.approx(config.lr / 2, rel=1e-5)
  more = _write_pictures(tmp_path / 'more', 'abc', count=40)
  larger, built = _finetune(
    weights=path, which_dataset=more, train_batch_size=4, lr=0.1
  )
  assert built.num_steps == 5 * built.num_examples > 300
  assert larger.lr == 0.1
  scratch, built = _finetune(model='nfnet_digits', which_dataset=data)
  assert built.num_steps > 300 and scratch.lr != config.lr
  clippings = [c.optimizer.kwargs.clipping for c in (config, scratch)]
  assert 0 < clippings[0] < clippings[1]


@pytest.mark.parametrize(
  ('recipe_name', 'model', 'size', 'eval_size'),
  [
    ('finetune', 'nfnet_digits', 64, 64),
    ('digits', 'nfnet_digits', 64, 64),
    ('digits:small', 'nfnet_digits', 64, 64),
    ('f0', 'nfnet_f0', 192, 256),
    ('f0', 'nfnet_f0', 96, 128),
    ('nf_regnet_b0', 'nf_regnet_b0', 96, 112),
  ],
)
def test_images_of_evaluation_are_as_large_as_those_of_training_ask(
  recipe_name, model, size, eval_size, caplog
):
  config = configs.load(recipe_name).experiment_kwargs.config
  config.update(model=model, image_size=size)
  defaults.set_model_defaults(config)
  assert config.eval_image_size == eval_size
  assert not caplog.text


def test_they_follow_the_two_sizes_of_the_weights(tmp_path):
  path = _write_weights(tmp_path / 'w.npz', train_size=20, image_size=24)
  config = configs.load('finetune').experiment_kwargs.config
  config.update(weights=path, image_size=40)
  defaults.set_model_defaults(config)
  assert config.eval_image_size == 48


def test_images_that_are_smaller_in_evaluation_are_warned_about(caplog):
  config = configs.load('digits').experiment_kwargs.config
  config.update(image_size=64, eval_image_size=32)
  defaults.set_model_defaults(config)
  assert config.eval_image_size == 32
  assert 'eval_image_size=32 is smaller than image_size=64' in caplog.text


def test_test_images_choose_weights_where_they_are_evaluated_on_the_way(
  tmp_path,
):
  tested = _write_pictures(tmp_path / 'tested', 'ab')
  held_out = _write_pictures(tmp_path / 'held_out', 'ab', count=8)
  shutil.rmtree(tmp_path / 'held_out' / 'test')
  for data, subset, expected in (
    (tested, 'valid', False),
    (tested, 'test', True),
    (held_out, 'valid', True),
    (held_out, 'test', True),
  ):
    _, built = _finetune(
      model='nfnet_digits', which_dataset=data, eval_subset=subset
    )
    assert built.chooses_by_test == expected


def test_the_schedule_is_as_long_as_training_unless_epochs_are_given(tmp_path):
  data = _write_pictures(tmp_path / 'data', 'abc')
  kwargs = {'model': 'nfnet_digits', 'which_dataset': data, 'lr': 1.0}
  _, built = _finetune(1000, **kwargs)
  assert built.num_steps == 1000 and built.schedule(100) == 1.0
  assert built.schedule(1000) == pytest.approx(0, abs=1e-6)
  _, built = _finetune(1000, num_epochs=400.0, **kwargs)
  assert built.num_steps == 400 * built.num_examples // 32 < 1000


def test_a_run_goes_on_with_what_it_began_with(tmp_path):
  path = _write_weights(
    tmp_path / 'w.npz', model_kwargs={'alpha': 0.3}, train_size=20
  )
  data = _write_pictures(tmp_path / 'data', 'abc')
  began, _ = _finetune(1000, weights=path, which_dataset=data)
  settings = dict(command_line.leaves(began))
  # Its weights may be gone by now.
  goes_on = configs.load('finetune').experiment_kwargs.config
  goes_on.which_dataset = data
  defaults.restore_settings(goes_on, settings)
  recipe.build(goes_on, jax.random.PRNGKey(0))
  assert dict(command_line.leaves(goes_on)) == {**settings, 'weights': None}


@pytest.mark.parametrize(
  'classes, message',
  [
    ('abc', None),
    ('abd', 'is for other classes than those of'),
    ('abcd', 'is for 3 classes; it was replaced by a new one for 4'),
  ],
)
def test_a_last_layer_for_other_classes_is_replaced(
  classes, message, tmp_path, caplog
):
  caplog.set_level('INFO', logger='absl')
  path = _write_weights(tmp_path / 'w.npz', list('abc'))
  data = _write_pictures(tmp_path / 'data', classes)
  _, built = _finetune(weights=path, which_dataset=data)
  read = defaults.read_weights(built, is_training=True)
  assert ('NFNet/~/linear' in read.params) == (message is None)
  assert (message or 'Starting from') in caplog.text


def test_a_last_layer_gets_the_order_of_the_dataset(tmp_path, caplog):
  caplog.set_level('INFO', logger='absl')
  data = _write_pictures(tmp_path / 'data', 'abc')
  path = _write_weights(tmp_path / 'w.npz', list('cab'))
  given = weights.read_weights(path).params
  given['NFNet/~/linear'] = {
    'w': given['NFNet/~/linear']['w'] * np.float32([3, 1, 2]),
    'b': np.float32([3, 1, 2]),
  }
  weights.save_weights(path, given, metadata=weights.read_metadata(path))
  _, built = _finetune(weights=path, which_dataset=data)
  last = defaults.read_weights(built, is_training=True).params['NFNet/~/linear']
  np.testing.assert_array_equal(last['w'], [[1, 2, 3]] * len(last['w']))
  np.testing.assert_array_equal(last['b'], [1, 2, 3])
  assert 'the classes of the network in another order' in caplog.text


@pytest.mark.slow
def test_the_whole_path_from_pictures_to_a_classifier(run_command, tmp_path):
  data = _write_pictures(tmp_path / 'data', ['<b>', 'b'])
  path = _write_weights(tmp_path / 'w.npz', train_size=16, image_size=16)
  run = tmp_path / 'run'
  args = ['--config=finetune', f'--data={data}', f'--weights={path}']
  args += ['--training_steps=4', '--evaluations=2', f'--checkpoint_dir={run}']
  result = run_command(*args)
  assert result.status == 0, result.log
  assert result.json['test_num_examples'] == 8
  assert result.json['test_split'] == 'test'
  model, _, _ = weights.open_model(run)
  assert model.class_names == ('<b>', 'b')
  assert weights.read_metadata(run)['step'] in (2, 4)
  page = pathlib.Path(result.json['report']).read_text()
  assert '&lt;b&gt;' in page and '<b>' not in page
  # Without the weights and from the record alone.
  again = run_command(
    *args[:2], args[-1], '--jaxline_mode=eval', '--one_off_evaluate'
  )
  assert again.status == 0, again.log
  # Other pictures than those it began with.
  _write_pictures(tmp_path / 'data' / 'train' / 'b', ['more'])
  changed = run_command(*args)
  assert changed.status == 1
  assert 'added' in changed.log, changed.log
