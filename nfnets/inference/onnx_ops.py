"""What JAX has traced of a network, as nodes of ONNX.

Only what the networks of this project use, with folded weights, is known. A
value of four axes has its channels second in the graph, [B, C, H, W], so there
is no change of layout but at the input and for outputs. What depends on weights
alone becomes a constant.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from nfnets import base
from nfnets.errors import UserError

_CHANNELS_SECOND = (0, 3, 1, 2)
_CHANNELS_LAST = (0, 2, 3, 1)
_ELEMENTWISE = {
  'add': 'Add',
  'erf': 'Erf',
  'logistic': 'Sigmoid',
  'mul': 'Mul',
  'sub': 'Sub',
  'tanh': 'Tanh',
}
# Operations on constants, as BatchNorm does with its averages.
_NUMPY = {'add': np.add, 'mul': np.multiply, 'rsqrt': lambda x: x**-0.5}


def _unknown(kind: str) -> UserError:
  return UserError(f'The network has {kind}, which no operator is known for.')


class Value(NamedTuple):
  """What a node gives.

  Attributes:
    name: in the graph.
    shape: in JAX; 1 for what a broadcast would repeat, as operators broadcast.
      The first axis may be the batch's, whose size is unknown.
    terms: more than 1 for a sum that is the mean of so many terms in the graph.
  """

  name: str
  shape: Sequence[Any]
  terms: int = 1


class Builder:
  """Collects nodes and constants."""

  def __init__(self, float16: bool = False):
    """Begin a graph.

    Args:
      float16: whether to compute in float16, all but means.
    """
    self.nodes: list[onnx.NodeProto] = []
    self.constants: dict[str, np.ndarray] = {}
    self.float16 = float16
    self._small: dict[Any, str] = {}

  def node(
    self, kind: str, inputs: Sequence[str], shape: Sequence[Any], **attributes
  ) -> Value:
    """Add a node; return its output, of that shape in JAX."""
    out = f'{kind.lower()}_{len(self.nodes) + 1}'
    self.nodes.append(helper.make_node(kind, inputs, [out], out, **attributes))
    return Value(out, shape)

  def constant(self, array: np.ndarray) -> str:
    """Add a constant as it is, but for its precision; return its name."""
    if array.dtype.kind == 'f':
      if self.float16:
        array = np.clip(array, -65504, 65504)
      array = array.astype(
        np.float16 if self.float16 else np.float32, copy=False
      )
    name = f'constant_{len(self.constants) + 1}'
    if array.size < 100:
      key = array.dtype.str, array.shape, array.tobytes()
      name = self._small.setdefault(key, name)
    self.constants[name] = array
    return name

  def name(self, x: Any) -> str:
    """Return the name of a value or a constant in the graph."""
    if isinstance(x, Value):
      if x.terms != 1:
        raise _unknown('reduce_sum')
      return x.name
    x = np.asarray(x)
    return self.constant(x.transpose(_CHANNELS_SECOND) if x.ndim == 4 else x)

  def cast(self, x: Value, kind: int) -> Value:
    """Return a value in another precision, where there is more than one."""
    return self.node('Cast', [x.name], x.shape, to=kind) if self.float16 else x

  def input(self, name: str, shape: Sequence[Any]) -> Value:
    """Return the input [B, H, W, C] as a value."""
    x = self.cast(Value(name, shape), onnx.TensorProto.FLOAT16)
    return self.node('Transpose', [x.name], shape, perm=_CHANNELS_SECOND)

  def output(self, x: Value, name: str) -> None:
    """Make a value an output of the graph."""
    old = self.name(x)
    if len(x.shape) == 4:
      x = self.node('Transpose', [old], x.shape, perm=_CHANNELS_LAST)
    old = self.cast(x, onnx.TensorProto.FLOAT).name
    for node in self.nodes:
      for names in (node.input, node.output):
        names[:] = [name if other == old else other for other in names]

  def run(self, jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    """Add what JAX has traced; return its outputs.

    Args:
      jaxpr: the result of `jax.make_jaxpr`.
      consts: its constants.
      *args: what its inputs are: `Value`s, and arrays for what is known.

    Raises:
      UserError: for a primitive that has no counterpart.
    """
    env: dict[Any, Any] = {}

    def read(var):
      return var.val if hasattr(var, 'val') else env[var]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
      outs = self._equation(eqn, [read(var) for var in eqn.invars])
      env.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]

  def _equation(self, eqn: Any, args: list[Any]) -> list[Any]:
    kind, params = eqn.primitive.name, eqn.params
    shape = eqn.outvars[0].aval.shape
    if params.get('name') == base.AVERAGE_POOL:
      return [self._average_pool(shape, *args)]
    if kind in ('jit', 'custom_jvp_call', 'custom_vjp_call'):
      inner = params.get('jaxpr') or params['call_jaxpr']
      return self.run(inner.jaxpr, inner.consts, *args)
    if not any(isinstance(x, Value) for x in args) and kind in _NUMPY:
      return [_NUMPY[kind](*map(np.asarray, args))]
    handler = getattr(self, f'_{kind}', None)
    if handler is not None:
      return [handler(shape, *args, **params)]
    if kind not in _ELEMENTWISE:
      raise _unknown(kind)
    return [self.node(_ELEMENTWISE[kind], map(self.name, args), shape)]

  def _add(self, shape, x, y, **_):
    x, y = (x, y) if isinstance(x, Value) else (y, x)
    last = self.nodes[-1]
    if (
      not isinstance(y, Value)
      and last.output[0] == x.name
      and last.op_type in ('Conv', 'Gemm')
      and np.size(y) == shape[-1]
    ):  # A bias. Nothing has used the sum without it.
      last.input.append(self.constant(np.reshape(y, -1)))
      return x
    return self.node('Add', [self.name(x), self.name(y)], shape)

  def _broadcast_in_dim(self, shape, x, /, broadcast_dimensions, **_):
    sizes = x.shape if isinstance(x, Value) else np.shape(x)
    target = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, sizes, strict=True):
      target[axis] = size
    if isinstance(x, Value):
      return x if len(sizes) == len(shape) else self._reshape(target, x)
    return np.reshape(x, target)

  def _reshape(self, shape, x, /, **_):
    """Of a value whose channels are its only axis but for the batch's."""
    sizes = [n if isinstance(n, int) else -1 for n in shape]
    if len(shape) == 4:
      sizes = [sizes[axis] for axis in _CHANNELS_SECOND]
    names = [self.name(x), self.constant(np.array(sizes, np.int64))]
    return self.node('Reshape', names, shape)

  def _max(self, shape, x, y, **_):
    x, y = (x, y) if isinstance(x, Value) else (y, x)
    if isinstance(y, Value) or np.any(y):
      raise _unknown('max')
    return self.node('Relu', [self.name(x)], shape)

  def _reduce_sum(self, shape, x, axes, **_):
    if len(x.shape) != 4 or tuple(axes) != (1, 2):
      raise _unknown('reduce_sum')
    inputs = [
      self.cast(x, onnx.TensorProto.FLOAT).name,
      self.constant(np.array([2, 3], np.int64)),
    ]
    mean = self.node('ReduceMean', inputs, shape, keepdims=0)
    mean = self.cast(mean, onnx.TensorProto.FLOAT16)
    return mean._replace(terms=math.prod(x.shape[1:3]))

  def _div(self, shape, x, y, **_):
    if isinstance(y, Value) or np.ndim(y) or float(y) != x.terms:
      raise _unknown('div')
    return Value(x.name, shape)

  def _dot_general(self, shape, x, y, dimension_numbers, **_):
    if isinstance(y, Value) or dimension_numbers != (((1,), (0,)), ((), ())):
      raise _unknown('dot_general')
    return self.node('Gemm', [self.name(x), self.name(y)], shape)

  def _conv_general_dilated(
    self, shape, x, kernel, dimension_numbers, window_strides, padding, **params
  ):
    lhs, rhs, out = dimension_numbers
    name, plain = self.name(x), tuple(range(len(lhs)))
    # Along the channels, there is a change of layout around it.
    in_place = len(lhs) == 4 and lhs == out == _CHANNELS_SECOND
    if not in_place and tuple(lhs) != plain:
      name = self.node('Transpose', [name], x.shape, perm=lhs).name
    kernel = np.transpose(kernel, rhs)
    conv = self.node(
      'Conv',
      [name, self.constant(kernel)],
      shape,
      dilations=params['rhs_dilation'],
      group=params['feature_group_count'],
      kernel_shape=kernel.shape[2:],
      pads=[low for low, _ in padding] + [high for _, high in padding],
      strides=window_strides,
    )
    if not in_place and tuple(out) != plain:
      perm = [int(axis) for axis in np.argsort(out)]
      conv = self.node('Transpose', [conv.name], shape, perm=perm)
    return conv

  def _reduce_window_max(
    self, shape, x, window_dimensions, window_strides, padding, **_
  ):
    before, after = zip(*padding[1:3], strict=True)
    return self.node(
      'MaxPool',
      [self.name(x)],
      shape,
      kernel_shape=window_dimensions[1:3],
      pads=[*before, *after],
      strides=window_strides[1:3],
    )

  def _average_pool(self, shape, x):
    """A mean over 2x2 pixels, of those that there are."""
    odd = [n % 2 for n in x.shape[1:3]]
    return self.node(
      'AveragePool',
      [self.name(x)],
      shape,
      count_include_pad=0,
      kernel_shape=[2, 2],
      pads=[0, 0, *odd],
      strides=[2, 2],
    )

  def _gather(self, shape, x, index, dimension_numbers, **_):
    # The only element of the last axis.
    axes = dimension_numbers.collapsed_slice_dims
    if len(x.shape) != 3 or axes != (2,) or x.shape[2] != 1:
      raise _unknown('gather')
    return self._reshape(shape, x)

  def _copy(self, shape, x, **_):
    return x
