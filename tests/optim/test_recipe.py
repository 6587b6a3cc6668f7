"""The composed optimizers, against golden updates and by hand."""

import functools

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_params

from nfnets import optim


def golden_trees(golden, kind):
  """Returns the trees {kind}0 ... {kind}5 of the golden file."""
  trees = [{} for _ in range(6)]
  for key, value in golden.items():
    if key.startswith(kind):
      step, module, name = key.removeprefix(kind).split('|')
      trees[int(step)].setdefault(module, {})[name] = value
  return trees


def test_six_updates_of_sgd_with_agc_agree_with_golden():
  golden = golden_lib.load('sgd_agc')
  steps, grads = golden_trees(golden, 'step'), golden_trees(golden, 'grad')
  params = reference_params.reference_params(steps[0])
  params['net/~/nf_block']['skip_gain'] = np.float32(0)
  tx = optim.sgd_agc(optim.warmup_cosine(1.6, 4.5, 20))
  state, update = tx.init(params), jax.jit(tx.update)
  start = params
  for i in range(6):
    updates, state = update(grads[i], state, params)
    params = optax.apply_updates(params, updates)
    for module, leaves in steps[i].items():
      for name, expected in leaves.items():
        np.testing.assert_allclose(
          params[module][name], expected, rtol=1e-5, atol=1e-6
        )
  moved = jax.tree.map(lambda a, b: np.any(a != b), params, start)
  assert all(jax.tree.leaves(moved))
  assert 0 < optax.tree.get(state, 'fraction_clipped') <= 1


def chosen(mask):
  """Returns the (module, name) where the mask is true."""
  return {(m, n) for m, leaves in mask.items() for n in leaves if leaves[n]}


def every(tree):
  return {(m, n) for m, leaves in tree.items() for n in leaves}


@pytest.mark.parametrize(
  ('model', 'last'),
  [
    ('NFNet/F0', 'NFNet/~/linear'),
    ('NFNet/digits', 'NFNet/~/linear'),
    ('NF_ResNet/ResNet50', 'NF_ResNet/~/linear'),
  ],
)
def test_kernels_decay_and_all_but_the_last_kernel_are_clipped(model, last):
  tree = golden_lib.model_shapes(model)
  assert chosen(optim.decay_mask(tree)) == {
    (module, name) for module, name in every(tree) if name == 'w'
  }
  assert {name for _, name in every(tree)} >= {'b', 'bias', 'gain', 'skip_gain'}
  assert chosen(optim.clip_mask(tree)) == every(tree) - {(last, 'w')}


def test_linear_layers_of_squeeze_and_excite_are_clipped_and_decay():
  tree = golden_lib.model_shapes('NFNet/F0')
  kernels = {
    (f'NFNet/~/nf_block{i}/~/squeeze_excite/~/linear{j}', 'w')
    for i in ('', *(f'_{k}' for k in range(1, 12)))
    for j in ('', '_1')
  }
  assert kernels <= chosen(optim.clip_mask(tree))
  assert kernels <= chosen(optim.decay_mask(tree))


def test_scales_offsets_and_scalar_biases_do_not_decay():
  names = ('w', 'scale', 'offset', 'b', 'bias1a', 'gain', 'skip_gain', 'bn_b')
  mask = optim.decay_mask({'net': dict.fromkeys(names, 0.0)})
  assert chosen(mask) == {('net', 'w'), ('net', 'bn_b')}


def test_masks_work_on_flatter_and_deeper_trees():
  tree = {'linear': {'w': 0.0, 'b': 0.0}, 'outer': {'inner': {'w': 0.0}}}
  assert optim.clip_mask(tree) == {
    'linear': {'w': False, 'b': True},
    'outer': {'inner': {'w': True}},
  }
  assert optim.decay_mask(tree) == {
    'linear': {'w': True, 'b': False},
    'outer': {'inner': {'w': True}},
  }


PARAMS = {'net/~/linear': {'w': np.full((2, 2), 2.0, np.float32)}}
PARAMS['net/~/linear']['b'] = np.full(2, 3.0, np.float32)


def run(tx, grads_of, steps=3):
  """Returns the parameters after some steps."""
  params, state = jax.tree.map(jnp.asarray, PARAMS), tx.init(PARAMS)
  for i in range(steps):
    updates, state = tx.update(grads_of(i, params), state, params)
    params = optax.apply_updates(params, updates)
  return params['net/~/linear']


def sines(i, params):
  return jax.tree.map(lambda p: jnp.sin(i + p), params)


def test_weight_decay_of_sgd_is_coupled():
  lr, decay, momentum = 0.1, 0.05, 0.9
  tx = optim.make_optimizer(
    'sgd', lr, momentum=momentum, nesterov=True, weight_decay=decay
  )
  out = run(tx, sines)
  for name, rate in (('w', decay), ('b', 0.0)):
    value, trace = np.float64(PARAMS['net/~/linear'][name]), 0.0
    for i in range(3):
      grad = np.sin(i + value) + rate * value
      trace = grad + momentum * trace
      value = value - lr * (grad + momentum * trace)
    np.testing.assert_allclose(out[name], value, rtol=1e-5)


def test_sgd_agc_clips_then_decays_then_takes_momentum():
  kwargs = {'momentum': 0.8, 'weight_decay': 0.05, 'clipping': 0.02, 'eps': 9.0}
  tx = optim.make_optimizer('sgd_agc', 0.1, nesterov=False, **kwargs)
  out = run(tx, sines)
  for name, rate in (('w', 0.05), ('b', 0.0)):
    value, trace = np.float64(PARAMS['net/~/linear'][name]), 0.0
    for i in range(3):
      grad = np.sin(i + value)
      if name == 'b':  # The kernel of the last layer is not clipped.
        norm = np.linalg.norm(grad)
        limit = 0.02 * max(np.linalg.norm(value), 9.0)
        grad = grad * min(1, limit / norm)
      trace = grad + rate * value + 0.8 * trace
      value = value - 0.1 * trace
    np.testing.assert_allclose(out[name], value, rtol=1e-5)


def test_sgd_agc_by_name_is_sgd_agc():
  ours = run(optim.make_optimizer('sgd_agc', 0.1, clipping=0.05), sines)
  theirs = run(optim.sgd_agc(0.1, clipping=0.05), sines)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs
  )


@pytest.mark.parametrize('name', ['adamw', 'lamb', 'lion', 'lars'])
def test_optimizers_of_optax_get_the_decay_mask(name):
  tx = optim.make_optimizer(name, 0.1, weight_decay=0.5)
  out = run(tx, lambda i, params: jax.tree.map(jnp.zeros_like, params), steps=1)
  assert (out['w'] < 2.0).all()
  np.testing.assert_array_equal(out['b'], 3.0)
  if name in ('adamw', 'lion'):
    np.testing.assert_allclose(out['w'], 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)


def test_optimizer_without_decay_is_optaxs_own():
  ours = run(optim.make_optimizer('adam', 0.1, b1=0.8), sines)
  theirs = run(optax.adam(0.1, b1=0.8), sines)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs
  )


@pytest.mark.parametrize('name', ['sgdd', 'clip', 'masked', '__doc__'])
def test_unknown_optimizer_is_refused(name):
  with pytest.raises(ValueError, match=f'{name!r}.*sgd_agc'):
    optim.make_optimizer(name, 0.1)


def test_unknown_argument_is_answered_with_the_known_ones():
  with pytest.raises(ValueError, match="'sgd_agc'.*momentun;.*momentum"):
    optim.make_optimizer('sgd_agc', 0.1, momentun=0.9)
  with pytest.raises(ValueError, match="'sgd' has no argument clipping"):
    optim.make_optimizer('sgd', 0.1, clipping=0.1, weight_decay=0.1)
