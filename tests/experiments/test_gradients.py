"""Each example's own gradient in the training step, against a plain loop."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import gradients, jaxline_compat, privacy
from experiments import loss as loss_lib
from experiments import step as step_lib
from experiments.configs import digits
from nfnets import base, imagenet, optim

_ROWS = 8
_KEY = jax.random.PRNGKey(0)


def _config(**settings):
  config = digits.get_config().experiment_kwargs.config
  config.update(settings)
  return config


class _Model:
  """As `nfnets.Model`: a convolution and a last layer."""

  name = 'small'
  normalize = staticmethod(imagenet.normalize)

  def __init__(self, drop_rate=0.0):
    def forward(images, is_training):
      x = jax.nn.gelu(base.WSConv2D(4, 3, stride=2, name='conv')(images))
      x = jnp.mean(x, axis=(1, 2))
      if drop_rate and is_training:
        x = hk.dropout(hk.next_rng_key(), drop_rate, x)
      return {'logits': hk.Linear(10, name='linear')(x)}

    transformed = hk.transform_with_state(forward)
    self.init = lambda rng: transformed.init(
      rng, jnp.zeros((1, 8, 8, 3)), False
    )
    self.apply = transformed.apply


@functools.cache
def _params():
  params, _ = _Model().init(_KEY)
  return params


def _batch(mixed=False):
  rng = np.random.default_rng(0)
  # Of different contrasts, so that gradients are of different lengths.
  contrast = np.linspace(0.1, 1, _ROWS)[:, None, None, None]
  images = rng.uniform(0, 255, (_ROWS, 8, 8, 3)) * contrast
  batch = {
    'images': np.float32(images),
    'labels': rng.integers(10, size=_ROWS, dtype=np.int32),
  }
  if mixed:
    batch['mix_labels'] = rng.integers(10, size=_ROWS, dtype=np.int32)
    batch['ratio'] = np.float32(rng.uniform(size=_ROWS))
  return batch


def _norm(x, axis=None):
  return np.sqrt(np.sum(np.square(x), axis=axis, keepdims=True))


def _clip(grads, by, clipping, unclipped):
  """Clips one example's gradient, in float64; returns which parts it did."""
  if by == 'norm':
    length = np.sqrt(sum(np.sum(x**2) for x in grads.values()))
    scale = min(1, clipping / length)
    return {k: scale * x for k, x in grads.items()}, [scale < 1]
  clipped, over = {}, []
  for (module, name), x in grads.items():
    if (module, name) in unclipped:
      clipped[module, name] = x
      continue
    axis = tuple(range(x.ndim - 1)) if x.ndim > 1 else None
    weights = np.float64(_params()[module][name])
    limit = clipping * np.maximum(_norm(weights, axis), 1e-3)
    over += (_norm(x, axis) > limit).ravel().tolist()
    clipped[module, name] = x * limit / np.maximum(limit, _norm(x, axis))
  return clipped, over


_LAST = [('linear', 'w')]
_CONV = [('conv', 'w'), ('conv', 'gain'), ('conv', 'bias')]


@pytest.mark.parametrize(
  'by, clipping, copies, chunk, parts, mixed, layers, unclipped',
  [
    ('unit', 0.2, 1, 0, 1, False, '', _LAST),
    ('unit', 0.2, 2, 1, 2, True, '', _LAST),
    ('unit', 0.2, 1, 0, 1, False, 'linear', _CONV),
    ('norm', 1.2, 1, 2, 1, True, '', ()),
    ('norm', 0.965, 2, 0, 2, False, '', ()),
  ],
)
def test_the_gradient_is_that_of_a_loop(
  by, clipping, copies, chunk, parts, mixed, layers, unclipped
):
  config = _config(
    clip_per_example=by,
    clip_layers=layers,
    per_example={'clipping': clipping, 'eps': 1e-3, 'chunk': chunk},
    augmentation_multiplicity=copies,
    accumulate_steps=parts,
  )
  loss_fn = loss_lib.make_loss(_Model(), config)
  batch, of_one = _batch(mixed), jax.jit(jax.grad(loss_fn, has_aux=True))
  found, over, losses = [], [], []
  for first in range(0, _ROWS, copies):
    rows = {k: v[first : first + copies] for k, v in batch.items()}
    grads, (_, metrics) = of_one(_params(), {}, rows, None)
    losses.append(metrics['train_loss'])
    grads = {
      (module, name): np.float64(x)
      for module, parameters in grads.items()
      for name, x in parameters.items()
    }
    clipped, over_here = _clip(grads, by, clipping, unclipped)
    found.append(clipped)
    over += over_here
  assert 0.1 < np.mean(over) < 0.9
  gradient = jax.jit(gradients.make_gradient(loss_fn, config))
  grads, (_, metrics) = gradient(_params(), {}, batch, _KEY)
  for module, name in found[0]:
    expected = np.mean([x[module, name] for x in found], axis=0)
    np.testing.assert_allclose(grads[module][name], expected, atol=1e-6)
  assert metrics['fraction_clipped'] == pytest.approx(np.mean(over))
  assert metrics['train_loss'] == pytest.approx(np.mean(losses), rel=1e-6)


@pytest.mark.slow
def test_each_example_draws_for_itself():
  """Not all of a chunk the same dropout."""
  config = _config(clip_per_example='norm', label_smoothing=0.0)
  config.per_example.update(clipping=1e3, chunk=4)
  loss_fn = loss_lib.make_loss(_Model(drop_rate=0.5), config)
  batch = jax.tree.map(lambda x: np.repeat(x[-1:], _ROWS, axis=0), _batch())
  gradient = jax.jit(gradients.make_gradient(loss_fn, config))
  one = jax.jit(jax.grad(loss_fn, has_aux=True))
  mean, _ = gradient(_params(), {}, batch, _KEY)
  keys = [k for c in jax.random.split(_KEY, 2) for k in jax.random.split(c, 4)]
  row = jax.tree.map(lambda x: x[:1], batch)
  alone = [one(_params(), {}, row, k)[0]['conv']['w'] for k in keys]
  np.testing.assert_allclose(mean['conv']['w'], np.mean(alone, 0), atol=1e-6)
  assert len({float(np.abs(x).sum()) for x in alone}) > _ROWS / 2


def _states(devices, **settings):
  """Returns what two updates with noise make, on each of the devices."""
  config = _config(
    clip_per_example='norm', private={'noise_multiplier': 1.0}, **settings
  )
  optimizer = optax.chain(
    privacy.Privacy(1.0, 1e-5, 8.0, 0.5, _ROWS, 1000).noise(seed=7),
    optim.adaptive_grad_clip(1e3),  # Which would report that it clips nothing.
    optax.sgd(0.1),
  )
  state = step_lib.init_train_state(_Model(), optimizer, False, _KEY)
  step = jax.pmap(
    step_lib.make_train_step(_Model(), optimizer, lambda _: 0.1, config, 'i'),
    axis_name='i',
    devices=jax.devices()[:devices],
    out_axes=(0, None),
  )
  state = jax.tree.map(lambda x: jnp.stack([x] * devices), state)
  batch = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), _batch())
  for i in range(2):
    keys = jax.random.split(jax.random.PRNGKey(i), devices)
    state, metrics = step(state, batch, keys)
  return state, metrics


def test_noise_is_added_once_whatever_the_devices():
  """Nor do parts and chunks matter; all devices go on with the same."""
  per_example = {'clipping': 0.5, 'eps': 1e-3, 'chunk': 0}
  alone, metrics = _states(1, per_example=per_example)
  per_example['chunk'] = 1
  split, of_split = _states(2, per_example=per_example, accumulate_steps=2)
  for x in jax.tree.leaves(split.params):
    np.testing.assert_array_equal(x[0], x[1])
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    *(jaxline_compat.get_first(state.params) for state in (split, alone)),
  )
  assert float(of_split['fraction_clipped']) == metrics['fraction_clipped'] > 0


@pytest.mark.parametrize(
  'small, whole',
  [
    ({'accumulate_steps': 16}, {}),
    pytest.param(
      {'clip_per_example': 'norm', 'per_example.chunk': 4},
      {'clip_per_example': 'norm'},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_small_parts_need_less_memory(small, whole):
  batch = jax.tree.map(lambda x: np.concatenate([x] * 8), _batch())

  def temporary_bytes(settings):
    config = _config()
    config.update_from_flattened_dict(settings)
    loss_fn = loss_lib.make_loss(_Model(), config)
    gradient = gradients.make_gradient(loss_fn, config)
    compiled = jax.jit(gradient).lower(_params(), {}, batch, _KEY).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes(small) < 0.3 * temporary_bytes(whole)


def test_parts_draw_anew():
  """Dropout in the parts is not that of the first, again and again."""
  batch = jax.tree.map(lambda x: np.repeat(x[-1:], 4, axis=0), _batch())
  half = jax.tree.map(lambda x: x[:2], batch)

  def loss(batch, key, parts):
    config = _config(accumulate_steps=parts)
    loss_fn = loss_lib.make_loss(_Model(drop_rate=0.5), config)
    gradient = jax.jit(gradients.make_gradient(loss_fn, config))
    return gradient(_params(), {}, batch, key)[1][1]['train_loss']

  of_parts = [loss(half, key, 1) for key in jax.random.split(_KEY)]
  assert abs(of_parts[0] - of_parts[1]) > 1e-3
  np.testing.assert_allclose(loss(batch, _KEY, 2), np.mean(of_parts), rtol=1e-5)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'clip_per_example': 'layer'}, "is 'layer'; it must be 'unit', 'norm'"),
    ({'sam_rho': 0.05}, 'sam_rho is 0.05, and the point'),
    ({'per_example.chunk': 3}, 'chunk is 3, which does not divide the 8 ex'),
    ({'per_example.chunk': -1}, 'chunk is -1'),
    ({'per_example.clipping': 0.0}, 'clipping is 0.0; it must be positive'),
  ],
)
def test_settings_that_do_not_go_together(settings, message):
  config = _config(clip_per_example='norm', train_batch_size=64)
  config.accumulate_steps = 2
  gradients.check(config, {}, num_devices=4)
  config.update_from_flattened_dict(settings)
  with pytest.raises(ValueError) as error:
    gradients.check(config, {}, num_devices=4)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_batchnorm_has_no_gradient_of_an_example():
  config = _config(clip_per_example='unit', model='resnet50')
  state = {'batch_norm/~/mean_ema': {'average': np.zeros(3)}}
  with pytest.raises(ValueError, match='resnet50 has BatchNorm, with which'):
    gradients.check(config, state, num_devices=1)
