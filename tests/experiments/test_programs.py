"""Numbers as arguments of the step, and programs that runs share."""

import functools

import haiku as hk
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax

from experiments import programs, recipe, step_numbers, trainer
from experiments.configs import digits
from nfnets import base, imagenet, optim

_SIZE, _BATCH = 8, 4


class _Model:
  """As `nfnets.Model`, with few layers, to compile soon."""

  normalize = staticmethod(imagenet.normalize)

  def __init__(self):
    def forward(images, is_training):
      del is_training
      x = base.WSConv2D(8, 3, stride=2, name='stem_conv0')(images)
      x = jnp.mean(jax.nn.gelu(x), axis=(1, 2))
      return {'logits': hk.Linear(10, name='linear')(x)}

    net = hk.transform_with_state(forward)
    self.init = lambda rng: net.init(
      rng, jnp.zeros((1, _SIZE, _SIZE, 3)), False
    )
    self.apply = net.apply


def _recipe(lr=0.1, clipping=0.3, decay=1e-3, arguments=True, **settings):
  config = digits.get_config().experiment_kwargs.config
  config.update(
    fake_data=True,
    image_size=_SIZE,
    train_batch_size=_BATCH,
    numbers_as_arguments=arguments,
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
  return _Model()


def _train(built, num_steps=12, make=programs.make):
  """Returns the metrics of each step, and the state after the last."""
  key = jax.random.PRNGKey(0)
  experiment = trainer.Experiment(
    'train', key, built.config, built, make_programs=make
  )
  batches, history = built.train_batches(), []
  experiment._batches = batches
  experiment._next_batch = experiment._send(next(batches))
  experiment._global_step = 0
  for _ in range(num_steps):
    metrics = experiment.step(
      global_step=None, rng=jnp.stack([key] * 4), writer=None
    )
    history.append({k: float(v) for k, v in metrics.items()})
  return history, experiment.snapshot_state()['train_state']


def test_the_same_program_trains_with_other_numbers_as_constants_do():
  shared = programs.Shared()
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
  # To the last bit.
  for name in ('train_loss', 'learning_rate', 'grad_norm', 'fraction_clipped'):
    assert [m[name] for m in got] == [m[name] for m in expected], name
  assert 0 < got[-1]['fraction_clipped'] < 1
  jax.tree.map(np.testing.assert_array_equal, argument.params, constant.params)


def test_what_changes_the_program_is_not_shared():
  shared = programs.Shared()
  first = shared(_recipe())
  assert shared(_recipe(lr=9.0, clipping=1.0)) is first
  assert shared(_recipe(label_smoothing=0.2)) is not first
  # The last layer's rate is a factor of the others'.
  assert shared(_recipe(lr_head=1.0)) is not shared(_recipe(lr=9, lr_head=1.0))
  constant = shared(_recipe(arguments=False))
  assert shared(_recipe(lr=9.0, arguments=False)) is not constant


def test_a_checkpoint_goes_on_with_the_numbers_of_the_settings():
  _, state = _train(_recipe(clipping=0.5), 1)
  experiment = trainer.Experiment(
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
  numbers = step_numbers.of(_recipe(clipping=np.inf).config)
  assert all(np.isfinite(value) for value in numbers.values())
  weights = {'w': jnp.full((3, 2), 1e-6)}
  tx = optim.adaptive_grad_clip(numbers['clipping'])
  got, state = tx.update(
    {'w': jnp.full((3, 2), 1e9)}, tx.init(weights), weights
  )
  np.testing.assert_array_equal(got['w'], np.float32(1e9))
  assert state.fraction_clipped == 0
