"""ResNets with BatchNorm: golden outputs, statistics, v1, SE, other norms."""

import functools

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params

from nfnets import base, resnet


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  """Adds a variant of two blocks that compiles soon."""
  monkeypatch.setitem(base.resnet_params, 'tiny', {'depth': [1, 1, 0, 0]})


def make(num_classes=10, **kwargs):
  """Returns the transformed network, its reference parameters and state."""
  transformed = golden_lib.transform_with_state(
    'ResNet/tiny', num_classes, width=1, **kwargs
  )
  shapes = golden_lib.init_shapes(transformed)
  return transformed, *map(reference_params.reference_params, shapes)


def jit(f, **kwargs):
  return jax.jit(f, compiler_options=golden_lib.QUICK, **kwargs)


# As torchvision has them, whose ResNets are v1 with their strides in the 3x3
# convolutions: parameters, and billions of multiply-adds at 224 pixels.
@pytest.mark.parametrize(
  ('depth', 'num_params', 'multiply_adds'),
  [(50, 25_557_032, 4.09), (101, 44_549_160, 7.80), (152, 60_192_808, 11.51)],
)
def test_v1_has_the_size_of_other_implementations(
  depth, num_params, multiply_adds
):
  model = f'ResNet/ResNet{depth}'
  transformed = golden_lib.transform_with_state(model, preactivation=False)
  params, _ = golden_lib.init_shapes(transformed)
  assert golden_lib.num_params(params) == num_params
  _, total = golden_lib.count_flops(model, 224, 224, preactivation=False)
  assert round(total / 1e9, 2) == multiply_adds


def test_v1_names():
  _, params, state = make(preactivation=False)
  block = 'ResNet/~/res_block_v1'
  assert set(params) == {
    'ResNet/~/initial_conv',
    'ResNet/~/initial_bn',
    'ResNet/~/linear',
    *(
      f'{b}/~/{name}{i}'
      for b in (block, f'{block}_1')
      for name in ('conv', 'bn')
      for i in range(3)
    ),
    *(f'{b}/~/conv_shortcut' for b in (block, f'{block}_1')),
    *(f'{b}/shortcut_bn' for b in (block, f'{block}_1')),
  }
  norms = [module for module in params if 'bn' in module]
  assert set(state) == {
    f'{norm}/~/{average}'
    for norm in norms
    for average in ('mean_ema', 'var_ema')
  }


def convolve(x, w, stride):
  """Convolves [B, H, W, C] of an even size by HWIO, SAME, in float64."""
  kernel, h = w.shape[0], x.shape[1]
  before = max(kernel - stride, 0) // 2
  x = np.pad(x, ((0, 0), (before, kernel), (before, kernel), (0, 0)))
  return sum(
    x[:, i : i + h : stride, j : j + h : stride] @ w[i, j]
    for i in range(kernel)
    for j in range(kernel)
  )


@pytest.mark.parametrize('stride', [1, 2])
def test_v1_block_agrees_with_float64(stride):
  def forward(x):
    norm = functools.partial(hk.BatchNorm, True, True, 0.9)
    block = resnet.ResBlockV1(
      8,
      16,
      norm,
      lambda *args, **kwargs: base.Conv2D(*args, with_bias=False, **kwargs),
      stride=stride,
      name='block',
    )
    return block(x, hk.running_init())

  block = hk.transform_with_state(forward)
  x = np.random.default_rng(0).standard_normal((2, 6, 6, 8))
  shapes = jax.eval_shape(block.init, jax.random.key(0), np.float32(x))
  params, state = map(reference_params.reference_params, shapes)
  (out, branch), _ = jit(block.apply)(params, state, None, np.float32(x))

  def conv(x, name):
    stride_here = stride if name in ('conv1', 'conv_shortcut') else 1
    return convolve(x, np.float64(params[f'block/~/{name}']['w']), stride_here)

  def norm(x, name):
    mean = np.float64(state[f'{name}/~/mean_ema']['average'])
    var = np.float64(state[f'{name}/~/var_ema']['average'])
    scale, offset = params[name]['scale'], params[name]['offset']
    return (x - mean) / np.sqrt(var + 1e-5) * scale + offset

  expected = np.maximum(norm(conv(x, 'conv0'), 'block/~/bn0'), 0)
  expected = np.maximum(norm(conv(expected, 'conv1'), 'block/~/bn1'), 0)
  expected = norm(conv(expected, 'conv2'), 'block/~/bn2')
  assert golden_lib.rel_l2(branch, expected) < 1e-5
  expected += norm(conv(x, 'conv_shortcut'), 'block/shortcut_bn')
  assert golden_lib.rel_l2(out, np.maximum(expected, 0)) < 1e-5


def test_training_uses_the_statistics_of_the_batch():
  # With a decay of 0, the averages are the last batch's statistics.
  transformed, params, state = make(norm_kwargs={'decay_rate': 0.0})
  images = reference_params.reference_images(4, 32, 32)
  apply = jit(transformed.apply, static_argnums=(4, 5))
  trained, new_state = apply(params, state, None, images, True, True)
  evaluated, same = apply(params, new_state, None, images, False, True)
  for key in trained:
    if key != 'features':
      assert golden_lib.rel_l2(evaluated[key], trained[key]) < 1e-4, key
  other, _ = apply(params, state, None, images, False, True)
  assert golden_lib.rel_l2(other['logits'], trained['logits']) > 0.01
  # Evaluation changes nothing.
  jax.tree.map(np.testing.assert_array_equal, same, new_state)


def test_averages_decay_by_0_9_from_the_first_batch():
  transformed, params, _ = make()
  shapes = golden_lib.init_shapes(transformed)[1]
  state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  last_only, *_ = make(norm_kwargs={'decay_rate': 0.0})
  apply = jit(
    lambda f, state, images: f(params, state, None, images, True)[1],
    static_argnums=0,
  )
  statistics, initial = [], state
  for seed in range(3):
    images = reference_params.reference_images(4, 32, 32, seed)
    statistics.append(apply(last_only.apply, initial, images))
    state = apply(transformed.apply, state, images)
  for module in state:
    values = [np.float64(s[module]['average']) for s in statistics]
    hidden = 0.1 * (0.81 * values[0] + 0.9 * values[1] + values[2])
    np.testing.assert_allclose(
      state[module]['average'], hidden / (1 - 0.9**3), rtol=1e-4, atol=1e-6
    )
    assert state[module]['counter'] == 3


def test_initial_state_normalizes_nothing():
  transformed, _, _ = make()
  images = reference_params.reference_images(2, 32, 32)
  params, state = jit(transformed.init)(jax.random.key(0), images)
  for module, leaves in state.items():
    assert (leaves['average'] == float('var_ema' in module)).all()
    assert not leaves['hidden'].any() and leaves['counter'] == 0
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if name == 'scale':
        assert (leaf == 1).all(), module
      elif name == 'offset' or module.endswith('linear'):
        assert not leaf.any(), module


def test_statistics_of_all_replicas_are_those_of_the_whole_batch():
  per_replica, params, state = make()
  crossed, *_ = make(norm_kwargs={'cross_replica_axis': 'i'})
  images = reference_params.reference_images(8, 32, 32)

  def over_replicas(transformed):
    # pmap needs several devices; for a named axis, vmap is the same.
    return jit(
      jax.vmap(
        lambda x: transformed.apply(params, state, None, x, True), axis_name='i'
      )
    )(images.reshape(4, 2, 32, 32, 3))

  whole, whole_state = jit(
    lambda x: per_replica.apply(params, state, None, x, True)
  )(images)
  out, new_state = over_replicas(crossed)
  logits = out['logits'].reshape(8, -1)
  assert golden_lib.rel_l2(logits, whole['logits']) < 1e-4
  for module, leaves in whole_state.items():
    for replica in range(4):
      np.testing.assert_allclose(
        new_state[module]['average'][replica],
        leaves['average'],
        rtol=1e-3,
        atol=1e-5,
      )
  # The default is each replica by itself.
  out, new_state = over_replicas(per_replica)
  logits = out['logits'].reshape(8, -1)
  assert golden_lib.rel_l2(logits, whole['logits']) > 0.01
  first, _ = jit(lambda x: per_replica.apply(params, state, None, x, True))(
    images[:2]
  )
  assert golden_lib.rel_l2(out['logits'][0], first['logits']) < 1e-4


def test_averages_stay_float32_in_bfloat16():
  transformed, params, state = make()
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  # In bfloat16 such a mean would leave few digits to the variance.
  images = 8 + reference_params.reference_images(4, 32, 32)
  images = images.astype(jnp.bfloat16)
  out, new_state = jit(
    lambda: transformed.apply(params, state, None, images, True)
  )()
  assert out['logits'].dtype == out['pool'].dtype == jnp.bfloat16
  for leaves in new_state.values():
    assert leaves['average'].dtype == leaves['hidden'].dtype == jnp.float32
  exact, exact_state = jit(
    lambda: transformed.apply(
      jax.tree.map(lambda x: x.astype(np.float32), params),
      state,
      None,
      images.astype(np.float32),
      True,
    )
  )()
  first = 'ResNet/~/res_block_v2/~/bn0/~/var_ema'
  error = golden_lib.rel_l2(
    new_state[first]['average'], exact_state[first]['average']
  )
  assert error < 0.01


@pytest.mark.parametrize(
  ('which_norm', 'norm_kwargs'),
  [
    ('GroupNorm', {'groups': 4}),
    ('InstanceNorm', None),
    ('LayerNorm', None),
    ('LayerNorm', {'axis': (1, 2, 3), 'create_offset': False}),
  ],
)
def test_other_normalizations_have_no_state(which_norm, norm_kwargs):
  transformed, params, state = make(
    which_norm=which_norm, norm_kwargs=norm_kwargs
  )
  assert not state
  leaves = params['ResNet/~/final_bn']
  offset = norm_kwargs is None or 'create_offset' not in norm_kwargs
  assert set(leaves) == ({'scale', 'offset'} if offset else {'scale'})
  images = reference_params.reference_images(2, 32, 32)
  apply = jit(
    lambda x, is_training: transformed.apply(params, {}, None, x, is_training)[
      0
    ]['logits'],
    static_argnums=1,
  )
  trained, evaluated = apply(images, True), apply(images, False)
  assert golden_lib.rel_l2(trained, evaluated) < 1e-6
  # An image's logits do not depend on the other images.
  other = apply(np.stack([images[0], 3 * images[1]]), False)
  np.testing.assert_allclose(other[0], evaluated[0], rtol=1e-4, atol=1e-4)


def test_unknown_normalization_is_answered_with_all_names():
  with pytest.raises(
    ValueError, match="'BathNorm'; there are BatchNorm, Group"
  ):
    make(which_norm='BathNorm')
  with pytest.raises(TypeError, match='cross_replica_axes'):
    make(norm_kwargs={'cross_replica_axes': 'i'})


def test_arguments_of_convolutions_are_used():
  transformed, params, _ = make(
    conv_kwargs={'with_bias': True, 'w_init': jnp.ones}
  )
  assert params['ResNet/~/initial_conv']['b'].shape == (16,)
  images = jnp.zeros((1, 32, 32, 3))
  params, _ = jit(transformed.init)(jax.random.key(0), images)
  assert (params['ResNet/~/res_block_v2/~/conv1']['w'] == 1).all()
