"""A network as an ONNX graph, of operators that most runtimes know.

The kernels are standardized, JAX traces the network, and `onnx_ops` writes down
what it sees, with channels second. docs/inference.md lists the operators.
"""

from collections.abc import Mapping, Sequence
from concurrent import futures
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from nfnets import conv
from nfnets.errors import UserError
from nfnets.inference import onnx_ops
from nfnets.weights import folding

# MIGraphX documents up to 19. Newer operators, such as Gelu, are out.
OPSET = 18
# Each documented for TensorRT, MIGraphX and OpenVINO: docs/inference.md.
OPERATORS = frozenset(
  {
    *('Add', 'AveragePool', 'Cast', 'Conv', 'Erf', 'Gemm', 'MaxPool', 'Mul'),
    *('ReduceMean', 'Relu', 'Reshape', 'Sigmoid', 'Sub', 'Tanh', 'Transpose'),
  }
)
# The names in a graph of a network's outputs.
NAMES = {
  'logits': ('logits',),
  'pool': ('embedding',),
  'features': tuple(f'stride_{2**i}' for i in range(1, 6)),
}
# One protobuf message cannot hold 2 GB. The weights are in a second file then.
_MAX_BYTES = 1_800_000_000
# Constants of fewer bytes are in the graph itself, where runtimes look at them.
_SMALL = 1024
# Runtimes map weights into memory, so they are aligned to pages.
_PAGE = 4096


def write(
  network: Any,
  path: str,
  float16: bool = False,
  outputs: Sequence[str] | None = None,
  separate: bool | None = None,
  shape: tuple[int, int] | None = None,
) -> list[str]:
  """Write a network to an ONNX file.

  The input is `images`, float32 [B, N, N, 3], where N is the network's image
  size; the outputs are float32.

  Args:
    network: a `networks.Network`.
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
    UserError: if it would have operators that are not in `OPERATORS`.
  """
  if outputs is None:
    outputs = ('logits',) if network.num_classes else ('pool',)
  model, state = network.model, network.state
  params = folding.fold_weights(network.params, model)
  (batch,) = jax.export.symbolic_shape('B')
  shape = (batch, *(shape or (network.image_size, network.image_size)), 3)

  def forward(params, state, images):
    out, _ = model.apply(params, state, None, images, is_training=False)
    return [out[key] for key in outputs]

  with conv.lowering('portable'):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    closed = jax.make_jaxpr(forward)(params, state, images)
  builder = onnx_ops.Builder(float16)
  images = builder.input('images', shape)
  weights = map(np.asarray, jax.tree.leaves((params, state)))
  found = builder.run(closed.jaxpr, closed.consts, *weights, images)
  names = [name for key in outputs for name in NAMES[key]]
  values = {'images': images, **dict(zip(names, found, strict=True))}
  for name in names:
    builder.output(values[name], name)
  operators = {node.op_type for node in builder.nodes}
  if unknown := operators - OPERATORS:
    raise UserError(
      f'{network.name} would have operators that not every runtime knows: '
      f'{", ".join(sorted(unknown))}.'
    )
  if separate is None:
    size = sum(array.nbytes for array in builder.constants.values())
    separate = size > _MAX_BYTES
  tensors = _write_constants(builder.constants, path, separate)
  information = [
    helper.make_tensor_value_info(
      name,
      onnx.TensorProto.FLOAT,
      [n if isinstance(n, int) else 'B' for n in value.shape],
    )
    for name, value in values.items()
  ]
  graph = helper.make_graph(
    builder.nodes, network.name, information[:1], information[1:], tensors
  )
  ids = [helper.make_opsetid('', OPSET)]
  onnx_model = helper.make_model(
    graph,
    producer_name='nfnets',
    opset_imports=ids,
    ir_version=helper.find_min_ir_version_for(ids),
    doc_string=f'{network.name}. Input: images, float32 '
    f'[{", ".join(map(str, shape))}], RGB in 0-255 minus mean and divided by '
    f'std, both in the metadata. Output: {", ".join(names)}.',
  )
  facts = {
    'precision': 'float16' if float16 else 'float32',
    **network.facts(),
  }
  helper.set_model_props(onnx_model, facts)
  onnx.save_model(onnx_model, path)
  return sorted(operators)


def _write_constants(
  constants: Mapping[str, np.ndarray], path: str, separate: bool
) -> list[onnx.TensorProto]:
  """Return constants as tensors; write the large ones to a second file."""
  if not separate:
    return [numpy_helper.from_array(x, name) for name, x in constants.items()]
  location = f'{os.path.basename(path)}.data'
  tensors = []
  with (
    open(f'{path}.data', 'wb') as file,
    # The next ones are laid out while one is written.
    futures.ThreadPoolExecutor(os.cpu_count()) as pool,
  ):
    arrays = pool.map(np.ascontiguousarray, constants.values())
    for name, array in zip(constants, arrays, strict=True):
      if array.nbytes < _SMALL:
        array = array.reshape(constants[name].shape)
        tensors.append(numpy_helper.from_array(array, name))
        continue
      file.write(bytes(-file.tell() % _PAGE))
      tensor = onnx.TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=onnx.TensorProto.EXTERNAL,
      )
      where = ('location', location), ('offset', file.tell())
      for key, value in (*where, ('length', array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
      file.write(array.data)
      tensors.append(tensor)
  return tensors
