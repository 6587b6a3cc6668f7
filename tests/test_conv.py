"""Both lowerings of a convolution are the same function."""

import re

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets import conv


def values_and_gradients(lowering, x, w, kwargs):
  @golden_lib.jit
  def run(x, w):
    out, vjp = jax.vjp(lambda x, w: conv.conv2d(x, w, **kwargs), x, w)
    # A cotangent that differs at every position.
    return out, *vjp(jnp.sin(jnp.arange(out.size)).reshape(out.shape))

  with conv.lowering(lowering):
    return run(x, w)


CASES = [
  # Kernel, groups, other arguments.
  ((1, 1), 1, {}),
  ((1, 1), 1, {'stride': (2, 3), 'padding': 'VALID'}),
  ((1, 1), 1, {'stride': (2, 2), 'padding': ((1, 0), (2, 1))}),
  ((1, 1), 4, {'stride': (2, 2)}),
  ((3, 3), 1, {}),
  ((3, 3), 2, {}),
  ((3, 3), 4, {'stride': (2, 2)}),
  ((3, 3), 8, {'stride': (2, 2), 'padding': 'VALID'}),
  ((3, 3), 2, {'padding': ((1, 2), (0, 1))}),
  ((3, 3), 4, {'rate': (2, 1)}),
  ((3, 5), 2, {'stride': (1, 2)}),
  ((7, 7), 1, {'stride': (2, 2)}),
]


@pytest.mark.parametrize(('kernel', 'groups', 'kwargs'), CASES)
def test_no_form_changes_values_and_gradients(kernel, groups, kwargs):
  kwargs = {'groups': groups, **kwargs}
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((2, 9, 12, 8)))
  w = np.float32(rng.standard_normal((*kernel, 8 // groups, 16)))
  plain = values_and_gradients('plain', x, w, kwargs)
  split = values_and_gradients('split', x, w, kwargs)
  with conv.in_loop():
    loop = values_and_gradients('split', x, w, kwargs)
  forms = [split, loop]
  if groups <= 2 and kernel != (1, 1):
    with conv.per_example():
      forms.append(values_and_gradients('split', x, w, kwargs))
  for form in forms:
    for ours, theirs in zip(form, plain, strict=True):
      assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
      assert golden_lib.rel_l2(ours, theirs) < 1e-5


def test_gradients_in_a_loop_have_the_form_that_is_fast():
  """Batch, height, width, channels; of every convolution."""
  x, w = jnp.ones((3, 2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))

  def total(w, x):
    with conv.lowering('split'), conv.in_loop():
      grad = jax.grad(lambda w, x: jnp.sum(conv.conv2d(x, w) ** 2), (0, 1))
      return jax.lax.scan(lambda t, x: (t + grad(w, x)[0], grad(w, x)[1]), w, x)

  text = jax.jit(total).lower(w, x).as_text()
  forms = re.findall(r'dim_numbers = (.*?), window', text)
  assert len(forms) >= 3
  assert set(forms) == {'[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]'}


def group_counts(groups, kernel=3):
  """Returns feature_group_count of each convolution in the program."""
  x = jnp.ones((1, 8, 8, 8))
  w = jnp.ones((kernel, kernel, 8 // groups, 8))
  # A new function each time: jax remembers what it traced.
  program = jax.jit(lambda x, w: conv.conv2d(x, w, groups=groups)).lower(x, w)
  counts = re.findall(r'feature_group_count = (\d+)', program.as_text())
  return [int(count) for count in counts]


def test_auto_splits_groups_on_cpu(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  assert group_counts(4) == [1, 1, 1, 1]
  assert group_counts(1, kernel=1) == []  # A matrix product.


@pytest.mark.parametrize('backend', ['gpu', 'tpu'])
def test_auto_is_plain_on_accelerators(monkeypatch, backend):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  assert group_counts(4) == [4]
  assert group_counts(1, kernel=1) == [1]


def test_named_lowering_holds_inside_its_context_only(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  with conv.lowering('plain'):
    assert group_counts(2) == [2]
    with conv.lowering('split'):
      assert group_counts(2) == [1, 1]
    assert group_counts(2) == [2]
  assert group_counts(2) == [1, 1]


def test_unknown_lowering_is_answered_with_all_names():
  with pytest.raises(ValueError, match="'fast'.*auto.*plain.*split"):
    with conv.lowering('fast'):
      pass
