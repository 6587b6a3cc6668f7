"""Fine-tuning: what is trained, what follows from what, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs, recipe, step
from nfnets.weights import shapes


def _settings(**settings):
  config = configs.load('digits').experiment_kwargs.config
  config.update(fake_data=True, num_classes=10, image_size=16, **settings)
  config.lr_schedule.name = 'constant'  # Which does not begin with 0.
  return config


def _step(**settings):
  """Returns (step function, its arguments) of a small network."""
  config = _settings(train_batch_size=4, **settings)
  built = recipe.build(config, jax.random.PRNGKey(0))
  state = step.init_train_state(
    built.model, built.optimizer, False, jax.random.PRNGKey(0)
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


def test_what_is_not_trained_neither_moves_nor_has_its_gradient_computed():
  function, args = _step(train_only='last')
  new, metrics = jax.jit(function)(*args)
  assert metrics['grad_norm'] > 0
  for module, leaves in args[0].params.items():
    for name, before in leaves.items():
      same = np.array_equal(before, new.params[module][name])
      assert same == (not module.endswith('NFNet/~/linear')), (module, name)
  evaluate = step.make_eval_step(_model(), _settings())
  forward = jax.make_jaxpr(evaluate)(
    args[0].params, args[0].state, {**args[1], 'mask': jnp.ones(4)}
  )
  expected = _count(forward.jaxpr, 'conv_general_dilated')
  program = jax.make_jaxpr(function)(*args)
  assert expected > 0
  assert _count(program.jaxpr, 'conv_general_dilated') == expected


def _model():
  return recipe.create_model(_settings())


def test_layers_can_learn_at_rates_of_their_own():
  params, _ = shapes.of_model(recipe.create_model(_settings()))
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
  grads = params

  def updates(**settings):
    settings = _settings(lr=0.02, **settings)
    schedule = recipe.create_schedule(settings, 1)
    tx = recipe.create_optimizer(settings, schedule)
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]

  plain, scaled = updates(), updates(lr_head=0.06, layer_decay=0.5)
  for module, factor in (
    ('NFNet/~/linear', 3),
    ('NFNet/~/final_conv', 1),
    ('NFNet/~/nf_block_4/~/conv0', 0.5),
    ('NFNet/~/stem_conv0', 0.5**6),
  ):
    np.testing.assert_allclose(
      scaled[module]['w'], factor * plain[module]['w'], rtol=1e-6
    )


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'train_only': 'conv9'}, "train_only: 'conv9' fits no parameter"),
    ({'model': ''}, 'Neither weights nor a model is named'),
    ({'which_dataset': '', 'fake_data': False}, 'No dataset is named'),
    ({'layer_decay': 0.0}, 'layer_decay is 0.0; it must be positive'),
    ({'num_epochs': -1.0}, 'num_epochs is -1.0; it must not be negative'),
  ],
)
def test_wrong_settings_are_told(settings, message):
  config = _settings()
  config.update(**settings)
  with pytest.raises(recipe.ConfigError, match=message):
    recipe.build(config, jax.random.PRNGKey(0))
