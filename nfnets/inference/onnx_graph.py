"""A network as an ONNX graph, of operators that most runtimes know.

JAX traces the network, and `onnx_ops` writes down what it sees, with channels
second and with the kernels standardized. docs/onnx.md lists the operators and
the documents that say who supports them.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import math
import os
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from nfnets import base, conv
from nfnets.inference import onnx_constants, onnx_ops

# MIGraphX documents up to 19. Newer operators, such as Gelu, are out.
OPSET = 18
# Each documented for TensorRT, MIGraphX and OpenVINO: docs/onnx.md.
OPERATORS = frozenset(
  {
    'Add',
    'AveragePool',
    'Cast',
    'Conv',
    'Erf',
    'Gemm',
    'MaxPool',
    'Mul',
    'Neg',
    'ReduceMean',
    'Relu',
    'Reshape',
    'Sigmoid',
    'Sub',
    'Tanh',
    'Transpose',
  }
)
# What `Network.runner.run` calls an output, and the graph its parts.
NAMES = {
  'logits': ('logits',),
  'pool': ('embedding',),
  'features': tuple(f'stride_{2**i}' for i in range(1, 6)),
}
# One protobuf message cannot hold 2 GB. The weights are in a second file then.
_MAX_BYTES = 1_800_000_000
# Constants of fewer bytes are in the graph itself, where runtimes look at them.
_SMALL = 1024
# What a runtime maps into memory begins where a page does.
_PAGE = 4096


class GraphError(Exception):
  """The network cannot be exported; the message says why, in one line."""


def write(
  network: Any,
  path: str,
  float16: bool = False,
  outputs: Sequence[str] | None = None,
  separate: bool | None = None,
  shape: tuple[int, int] | None = None,
) -> list[str]:
  """Writes a network to an ONNX file.

  The input is `images`, float32 [B, N, N, 3], where N is the network's image
  size; the outputs are float32.

  Args:
    network: a `networks.Network`; its weights may be folded.
    path: where to; next to it there will be a second file, `{path}.data`, if
      the weights are too many for one.
    float16: whether to compute in float16, all but means over the image.
    outputs: keys of `NAMES`; `logits`, or `embedding` where the network has no
      last layer, if None.
    separate: whether to have a second file; if None, where there must be.
    shape: (H, W) of the images, if they are not of the network's size.

  Returns:
    The operators, sorted.

  Raises:
    GraphError: if it would have operators that are not in `OPERATORS`.
  """
  if outputs is None:
    outputs = ('logits',) if network.num_classes else ('pool',)
  h, w = shape or (network.image_size, network.image_size)
  builder, values = _build(network, float16, outputs, (h, w))
  operators = sorted({node.op_type for node in builder.nodes})
  unknown = [name for name in operators if name not in OPERATORS]
  if unknown:
    raise GraphError(
      f'{network.name} would have operators that not every runtime knows: '
      f'{", ".join(unknown)}.'
    )
  size = sum(array.nbytes for array in builder.constants.values())
  if separate is None:
    separate = size > _MAX_BYTES
  tensors = _write_constants(builder.constants, path, separate)
  graph = helper.make_graph(
    builder.nodes,
    network.name,
    [_information('images', ('B', h, w, 3))],
    [_information(name, value.shape) for name, value in values.items()],
    tensors,
  )
  model = helper.make_model(
    graph,
    producer_name='nfnets',
    opset_imports=[helper.make_opsetid('', OPSET)],
  )
  _describe(model, network, float16, list(values))
  onnx.save_model(model, path)
  return operators


def check(path: str) -> None:
  """Raises GraphError unless a file is valid ONNX."""
  try:
    onnx.checker.check_model(path, full_check=True)
  except onnx.checker.ValidationError as error:
    raise GraphError(f'The graph is not valid ONNX: {error}') from error


def _build(
  network: Any,
  float16: bool,
  outputs: Sequence[str],
  size: tuple[int, int],
) -> tuple[onnx_ops.Builder, dict[str, onnx_ops.Value]]:
  """Returns the nodes, and the outputs by name."""
  model, params, state = network.model, network.params, network.state

  def forward(params, state, images):
    out, _ = model.apply(params, state, None, images, is_training=False)
    return [out[key] for key in outputs]

  (batch,) = jax.export.symbolic_shape('B')
  shape = (batch, *size, 3)
  with _portable_forms():
    closed = jax.make_jaxpr(forward)(
      params, state, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
  builder = onnx_ops.Builder(float16)
  images = builder.input('images', shape)
  weights = map(np.asarray, jax.tree.leaves((params, state)))
  try:
    found = builder.run(closed.jaxpr, closed.consts, *weights, images)
    names = [name for key in outputs for name in NAMES[key]]
    values = dict(zip(names, found, strict=True))
    for name, value in values.items():
      builder.output(value, name)
  except onnx_ops.UnknownError as error:
    raise GraphError(
      f'{network.name} computes what no operator is known for: {error}.'
    ) from error
  builder.finish()
  return builder, values


def _information(name: str, shape: Sequence[Any]) -> onnx.ValueInfoProto:
  sizes = [n if isinstance(n, int) else 'B' for n in shape]
  return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)


def _write_constants(
  constants: Mapping[str, onnx_constants.Known], path: str, separate: bool
) -> list[onnx.TensorProto]:
  """Returns constants as tensors; writes the large ones to a second file."""
  computed = onnx_constants.compute([*constants.values()])
  arrays = zip(constants, computed, strict=True)
  if not separate:
    return [numpy_helper.from_array(x, name) for name, x in arrays]
  location = f'{os.path.basename(path)}.data'
  tensors = []
  with open(f'{path}.data', 'wb') as file:
    for name, array in arrays:
      if array.nbytes < _SMALL:
        tensors.append(numpy_helper.from_array(array, name))
        continue
      file.write(bytes(-file.tell() % _PAGE))
      kind = helper.np_dtype_to_tensor_dtype(array.dtype)
      tensor = onnx.TensorProto(
        name=name,
        dims=array.shape,
        data_type=kind,
        data_location=onnx.TensorProto.EXTERNAL,
      )
      where = ('location', location), ('offset', file.tell())
      for key, value in (*where, ('length', array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
      file.write(array.data)
      tensors.append(tensor)
  return tensors


@contextlib.contextmanager
def _portable_forms() -> Iterator[None]:
  """Traces in the forms that runtimes recognize and have fast code for."""
  with (
    conv.lowering('plain'),
    mock.patch.dict(base.nonlinearities, gelu=_gelu),
    mock.patch.object(base, 'avg_pool_2x2', _named_average_pool()),
  ):
    yield


def _gelu(x: jax.Array) -> jax.Array:
  """`base`'s GELU, in a form that ONNX Runtime replaces by one operator.

  Where the square overflows, in float16 from 1200 on, tanh is 1 all the same.
  """
  z = (math.sqrt(2 / math.pi) * x) * (1 + (0.044715 * x) * x)
  return 0.5 * x * (1 + jnp.tanh(z)) * 1.7015043497085571


def _named_average_pool():
  """Returns `base.avg_pool_2x2` under a name that `onnx_ops` knows."""
  average_pool = base.avg_pool_2x2

  def pool(x):
    return average_pool(x)

  pool.__name__ = onnx_ops.AVERAGE_POOL
  return jax.jit(pool)


def _describe(
  graph: onnx.ModelProto,
  network: Any,
  float16: bool,
  outputs: Sequence[str],
) -> None:
  """Fills in what the file says about itself."""
  graph.ir_version = helper.find_min_ir_version_for(graph.opset_import)
  size = network.image_size
  graph.doc_string = (
    f'{network.name}. Input: images, float32 [B, {size}, {size}, 3], RGB in '
    '0-255 minus mean and divided by std, both in the metadata. Output: '
    f'{", ".join(outputs)}.'
  )
  props = {
    'model': network.name,
    'image_size': str(size),
    'num_classes': str(network.num_classes),
    'mean': json.dumps(network.mean.tolist()),
    'std': json.dumps(network.std.tolist()),
    'preprocessing': network.preprocessing,
    'precision': 'float16' if float16 else 'float32',
  }
  if network.class_names:
    props['class_names'] = json.dumps(network.class_names)
  helper.set_model_props(graph, props)
