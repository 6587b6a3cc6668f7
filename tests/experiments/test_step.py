"""Tests of the steps, without JAXline and without data."""

import functools
import types

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_network

from experiments import jaxline_compat
from experiments import step as step_lib
from nfnets import imagenet, optim

_SIZE = 16
_BATCH = 8
_LR = 0.1


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'images': rng.uniform(0, 255, (_BATCH, _SIZE, _SIZE, 3)).astype(np.float32),
    'labels': rng.integers(10, size=_BATCH, dtype=np.int32),
  }


def _optimizer():
  # Clips some units and not others.
  return optim.make_optimizer('sgd_agc', _LR, clipping=0.1)


@functools.cache
def _model():
  return small_network.Network((16, 16), size=_SIZE)


@functools.cache
def _params():
  return _model().init(jax.random.key(0))[0]


def _state(optimizer, use_ema=False):
  copies = [jax.tree.map(jnp.array, _params()) for _ in range(2)]
  return step_lib.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=copies[0],
    state={},
    opt_state=optimizer.init(_params()),
    ema_params=copies[1] if use_ema else None,
    ema_state={} if use_ema else None,
    skipped=jnp.zeros((), jnp.int32),
  )


def _pmapped(config, optimizer, devices):
  step = step_lib.make_train_step(
    _model(), optimizer, lambda _: _LR, config, axis_name='i'
  )
  return jax.pmap(
    step,
    axis_name='i',
    devices=jax.devices()[:devices],
    donate_argnums=0,
    out_axes=(0, None),
  )


def _spread(tree, devices, copies):
  """Splits a batch over devices, or copies a state to each."""
  if copies:
    return jax.tree.map(lambda x: jnp.stack([x] * devices), tree)
  return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), tree)


def _rngs(devices, seed=0):
  return jax.random.split(jax.random.PRNGKey(seed), devices)


def _run(devices, num_steps, config, optimizer):
  step = _pmapped(config, optimizer, devices)
  state = _spread(_state(optimizer, config.use_ema), devices, copies=True)
  history, states = [], []
  for i in range(num_steps):
    batch = _spread(_batch(i), devices, copies=False)
    state, metrics = step(state, batch, _rngs(devices, i))
    history.append(metrics)
    states.append(jaxline_compat.get_first(state))
  return states[-1], jax.device_get(history), states


@pytest.fixture(scope='module')
def one_device():
  return _run(1, 5, small_network.config(use_ema=True), _optimizer())


@pytest.mark.parametrize('devices, parts', [(4, 1), (2, 2)])
def test_neither_devices_nor_parts_matter(one_device, devices, parts):
  """With AGC clipping a part of the units, so before or after would differ."""
  config = small_network.config(use_ema=True, accumulate_steps=parts)
  state, history, _ = _run(devices, 5, config, _optimizer())
  wanted, wanted_history, _ = one_device
  assert 0.1 < wanted_history[-1]['fraction_clipped'] < 0.9
  for got, want in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(wanted.params), strict=True
  ):
    difference = np.linalg.norm(got - want)
    assert difference <= 1e-5 * max(np.linalg.norm(want), 1e-3)
  chex.assert_trees_all_close(history, wanted_history, rtol=1e-4, atol=1e-6)


class _BatchNormModel:
  """Normalizes the mean colour and multiplies it by a matrix."""

  def __init__(self, axis=None):
    def forward(axis, images, is_training):
      norm = hk.BatchNorm(True, True, 0.9, cross_replica_axis=axis)
      x = norm(jnp.mean(images, axis=(1, 2)), is_training)
      return {'logits': hk.Linear(10)(x)}

    def transform(axis):
      return hk.transform_with_state(functools.partial(forward, axis))

    # There is no axis yet.
    self.init = lambda rng: transform(None).init(
      rng, jnp.zeros((2, 4, 4, 3)), True
    )
    self.apply = transform(axis).apply
    self.normalize = imagenet.normalize


@pytest.mark.parametrize('axis', [None, 'i'])
def test_moving_averages_are_the_same_on_all_devices(axis):
  model = _BatchNormModel(axis)
  config, optimizer = small_network.config(use_ema=True), optax.sgd(_LR)
  state = step_lib.init_train_state(
    model, optimizer, True, jax.random.PRNGKey(0)
  )
  step = jax.pmap(
    step_lib.make_train_step(model, optimizer, lambda _: _LR, config, 'i'),
    axis_name='i',
    devices=jax.devices()[:2],
    out_axes=(0, None),
  )
  before = _spread(state, 2, copies=True)
  batch = _batch()
  after, _ = step(before, _spread(batch, 2, copies=False), _rngs(2))
  means = imagenet.normalize(batch['images']).mean((1, 2))
  # Each device's half by itself, or both together.
  groups = [means] if axis else [means[:4], means[4:]]
  averages = after.state['batch_norm/~/var_ema']['average']
  np.testing.assert_array_equal(averages[0], averages[1])
  want = np.mean([group.var(0) for group in groups], axis=0)
  np.testing.assert_allclose(averages[0].ravel(), want, rtol=1e-4)
  # The average of the state, too; its first decay is 0.1.
  ema = after.ema_state['batch_norm/~/var_ema']['average']
  old = before.state['batch_norm/~/var_ema']['average'][0].ravel()
  np.testing.assert_allclose(ema[0].ravel(), 0.1 * old + 0.9 * want, rtol=1e-4)


def test_mixed_labels_give_a_mixed_loss():
  rng = np.random.default_rng(1)
  ratio = rng.uniform(size=_BATCH).astype(np.float32)
  others = rng.integers(10, size=_BATCH, dtype=np.int32)
  batch = {**_batch(), 'mix_labels': others, 'ratio': ratio}
  step = step_lib.make_train_step(
    _model(),
    optax.sgd(_LR),
    lambda _: _LR,
    small_network.config(label_smoothing=0.1),
  )
  state = _state(optax.sgd(_LR))
  _, metrics = jax.jit(step)(state, batch, jax.random.PRNGKey(0))
  logits = _model().logits(_params(), imagenet.normalize(batch['images']))
  logits = np.asarray(logits, np.float64)
  log_probs = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
  rows = np.arange(_BATCH)
  loss = -np.mean(
    0.9 * ratio * log_probs[rows, batch['labels']]
    + 0.9 * (1 - ratio) * log_probs[rows, others]
    + 0.1 * log_probs.mean(-1)
  )
  np.testing.assert_allclose(metrics['train_loss'], loss, rtol=1e-5)
  top_1 = np.mean(np.argmax(logits, -1) == batch['labels'])
  assert metrics['top_1_acc'] == top_1
  assert metrics['learning_rate'] == pytest.approx(_LR)


def test_images_are_normalized_as_the_model_wants():
  """In both steps: with another mean, other images give the same loss."""
  model = small_network.Network((16, 16), size=_SIZE)
  model.normalize = lambda images: (images - 50) / 20
  batch = _batch()
  logits = np.asarray(model.logits(_params(), (batch['images'] - 50) / 20))
  log_probs = jax.nn.log_softmax(logits)[np.arange(_BATCH), batch['labels']]
  train_step = step_lib.make_train_step(
    model,
    optax.sgd(_LR),
    lambda _: _LR,
    small_network.config(label_smoothing=0.0),
  )
  key = jax.random.PRNGKey(0)
  _, metrics = jax.jit(train_step)(_state(optax.sgd(_LR)), batch, key)
  np.testing.assert_allclose(metrics['train_loss'], -log_probs.mean(), 1e-5)
  eval_step = step_lib.make_eval_step(model, small_network.config())
  batch['mask'] = np.ones(_BATCH)
  sums = jax.jit(eval_step)(_params(), {}, batch)
  np.testing.assert_allclose(sums['loss'], -log_probs.sum(), 1e-5)


@pytest.mark.parametrize('num_classes, has_top_5', [(5, False), (6, True)])
def test_top_5_is_measured_where_it_can_be_less_than_one(
  num_classes, has_top_5
):
  out = {'logits': jnp.eye(num_classes)}, {}
  model = types.SimpleNamespace(normalize=jnp.array, apply=lambda *_, **__: out)
  images = jnp.zeros((num_classes, 1, 1, 3))
  labels = jnp.arange(num_classes)
  batch = {'images': images, 'labels': labels, 'mask': labels + 1}
  sums = step_lib.make_eval_step(model, small_network.config())({}, {}, batch)
  assert ('top_5_acc' in sums) == has_top_5
  assert sums['top_1_acc'] == num_classes


def test_an_update_that_is_not_finite_can_be_left_out():
  config = small_network.config(skip_nonfinite=True, use_ema=True)
  optimizer = _optimizer()
  step = jax.jit(
    step_lib.make_train_step(_model(), optimizer, lambda _: _LR, config)
  )
  key = jax.random.PRNGKey(0)
  before, _ = step(_state(optimizer, use_ema=True), _batch(0), key)
  spoilt = _batch(1)
  spoilt['images'][0, 0, 0, 0] = np.nan
  after, metrics = step(before, spoilt, key)
  assert not np.isfinite(metrics['train_loss'])
  assert (metrics['updates_skipped'], after.skipped) == (1, 1)
  chex.assert_trees_all_equal(after._replace(skipped=before.skipped), before)
  later, metrics = step(after, _batch(2), key)
  want, _ = step(before, _batch(2), key)
  chex.assert_trees_all_equal(later.params, want.params)
  assert (metrics['updates_skipped'], later.step) == (1, 2)


def test_the_average_follows_its_recursion(one_device):
  _, history, states = one_device
  average = _params()
  for step, state in enumerate(states):
    decay = (1 + step) / (10 + step)
    average = jax.tree.map(
      lambda old, new, d=decay: d * old + (1 - d) * new, average, state.params
    )
    chex.assert_trees_all_close(state.ema_params, average, rtol=1e-5, atol=1e-6)
    assert int(state.step) == step + 1
  assert len(history) == 5


def test_images_with_the_batch_last_are_the_same_images():
  batch, params = _batch(), _params()
  transposed = {**batch, 'images': batch['images'].transpose(1, 2, 3, 0)}
  sums = []
  for transpose, b in ((False, batch), (True, transposed)):
    step = step_lib.make_eval_step(
      _model(), small_network.config(transpose=transpose)
    )
    sums.append(jax.jit(step)(params, {}, {**b, 'mask': np.ones(_BATCH)}))
  chex.assert_trees_all_close(*sums, rtol=1e-6)


def _product_dtypes(lowered):
  """Returns the dtypes that convolutions and matrix products give."""
  dtypes = {
    line.rstrip().rpartition('x')[2].removesuffix('>')
    for line in lowered.as_text().splitlines()
    if 'stablehlo.convolution' in line or 'stablehlo.dot_general' in line
  }
  assert dtypes
  return dtypes


def test_bfloat16_keeps_float32_weights():
  optimizer = _optimizer()
  step = step_lib.make_train_step(
    _model(),
    optimizer,
    lambda _: _LR,
    small_network.config(bfloat16=True, use_ema=True),
  )
  state = _state(optimizer, use_ema=True)
  lowered = jax.jit(step).lower(state, _batch(), jax.random.PRNGKey(0))
  after, metrics = jax.eval_shape(step, state, _batch(), jax.random.PRNGKey(0))
  dtypes = {x.dtype for x in jax.tree.leaves((after.params, after.ema_params))}
  assert dtypes == {jnp.dtype('float32')}
  assert {x.dtype for x in metrics.values()} == {jnp.dtype('float32')}
  assert _product_dtypes(lowered) == {'bf16'}


@pytest.mark.parametrize(
  'eval_bfloat16, dtype', [(False, 'f32'), (True, 'bf16')]
)
def test_evaluation_is_float32_unless_asked(eval_bfloat16, dtype):
  config = small_network.config(bfloat16=True, eval_bfloat16=eval_bfloat16)
  step = step_lib.make_eval_step(_model(), config)
  batch = {**_batch(), 'mask': np.ones(_BATCH)}
  assert _product_dtypes(jax.jit(step).lower(_params(), {}, batch)) == {dtype}


def test_padding_counts_nothing():
  batch = _batch()
  batch['images'][5:] = np.nan
  mask = (np.arange(_BATCH) < 5).astype(np.float32)
  step = jax.jit(step_lib.make_eval_step(_model(), small_network.config()))
  sums = step(_params(), {}, {**batch, 'mask': mask})
  logits = _model().logits(_params(), imagenet.normalize(batch['images'][:5]))
  logits = np.asarray(logits, np.float64)
  log_z = np.log(np.sum(np.exp(logits), axis=-1))
  losses = log_z - logits[np.arange(5), batch['labels'][:5]]
  np.testing.assert_allclose(sums['loss'], losses.sum(), rtol=1e-5)
  right = np.sum(np.argmax(logits, axis=-1) == batch['labels'][:5])
  assert (sums['top_1_acc'], sums['num_examples']) == (right, 5)


def test_sam_ascends_on_each_device_and_descends_together():
  devices, rho = 2, 0.05
  config = small_network.config(
    sam_rho=rho, sam_fraction=0.5, label_smoothing=0.0
  )
  base = optax.sgd(_LR)
  batch, params = _batch(), _params()

  @jax.jit
  def gradient(params, images, labels):
    def loss(params):
      images_in = imagenet.normalize(images)
      out, _ = _model().apply(params, {}, None, images_in, is_training=True)
      log_probs = jax.nn.log_softmax(out['logits'])
      return -jnp.mean(log_probs[jnp.arange(len(labels)), labels])

    return jax.grad(loss)(params)

  total = jax.tree.map(jnp.zeros_like, params)
  half = _BATCH // devices
  for d in range(devices):
    images = batch['images'][d * half : (d + 1) * half]
    labels = batch['labels'][d * half : (d + 1) * half]
    ascent = gradient(params, images[: half // 2], labels[: half // 2])
    norm = optax.tree.norm(ascent)
    worse = jax.tree.map(lambda p, g, n=norm: p + rho * g / n, params, ascent)
    descent = gradient(worse, images, labels)
    total = jax.tree.map(jnp.add, total, descent)
  want = jax.tree.map(lambda p, g: p - _LR * g / devices, params, total)

  state, *_ = _run(devices, 1, config, optim.sam_descent(base))
  chex.assert_trees_all_close(state.params, want, rtol=1e-4, atol=2e-6)
  plain = jax.tree.map(
    lambda p, g: p - _LR * g, params, gradient(params, **batch)
  )
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(state.params, plain, rtol=1e-4, atol=2e-6)
