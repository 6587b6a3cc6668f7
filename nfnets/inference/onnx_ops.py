"""What JAX has traced of a network, as nodes of ONNX.

Only what the networks of this project use is known. A value of four axes has
its channels second in the graph, [B, C, H, W], wherever it comes from, so there
is no change of layout but at the input and for outputs. What depends on weights
alone becomes a constant.
"""

import collections
from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import numpy as np
import onnx
from onnx import helper

from nfnets.inference import onnx_constants

# A function of the model of which the tracer is to see nothing but its name.
AVERAGE_POOL = 'nfnets_average_pool'
_CHANNELS_SECOND = (0, 3, 1, 2)
_CHANNELS_LAST = (0, 2, 3, 1)
_ELEMENTWISE = {
  'add': 'Add',
  'erf': 'Erf',
  'logistic': 'Sigmoid',
  'mul': 'Mul',
  'neg': 'Neg',
  'sub': 'Sub',
  'tanh': 'Tanh',
}
_NUMPY = {
  'abs': np.abs,
  'add': np.add,
  'div': np.divide,
  'gt': np.greater,
  'max': np.maximum,
  'mul': np.multiply,
  'neg': np.negative,
  'rsqrt': lambda x: 1 / np.sqrt(x),
  'select_n': lambda x, no, yes: np.where(x, yes, no),
  'sqrt': np.sqrt,
  'square': np.square,
  'sub': np.subtract,
}
_SAME = ('copy', 'copy_p', 'stop_gradient')


def _float16(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(np.clip(array, -65504, 65504), np.float16)


class UnknownError(Exception):
  """A primitive of JAX has no counterpart here; the message is its name."""


class Value:
  """What a node gives: a name, its shape in JAX, and where it is from.

  The first axis of the shape is the batch's, and unknown, where there is one.
  A shape has 1 for what a broadcast would repeat: the operators broadcast.
  """

  def __init__(self, name: str, shape: Sequence[Any]):
    self.name = name
    self.shape = tuple(shape)


class Sum(Value):
  """A sum that is to be divided by the number of its terms."""

  def __init__(self, x: Value, axes: tuple[int, ...], shape: Sequence[Any]):
    super().__init__('', shape)
    self.x = x
    self.axes = axes
    self.count = math.prod(x.shape[axis] for axis in axes)


class Builder:
  """Collects nodes and constants."""

  def __init__(self, float16: bool = False):
    """Begins a graph.

    Args:
      float16: whether to compute in float16, all but means.
    """
    self.nodes: list[onnx.NodeProto] = []
    self.constants: dict[str, onnx_constants.Known] = {}
    self.float16 = float16
    self._outputs: dict[str, str] = {}
    self._small: dict[Any, str] = {}
    self._count = 0

  def node(
    self, kind: str, inputs: Sequence[str], shape: Sequence[Any], **attributes
  ) -> Value:
    """Adds a node; returns its output, of that shape in JAX."""
    self._count += 1
    out = f'{kind.lower()}_{self._count}'
    self.nodes.append(helper.make_node(kind, inputs, [out], out, **attributes))
    return Value(out, shape)

  def constant(self, array: onnx_constants.Known) -> str:
    """Adds a constant as it is; returns its name."""
    form, dtype = np.ascontiguousarray, array.dtype
    if self.float16 and dtype == np.float32:
      form, dtype = _float16, np.float16
    shape = array.shape
    array = onnx_constants.apply(form, [array], dtype).reshape(shape)
    key = None
    if isinstance(array, np.ndarray) and array.size < 100:
      key = (array.dtype.str, array.shape, array.tobytes())
      if key in self._small:
        return self._small[key]
    self._count += 1
    name = f'constant_{self._count}'
    self.constants[name] = array
    if key:
      self._small[key] = name
    return name

  def name(self, x: Value | onnx_constants.Known) -> str:
    """Returns the name of a value in the graph."""
    if isinstance(x, Sum):
      raise UnknownError('reduce_sum')
    if isinstance(x, Value):
      return x.name
    x = onnx_constants.known(x)
    return self.constant(x.transpose(_CHANNELS_SECOND) if x.ndim == 4 else x)

  def input(self, name: str, shape: Sequence[Any]) -> Value:
    """Returns the input [B, H, W, C] as a value."""
    if self.float16:
      name = self.node('Cast', [name], shape, to=onnx.TensorProto.FLOAT16).name
    return self.node('Transpose', [name], shape, perm=_CHANNELS_SECOND)

  def output(self, x: Value, name: str) -> None:
    """Makes a value an output of the graph."""
    if len(x.shape) == 4:
      x = self.node('Transpose', [x.name], x.shape, perm=_CHANNELS_LAST)
    if self.float16:
      x = self.node('Cast', [x.name], x.shape, to=onnx.TensorProto.FLOAT)
    self._outputs[self.name(x)] = name

  def run(self, jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    """Adds what JAX has traced; returns its outputs.

    Args:
      jaxpr: of `jax.make_jaxpr`.
      consts: its constants.
      *args: what its inputs are: `Value`s, and arrays for what is known.

    Raises:
      UnknownError: for a primitive that has no counterpart.
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
    if kind == 'jit' and params['name'] == AVERAGE_POOL:
      return [self._average_pool(args[0], shape)]
    if kind in ('jit', 'custom_jvp_call', 'custom_vjp_call'):
      inner = params.get('jaxpr') or params['call_jaxpr']
      return self.run(inner.jaxpr, inner.consts, *args)
    if kind in _SAME:
      return args
    known = not any(isinstance(x, Value) for x in args)
    if known and kind in _NUMPY:
      dtype = eqn.outvars[0].aval.dtype
      return [onnx_constants.apply(_NUMPY[kind], args, dtype)]
    if kind in _ELEMENTWISE:
      names = [self.name(x) for x in args]
      return [self.node(_ELEMENTWISE[kind], names, shape)]
    handler: Callable[..., Any] | None = getattr(self, f'_{kind}', None)
    if handler is None:
      raise UnknownError(kind)
    return [handler(shape, *args, **params)]

  def _broadcast_in_dim(self, shape, x, /, broadcast_dimensions, **_):
    target = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x), strict=True):
      target[axis] = size
    if not isinstance(x, Value):
      return onnx_constants.known(x).reshape(target)
    return x if len(x.shape) == len(shape) else self._reshape(target, x)

  def _reshape(self, shape, x, /, **_):
    if not isinstance(x, Value):
      return onnx_constants.known(x).reshape(shape)
    if len(x.shape) == 4 and any(n != 1 for n in x.shape[1:3]):
      raise UnknownError('reshape')
    sizes = [n if isinstance(n, int) else -1 for n in shape]
    if len(shape) == 4:
      sizes = [sizes[axis] for axis in _CHANNELS_SECOND]
    names = [self.name(x), self.constant(np.array(sizes, np.int64))]
    return self.node('Reshape', names, shape)

  def _squeeze(self, shape, x, /, **_):
    return self._reshape(shape, x)

  def _transpose(self, shape, x, permutation):
    if isinstance(x, Value):
      raise UnknownError('transpose')
    return onnx_constants.known(x).transpose(permutation)

  def _integer_pow(self, shape, x, y):
    if not isinstance(x, Value):
      return onnx_constants.apply(lambda x: x**y, [x], x.dtype)
    if y != 2:
      raise UnknownError('integer_pow')
    return self.node('Mul', [self.name(x)] * 2, shape)

  def _square(self, shape, x):
    return self._integer_pow(shape, x, 2)

  def _max(self, shape, x, y):
    if isinstance(y, Value):
      x, y = y, x
    if isinstance(y, Value) or np.any(y):
      raise UnknownError('max')
    return self.node('Relu', [self.name(x)], shape)

  def _convert_element_type(self, shape, x, /, new_dtype, **_):
    if isinstance(x, Value):
      raise UnknownError('convert_element_type')
    return onnx_constants.apply(lambda x: x.astype(new_dtype), [x], new_dtype)

  def _erfc(self, shape, x):
    erf = self.node('Erf', [self.name(x)], shape)
    return self.node('Sub', [self.name(np.float32(1)), erf.name], shape)

  def _reduce_sum(self, shape, x, axes, **_):
    if not isinstance(x, Value):
      total = functools.partial(np.sum, axis=axes, dtype=np.float32)
      return onnx_constants.apply(total, [x], np.float32, shape)
    if len(x.shape) != 4 or tuple(axes) != (1, 2):
      raise UnknownError('reduce_sum')
    return Sum(x, tuple(axes), shape)

  def _div(self, shape, x, y):
    if isinstance(y, Value):
      raise UnknownError('div')
    if not isinstance(x, Sum):
      return self.node('Div', [self.name(x), self.name(y)], shape)
    if np.size(y) != 1 or float(np.ravel(y)[0]) != x.count:
      raise UnknownError('reduce_sum')
    name = x.x.name
    if self.float16:
      name = self.node('Cast', [name], x.x.shape, to=onnx.TensorProto.FLOAT)
      name = name.name
    axes = self.constant(np.array([2, 3], np.int64))
    mean = self.node('ReduceMean', [name, axes], shape, keepdims=0)
    if self.float16:
      return self.node('Cast', [mean.name], shape, to=onnx.TensorProto.FLOAT16)
    return mean

  def _dot_general(self, shape, x, y, dimension_numbers, **_):
    if isinstance(y, Value) or dimension_numbers != (((1,), (0,)), ((), ())):
      raise UnknownError('dot_general')
    return self.node('Gemm', [self.name(x), self.name(y)], shape)

  def _conv_general_dilated(
    self, shape, x, kernel, dimension_numbers, window_strides, padding, **params
  ):
    if isinstance(kernel, Value) or any(n != 1 for n in params['lhs_dilation']):
      raise UnknownError('conv_general_dilated')
    lhs, rhs, out = dimension_numbers
    four = len(x.shape) == 4
    if four and (lhs, out) != (_CHANNELS_SECOND, _CHANNELS_SECOND):
      raise UnknownError('conv_general_dilated')
    name = self.name(x)
    plain = tuple(range(len(lhs)))
    if not four and tuple(lhs) != plain:
      name = self.node('Transpose', [name], x.shape, perm=lhs).name
    kernel = onnx_constants.known(kernel).transpose(rhs)
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
    if not four and tuple(out) != plain:
      back = tuple(int(axis) for axis in np.argsort(out))
      conv = self.node('Transpose', [conv.name], shape, perm=back)
    return conv

  def _reduce_window_max(
    self, shape, x, window_dimensions, window_strides, padding, **_
  ):
    return self.node(
      'MaxPool',
      [self.name(x)],
      shape,
      kernel_shape=window_dimensions[1:3],
      pads=[low for low, _ in padding[1:3]]
      + [high for _, high in padding[1:3]],
      strides=window_strides[1:3],
    )

  def _average_pool(self, x, shape):
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
      raise UnknownError('gather')
    return self._reshape(shape, x)

  def finish(self) -> None:
    """Merges biases, names the outputs and drops what nothing uses."""
    makers = {node.output[0]: node for node in self.nodes}
    uses = collections.Counter(x for node in self.nodes for x in node.input)
    renamed = dict(self._outputs)
    kept = []
    for node in self.nodes:
      merged = node.op_type == 'Add' and (
        self._merge(*node.input, makers, uses)
        or self._merge(*reversed(node.input), makers, uses)
      )
      if merged:
        # The sum has the name of what it was added to, or that of an output.
        old, new = node.output[0], merged.output[0]
        if old in renamed:
          renamed[new] = renamed.pop(old)
        renamed[old] = new
      else:
        kept.append(node)
    for node in kept:
      for names in (node.input, node.output):
        for i, name in enumerate(names):
          while name in renamed:
            name = renamed[name]
          names[i] = name
    self.nodes = kept
    used = {name for node in kept for name in node.input}
    self.constants = {k: x for k, x in self.constants.items() if k in used}

  def _merge(
    self,
    x: str,
    bias: str,
    makers: dict[str, onnx.NodeProto],
    uses: dict[str, int],
  ) -> onnx.NodeProto | None:
    """Has what makes `x` add a constant to it; returns the node if it can."""
    maker = makers.get(x)
    if (
      maker is None
      or maker.op_type not in ('Conv', 'Gemm')
      or len(maker.input) > 2
      or uses[x] > 1
      or bias not in self.constants
    ):
      return None
    kernel = self.constants[maker.input[1]]
    width = kernel.shape[0 if maker.op_type == 'Conv' else 1]
    if self.constants[bias].size != width:
      return None
    bias = self.constants[bias]
    maker.input.append(self.constant(bias.reshape((bias.size,))))
    return maker
