"""Numbers as arguments of the step, and programs that runs share."""

import functools

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_network

from experiments import loop, recipe, step
from nfnets import optim

_SIZE, _BATCH = 8, 4


def _recipe(lr=0.1, clipping=0.3, decay=1e-3, arguments=True, **settings):
  config = small_network.config(
    fake_data=True,
    image_size=_SIZE,
    train_batch_size=_BATCH,
    traced_hyperparams=arguments,
    lr=lr,
    **settings,
  )
  config.optimizer.kwargs.update(clipping=clipping, weight_decay=decay)
  schedule = recipe.create_schedule(config, 2.5)
  return recipe.Recipe(
    config=config,
    model=_model(),
    schedule=schedule,
    optimizer=recipe.create_optimizer(config, schedule),
    builder=None,
    num_examples=10,
    data_seed=0,
  )


@functools.cache
def _model():
  return small_network.Network((8,))


def _train(built, num_steps=12, make=step.make_compiled):
  """Returns the metrics of each step, and the state after the last."""
  key = jax.random.PRNGKey(0)
  experiment = loop.Experiment(
    'train', key, built.config, built, make_steps=make
  )
  batches, history = built.train_batches(), []
  experiment._batches = batches
  experiment._next_batch = experiment._send(next(batches))
  experiment._global_step = 0
  for _ in range(num_steps):
    before = experiment._train_state.params
    metrics = experiment.step(
      global_step=None, rng=jnp.stack([key] * 4), writer=None
    )
    history.append({k: float(v) for k, v in metrics.items()})
  # Memory is used again, but for that of the first state, which pmap copies.
  assert num_steps == 1 or all(x.is_deleted() for x in jax.tree.leaves(before))
  return history, experiment.snapshot_state()['train_state']


def test_the_compiled_step_has_the_weights_of_the_classes(monkeypatch):
  plain = _train(_recipe(), 1)[0]
  weights = np.full(10, 3, np.float32)
  monkeypatch.setattr(recipe.Recipe, 'class_weights', lambda _: weights)
  weighted = _train(_recipe(), 1)[0]
  assert weighted[0]['train_loss'] == pytest.approx(3 * plain[0]['train_loss'])


def test_the_same_program_trains_with_other_numbers_as_constants_do():
  shared = step.make_shared()
  _train(_recipe(lr=0.3, clipping=np.inf, decay=0.0), 2, shared)
  compiled = []

  def listen(event, *_, **__):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    got, argument = _train(_recipe(), 12, shared)
    assert not compiled
    expected, constant = _train(_recipe(arguments=False), 12)
    assert compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  for name in ('train_loss', 'learning_rate', 'grad_norm', 'fraction_clipped'):
    np.testing.assert_allclose(
      *([m[name] for m in of] for of in (got, expected)), 1e-5, err_msg=name
    )
  assert 0 < got[-1]['fraction_clipped'] < 1
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    *(argument.params, constant.params),
  )


def test_what_changes_the_program_is_not_shared():
  shared = step.make_shared()
  first = shared(_recipe())
  assert shared(_recipe(lr=9.0, clipping=1.0)) is first
  assert shared(_recipe(label_smoothing=0.2)) is not first
  # The last layer's rate is a factor of the others'.
  assert shared(_recipe(lr_head=1.0)) is not shared(_recipe(lr=9, lr_head=1.0))
  constant = shared(_recipe(arguments=False))
  assert shared(_recipe(lr=9.0, arguments=False)) is not constant


def test_a_checkpoint_goes_on_with_the_numbers_of_the_settings():
  _, state = _train(_recipe(clipping=0.5), 1)
  experiment = loop.Experiment(
    'train', jax.random.PRNGKey(0), _recipe().config, _recipe(lr=0.7)
  )
  experiment.config.lr = 0.7
  experiment.restore_from_snapshot({'train_state': state})
  numbers = optax.tree.get(
    experiment.snapshot_state()['train_state'].opt_state, 'hyperparams'
  )
  assert {k: float(v) for k, v in numbers.items()} == {
    'peak': np.float32(0.7),
    'clipping': np.float32(0.3),
    'weight_decay': np.float32(1e-3),
  }


def test_what_never_clips_is_finite_in_a_checkpoint():
  numbers = recipe.traced_values(_recipe(clipping=np.inf).config)
  assert all(np.isfinite(value) for value in numbers.values())
  weights = {'w': jnp.full((3, 2), 1e-6)}
  tx = optim.adaptive_grad_clip(numbers['clipping'])
  got, state = tx.update(
    {'w': jnp.full((3, 2), 1e9)}, tx.init(weights), weights
  )
  np.testing.assert_array_equal(got['w'], np.float32(1e9))
  assert state.fraction_clipped == 0
