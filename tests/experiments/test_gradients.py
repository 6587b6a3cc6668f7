"""Each example's own gradient in the training step, against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_network

from experiments import gradients, jaxline_compat, privacy, screen
from experiments import step as step_lib
from experiments.configs import digits
from nfnets import optim
from nfnets.inference import curves

_ROWS = 8
_KEY = jax.random.PRNGKey(0)


@functools.cache
def _params():
  params, _ = small_network.Network().init(_KEY)
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
_CONV = [('conv0', 'w'), ('conv0', 'gain'), ('conv0', 'bias')]


def _loop(config, loss_fn, batch, unclipped):
  """Returns each example's clipped gradient, which parts were, and losses."""
  found, over, losses = [], [], []
  of_one = jax.jit(jax.grad(loss_fn, has_aux=True))
  copies = config.augmentation_multiplicity
  for first in range(0, len(batch['labels']), copies):
    rows = {k: v[first : first + copies] for k, v in batch.items()}
    grads, (_, metrics) = of_one(_params(), {}, rows, None)
    losses.append(metrics['train_loss'])
    clipped, over_here = _clip(
      {
        (module, name): np.float64(x)
        for module, parameters in grads.items()
        for name, x in parameters.items()
      },
      config.clip_per_example,
      config.per_example.clipping,
      unclipped,
    )
    found.append(clipped)
    over += over_here
  assert 0.1 < np.mean(over) < 0.9
  return found, over, losses


@pytest.mark.parametrize(
  'by, clipping, copies, chunk, parts, mixed, layers, unclipped',
  [
    ('unit', 0.2, 2, 1, 2, True, '', _LAST),
    ('unit', 0.2, 1, 0, 1, False, 'linear', _CONV),
    ('norm', 1.2, 1, 2, 1, True, '', ()),
    ('norm', 0.965, 2, 0, 2, False, '', ()),
  ],
)
def test_the_gradient_is_that_of_a_loop(
  by, clipping, copies, chunk, parts, mixed, layers, unclipped
):
  config = small_network.config(
    clip_per_example=by,
    clip_layers=layers,
    per_example={'clipping': clipping, 'eps': 1e-3, 'chunk': chunk},
    augmentation_multiplicity=copies,
    accumulate_steps=parts,
  )
  loss_fn = step_lib.make_loss(small_network.Network(), config)
  batch = _batch(mixed)
  found, over, losses = _loop(config, loss_fn, batch, unclipped)
  gradient = jax.jit(gradients.make_gradient(loss_fn, config))
  grads, (_, metrics) = gradient(_params(), {}, batch, _KEY)
  for module, name in found[0]:
    expected = np.mean([x[module, name] for x in found], axis=0)
    np.testing.assert_allclose(grads[module][name], expected, atol=1e-6)
  assert metrics['fraction_clipped'] == pytest.approx(np.mean(over))
  assert metrics['train_loss'] == pytest.approx(np.mean(losses), rel=1e-6)


def _pmapped(config, optimizer, devices):
  """Returns (step, state, batch) on so many devices."""
  model = small_network.Network()
  step = jax.pmap(
    step_lib.make_train_step(model, optimizer, lambda _: 0.1, config, 'i'),
    axis_name='i',
    devices=jax.devices()[:devices],
    out_axes=(0, None),
  )
  state = step_lib.init_train_state(model, optimizer, False, _KEY)
  state = jax.tree.map(lambda x: jnp.stack([x] * devices), state)
  return step, state


def _split(batch, devices):
  return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def test_a_sample_is_divided_by_its_expected_size():
  """Six of eight rows were drawn, where five are expected."""
  config = small_network.config(clip_per_example='norm', train_batch_size=5)
  config.per_example.update(clipping=1.2, chunk=2)
  step, state = _pmapped(config, optax.sgd(1.0), 2)
  batch, mask = _batch(), np.float32([1, 0, 1, 1, 0, 1, 1, 1])
  keys = jax.random.split(_KEY, 2)
  after, metrics = step(state, _split({**batch, 'mask': mask}, 2), keys)
  loss_fn = step_lib.make_loss(small_network.Network(), config)
  drawn = {k: v[mask > 0] for k, v in batch.items()}
  found, over, losses = _loop(config, loss_fn, drawn, ())
  for module, name in found[0]:
    expected = np.sum([x[module, name] for x in found], axis=0) / 5
    got = state.params[module][name][0] - after.params[module][name][0]
    np.testing.assert_allclose(got, expected, atol=2e-6)
  assert metrics['train_loss'] == pytest.approx(np.mean(losses), rel=1e-6)
  assert metrics['fraction_clipped'] == pytest.approx(np.mean(over))


@pytest.mark.slow
def test_each_example_draws_for_itself():
  """Not all of a chunk the same dropout."""
  config = small_network.config(clip_per_example='norm', label_smoothing=0.0)
  config.per_example.update(clipping=1e3, chunk=4)
  loss_fn = step_lib.make_loss(small_network.Network(drop_rate=0.5), config)
  batch = jax.tree.map(lambda x: np.repeat(x[-1:], _ROWS, axis=0), _batch())
  gradient = jax.jit(gradients.make_gradient(loss_fn, config))
  one = jax.jit(jax.grad(loss_fn, has_aux=True))
  mean, _ = gradient(_params(), {}, batch, _KEY)
  keys = [k for c in jax.random.split(_KEY, 2) for k in jax.random.split(c, 4)]
  row = jax.tree.map(lambda x: x[:1], batch)
  alone = [one(_params(), {}, row, k)[0]['conv0']['w'] for k in keys]
  np.testing.assert_allclose(mean['conv0']['w'], np.mean(alone, 0), atol=1e-6)
  assert len({float(np.abs(x).sum()) for x in alone}) > _ROWS / 2


def _states(devices, **settings):
  """Returns what two updates with noise make, on each of the devices."""
  config = small_network.config(
    clip_per_example='norm', private={'noise_multiplier': 1.0}, **settings
  )
  optimizer = optax.chain(
    privacy.Privacy(1.0, 1e-5, 8.0, 0.5, _ROWS, 1000).noise(),
    optim.adaptive_grad_clip(1e3),  # Which would report that it clips nothing.
    optax.sgd(0.1),
  )
  step, state = _pmapped(config, optimizer, devices)
  batch = _split(_batch(), devices)
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
    config = small_network.config()
    config.update_from_flattened_dict(settings)
    loss_fn = step_lib.make_loss(small_network.Network(), config)
    gradient = gradients.make_gradient(loss_fn, config)
    compiled = jax.jit(gradient).lower(_params(), {}, batch, _KEY).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes(small) < 0.3 * temporary_bytes(whole)


def test_parts_draw_anew():
  """Dropout in the parts is not that of the first, again and again."""
  batch = jax.tree.map(lambda x: np.repeat(x[-1:], 4, axis=0), _batch())
  half = jax.tree.map(lambda x: x[:2], batch)

  def loss(batch, key, parts):
    config = small_network.config(accumulate_steps=parts)
    loss_fn = step_lib.make_loss(small_network.Network(drop_rate=0.5), config)
    gradient = jax.jit(gradients.make_gradient(loss_fn, config))
    return gradient(_params(), {}, batch, key)[1][1]['train_loss']

  of_parts = [loss(half, key, 1) for key in jax.random.split(_KEY)]
  assert abs(of_parts[0] - of_parts[1]) > 1e-3
  np.testing.assert_allclose(loss(batch, _KEY, 2), np.mean(of_parts), rtol=1e-5)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'clip_per_example': 'layer'}, "is 'layer'; it must be 'unit', 'norm'"),
    ({'sam_rho': 0.05}, 'sam_rho is 0.05'),
    ({'per_example.chunk': 3}, 'chunk is 3; it must divide the 8 examples'),
    ({'per_example.chunk': -1}, 'chunk is -1'),
    ({'per_example.clipping': 0.0}, 'clipping is 0.0 and'),
  ],
)
def test_settings_that_do_not_go_together(settings, message):
  config = small_network.config(clip_per_example='norm', train_batch_size=64)
  config.accumulate_steps = 2
  gradients.check(config, {}, num_devices=4)
  config.update_from_flattened_dict(settings)
  with pytest.raises(ValueError) as error:
    gradients.check(config, {}, num_devices=4)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_batchnorm_has_no_gradient_of_an_example():
  config = small_network.config(clip_per_example='unit', model='resnet50')
  state = {'batch_norm/~/mean_ema': {'average': np.zeros(3)}}
  with pytest.raises(ValueError, match='resnet50 has BatchNorm, so the loss'):
    gradients.check(config, state, num_devices=1)


# What is logged of each layer, against numbers computed by hand.

_SHAPES = {
  'Net/~/final_conv': {'w': (1, 1, 4, 6), 'bias': (6,)},
  'Net/~/linear': {'w': (6, 10), 'b': (10,)},
  'Net/~/nf_block': {'skip_gain': ()},
  'Net/~/nf_block_2/~/conv1': {'w': (3, 3, 2, 4), 'gain': (4,)},
  'Net/~/nf_block_10/~/conv1': {'w': (3, 3, 2, 5), 'gain': (5,)},
  'Net/~/stem_conv0': {'w': (3, 3, 3, 2)},
}


def _layer_config(**settings):
  config = small_network.config(log_layers=True, **settings)
  config.optimizer.kwargs.clipping = 0.7
  return config


def _tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {
    module: {
      name: np.asarray(scale * rng.normal(size=shape), np.float32)
      for name, shape in leaves.items()
    }
    for module, leaves in _SHAPES.items()
  }


def _measure(config, params=None, grads=None):
  return gradients.measure_layers(
    _tree(0) if params is None else params,
    _tree(1) if grads is None else grads,
    (),
    config,
  )


def test_ratios_are_those_of_each_unit_from_the_input_on():
  params, grads = _tree(0), _tree(1)
  params['Net/~/nf_block_2/~/conv1']['w'] *= 0  # Counts as eps.
  got = _measure(_layer_config(), params, grads)
  modules = ['stem_conv0', 'nf_block_2/conv1', 'nf_block_10/conv1']
  assert got.names == (*modules, 'final_conv', 'linear')
  for i, name in enumerate(got.names):
    w, g = (
      tree[f'Net/~/{name.replace("/", "/~/")}']['w'] for tree in (params, grads)
    )
    w, g = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (w, g))
    ratio = np.linalg.norm(g, axis=0)
    ratio /= np.maximum(np.linalg.norm(w, axis=0), 1e-3)
    np.testing.assert_allclose(got.max_ratio[i], ratio.max(), rtol=1e-5)
    np.testing.assert_allclose(got.median_ratio[i], np.median(ratio), rtol=1e-5)
    clipped = 0 if name == 'linear' else np.mean(ratio > 0.7)
    np.testing.assert_allclose(got.fraction_clipped[i], clipped, rtol=1e-5)
  assert got.fraction_clipped[1] == 1 and 0 < got.fraction_clipped[2] < 1


def test_what_is_clipped_follows_from_the_settings():
  everything = _measure(_layer_config(clip_layers='*'), grads=_tree(1, 9.0))
  np.testing.assert_array_equal(everything.fraction_clipped, 1)
  stem = _measure(_layer_config(clip_layers='stem'), grads=_tree(1, 9.0))
  np.testing.assert_array_equal(stem.fraction_clipped, [1, 0, 0, 0, 0])
  config = _layer_config()
  config.optimizer = {'name': 'sgd', 'kwargs': {'momentum': 0.9}}
  assert _measure(config).fraction_clipped is None


def test_a_clipping_that_is_an_argument_is_the_one_that_counts():
  state = {'hyperparams': {'clipping': jnp.float32(1e9)}}
  got = gradients.measure_layers(_tree(0), _tree(1), state, _layer_config())
  assert not got.fraction_clipped.any()


def test_layers_become_curves_and_leave_the_log_and_the_results_alone(
  tmp_path, caplog
):
  config = digits.get_config()
  config.checkpoint_dir = str(tmp_path)
  reporter = screen.Reporter(10, 4)
  writer = screen.Writer(config, 'train', reporter)
  # As pmap returns them, and JAXline copies them to the host.
  metrics = jax.device_get(
    {'train_loss': jnp.ones(()), gradients.LAYERS: _measure(_layer_config())}
  )
  metrics['steps_per_sec'] = 2.0
  writer.write_scalars(3, metrics)
  writer.finish()
  assert set(writer.last) & {gradients.LAYERS, 'train_loss'} == {'train_loss'}
  assert not [k for k in writer.last if k.startswith(gradients._PREFIX)]
  with caplog.at_level('INFO', logger='absl'):
    reporter.log(3, metrics)
  assert 'layer' not in caplog.text and 'stem' not in caplog.text
  found = curves.read_scalars(tmp_path / 'train')
  name = 'layers_max_ratio/001 nf_block_2/conv1'
  assert found[name] == ([3], [pytest.approx(metrics['layers'].max_ratio[1])])
  assert sum(k.startswith(gradients._PREFIX) for k in found) == 3 * 5
