"""What the tests of the networks share: golden files, trees and distances.

The golden files hold what the published networks compute for the parameters
and images that `reference_params` makes from names and shapes.
"""

from collections.abc import Callable
import functools
import gzip
import json
import math
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params

from nfnets import (
  conv,
  fixup_resnet,
  nf_regnet,
  nf_resnet,
  nfnet,
  resnet,
  skipinit_resnet,
  timm_nets,
)

GOLDEN = pathlib.Path(__file__).parent / 'golden'
# For jax.jit, where compiling takes longer than running.
QUICK = {'xla_backend_optimization_level': 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)
_CLASSES = {
  'NFNet': nfnet.NFNet,
  'NF_ResNet': nf_resnet.NF_ResNet,
  'NF_RegNet': nf_regnet.NF_RegNet,
  # Its first argument is the width.
  'ResNet': lambda num_classes, width=4, **kwargs: resnet.ResNet(
    width, num_classes, **kwargs
  ),
  'SkipInit_ResNet': skipinit_resnet.SkipInit_ResNet,
  'FixUp_ResNet': fixup_resnet.FixUp_ResNet,
  'NormFreeNet': timm_nets.NormFreeNet,
}


def load(name: str) -> dict[str, np.ndarray]:
  """Returns the arrays of golden/golden_{name}.npz."""
  with np.load(GOLDEN / f'golden_{name}.npz') as arrays:
    return dict(arrays)


@functools.cache
def param_trees() -> dict[str, dict]:
  """Returns {'class/variant': {num_params, params, state}}."""
  with gzip.open(GOLDEN / 'param_trees.json.gz', 'rt') as f:
    return json.load(f)


def transform_with_state(
  model: str, num_classes: int = 1000, **kwargs
) -> hk.TransformedWithState:
  """Returns (init, apply) of (images, is_training=False, metrics=False).

  Convolutions have their plain form, which compiles sooner: test_conv.py shows
  that the other is the same function.

  Args:
    model: 'class/variant', as param_trees.json.gz names the networks.
    num_classes: size of the logits.
    **kwargs: other arguments of the class.
  """
  name, variant = model.split('/')

  def forward(images, is_training=False, metrics=False):
    module = _CLASSES[name](num_classes, variant=variant, **kwargs)
    with conv.lowering('plain'):
      # Haiku's BatchNorm can only be initialized in training.
      return module(images, is_training or hk.running_init(), metrics)

  return hk.transform_with_state(forward)


def transform(model: str, num_classes: int = 1000, **kwargs) -> hk.Transformed:
  """Returns the same without state, or with the reference state fixed."""
  stateful = transform_with_state(model, num_classes, **kwargs)
  state = {}
  if model.startswith('ResNet/'):
    _, shapes = init_shapes(stateful)
    state = reference_params.reference_params(shapes)
  return hk.Transformed(
    init=lambda *args: stateful.init(*args)[0],
    apply=lambda params, *args, **kwargs: stateful.apply(
      params, state, *args, **kwargs
    )[0],
  )


def init_shapes(
  transformed: hk.Transformed | hk.TransformedWithState, size: int = 32
):
  """Returns what `init` does, with ShapeDtypeStructs for arrays."""
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(transformed.init, jax.random.key(0), images)


@functools.cache
def model_shapes(model: str):
  """Returns the parameter tree of a network with its default arguments."""
  return init_shapes(transform(model))


def network(model: str, num_classes: int = 1000, **kwargs) -> hk.Module:
  """Returns the network itself, to look at its modules."""
  return _in_transform(lambda module: module, model, num_classes, kwargs)


def _in_transform(f, model, num_classes, kwargs):
  """Returns f(network); Haiku's modules can be used in a transform only."""
  name, variant = model.split('/')
  run = hk.transform(
    lambda: f(_CLASSES[name](num_classes, variant=variant, **kwargs))
  )
  return run.apply({}, None)


def reference_tree(transformed: hk.Transformed):
  """Returns the reference parameters of a network."""
  return reference_params.reference_params(init_shapes(transformed))


def count_flops(
  model: str, h: int, w: int, num_classes: int = 1000, **kwargs
) -> tuple[list[int], int]:
  """Returns the network's own count of its multiply-adds."""
  return _in_transform(
    lambda module: module.count_flops(h, w), model, num_classes, kwargs
  )


def skip_without_float16():
  """Skips a test where XLA cannot compile float16: on CPUs without F16C."""
  try:
    jax.jit(jnp.cos)(jnp.ones((), jnp.float16))
  except jax.errors.JaxRuntimeError:
    pytest.skip('XLA cannot compile float16 for this processor.')


def rel_l2(actual, expected) -> float:
  """Returns ||actual - expected|| / ||expected||, computed in float64."""
  actual = np.asarray(actual, np.float64)
  expected = np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def with_leaves(tree, change: Callable[[str, str, np.ndarray], np.ndarray]):
  """Returns the tree with change(module, name, leaf) in every leaf's place."""
  return {
    module: {name: change(module, name, leaf) for name, leaf in leaves.items()}
    for module, leaves in tree.items()
  }


def equations(jaxpr):
  """Yields every equation of a jaxpr and of the jaxprs inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for param in equation.params.values():
      for inner in param if isinstance(param, (list, tuple)) else [param]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from equations(inner)


def num_params(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_multiply_adds(transformed: hk.Transformed, h: int, w: int) -> int:
  """Counts those of the convolutions and matrix products in the jaxpr."""
  images = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
  params = init_shapes(transformed)
  jaxpr = jax.make_jaxpr(lambda p, x: transformed.apply(p, None, x))(
    params, images
  )
  total = 0
  for equation in equations(jaxpr.jaxpr):
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == 'conv_general_dilated':
      total += out * math.prod(equation.invars[1].aval.shape[:3])
    elif equation.primitive.name == 'dot_general':
      (axes, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      total += out * math.prod(shape[axis] for axis in axes)
  return total


def check_outputs(model: str, golden: dict[str, np.ndarray], **kwargs):
  """Compares what evaluation computes with a golden file."""
  transformed = transform(model, **kwargs)
  images = reference_params.reference_images(2, 64, 64)
  apply = jit(lambda p, x: transformed.apply(p, None, x, metrics=True))
  _compare_outputs(apply(reference_tree(transformed), images), golden)


def _compare_outputs(out, golden):
  """Compares logits, pool and signal metrics, to 1e-4 relative L2."""
  out = dict(out)
  for key in ('avg_sq_mean', 'avg_var', 'res_avg_var'):
    names = [name for name in out if name.startswith(f'{key}_')]
    out[key] = [out[f'{key}_{i}'] for i in range(len(names))]
  for key in ('logits', 'pool', 'avg_sq_mean', 'avg_var', 'res_avg_var'):
    assert rel_l2(out[key], golden[key]) < 1e-4, key


def check_training(
  model: str, golden: dict[str, np.ndarray], params=None, dtype=np.float32
):
  """Compares outputs, the loss to 1e-4 and each gradient norm to 1e-3.

  All of one compiled program: without dropout and stochastic depth, training
  computes what evaluation does. In float32 a CPU's way of rounding may decide
  on which side of zero the input of a relu lies; float64 takes ten times as
  long.
  """
  transformed = transform(model, stochdepth_rate=0, drop_rate=0)
  if params is None:
    params = reference_tree(transformed)
  images = reference_params.reference_images(2, 64, 64)
  images, params = jax.tree.map(dtype, (images, params))

  def loss_fn(params):
    out = transformed.apply(params, None, images, True, metrics=True)
    log_probs = jax.nn.log_softmax(out['logits'])
    return -(log_probs[0, 3] + log_probs[1, 7]) / 2, out

  @jit
  def loss_and_norms(params):
    (loss, out), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, out, jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g**2)), grads)

  with jax.enable_x64(dtype == np.float64):
    loss, out, norms = loss_and_norms(params)
  _compare_outputs(out, golden)
  names = [tuple(name.split(':')) for name in golden['grad_names']]
  np.testing.assert_allclose(loss, golden['loss'], rtol=1e-4)
  assert set(names) == {(m, n) for m in norms for n in norms[m]}
  actual = [norms[module][name] for module, name in names]
  np.testing.assert_allclose(actual, golden['grad_norms'], rtol=1e-3)
