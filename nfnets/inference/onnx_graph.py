"""A network as an ONNX graph, of operators that most runtimes know.

jax2onnx converts what JAX traces, and ONNX Runtime's basic optimizations, which
are for no hardware in particular, then move the layout from NHWC to NCHW once
for the whole network and merge biases into convolutions. docs/onnx.md lists
the operators and the documents that say who supports them.
"""

from collections.abc import Iterator
import contextlib
import json
import math
import os
import tempfile
from unittest import mock

import flax.linen
import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnx
import onnx_ir
from onnx_ir.passes import common
import onnxruntime
from onnxruntime.transformers import float16 as convert

from nfnets import base, conv
from nfnets.inference import networks

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
    'Gather',
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
# One protobuf message cannot hold 2 GB. The weights are in a second file then.
_MAX_BYTES = 1_800_000_000
_BINARY = ('Add', 'Div', 'Mul', 'Sub')


class GraphError(Exception):
  """The network cannot be exported; the message says why, in one line."""


def write(network: networks.Network, path: str, float16: bool) -> list[str]:
  """Writes a network to an ONNX file.

  The input is `images`, float32 [B, N, N, 3], where N is the model's test size;
  the output is `logits`, float32 [B, num_classes], or `embedding` where the
  model has no last layer.

  Args:
    network: a model with folded weights.
    path: where to; next to it there will be a second file, `{path}.data`, if
      the weights are too many for one.
    float16: whether to compute in float16, all but means over the image.

  Returns:
    The operators, sorted.

  Raises:
    GraphError: if it would have operators that are not in `OPERATORS`, or is
      not valid.
  """
  with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or '.') as folder:
    traced = os.path.join(folder, 'traced.onnx')
    model = _trace(network)
    _simplify(model)
    onnx_ir.save(model, traced, external_data='traced.data')
    optimized = os.path.join(folder, 'optimized.onnx')
    _optimize(traced, optimized)
    if float16:
      graph = convert.convert_float_to_float16(
        optimized, keep_io_types=True, op_block_list=['ReduceMean']
      )
      # The casts are at its end.
      model = onnx_ir.from_proto(graph)
      common.TopologicalSortPass()(model)
      graph = onnx_ir.to_proto(model)
    else:
      graph = onnx.load(optimized)
  _describe(graph, network, float16)
  operators = sorted({node.op_type for node in graph.graph.node})
  unknown = [name for name in operators if name not in OPERATORS]
  if unknown or any(node.domain for node in graph.graph.node):
    raise GraphError(
      f'{network.model.name} would have operators that not every runtime '
      f'knows: {", ".join(unknown)}.'
    )
  _save(graph, path)
  try:
    onnx.checker.check_model(path, full_check=True)
  except onnx.checker.ValidationError as error:
    raise GraphError(f'The graph is not valid ONNX: {error}') from error
  return operators


def _trace(network: networks.Network) -> onnx_ir.Model:
  """Returns what jax2onnx makes of the network."""
  model = network.model
  params, state = jax.device_get((network.params, network.state))
  key, name = (
    ('logits', 'logits') if model.num_classes else ('pool', 'embedding')
  )

  def forward(images):
    with _portable_forms():
      return model.apply(params, state, None, images, is_training=False)[0][key]

  size = model.test_size
  return jax2onnx.to_onnx(
    forward,
    [('B', size, size, 3)],
    model_name=model.name,
    opset=OPSET,
    input_names=['images'],
    output_names=[name],
    return_mode='ir',
  )


@contextlib.contextmanager
def _portable_forms() -> Iterator[None]:
  """Traces in the forms that runtimes recognize and have fast code for."""
  with (
    conv.lowering('plain'),
    mock.patch.dict(base.nonlinearities, gelu=_gelu),
    mock.patch.object(base, 'avg_pool_2x2', _avg_pool_2x2),
  ):
    yield


def _gelu(x: jax.Array) -> jax.Array:
  """`base`'s GELU, in a form that ONNX Runtime replaces by one operator.

  Where the square overflows, in float16 from 1200 on, tanh is 1 all the same.
  """
  z = (math.sqrt(2 / math.pi) * x) * (1 + (0.044715 * x) * x)
  return 0.5 * x * (1 + jnp.tanh(z)) * 1.7015043497085571


def _avg_pool_2x2(x: jax.Array) -> jax.Array:
  """`base.avg_pool_2x2`, by the function that becomes an AveragePool."""
  return flax.linen.avg_pool(
    x,
    window_shape=(2, 2),
    strides=(2, 2),
    padding='SAME' if x.shape[1] % 2 or x.shape[2] % 2 else 'VALID',
    count_include_pad=False,
  )


def _simplify(model: onnx_ir.Model) -> None:
  """Replaces what few runtimes know by the usual operators.

  The batch is the only size that is not known, so nothing needs to compute
  shapes while the network runs: a Reshape can leave the batch out, and an
  Expand in front of an operator that broadcasts is for nothing.

  Args:
    model: is changed.
  """
  for node in list(model.graph):
    out = node.outputs[0]
    if node.op_type == 'Expand':
      x = node.inputs[0]
      for user, i in out.uses():
        if x.shape == out.shape or (
          user.op_type in _BINARY
          and user.inputs[1 - i].shape == user.outputs[0].shape
        ):
          user.replace_input_with(i, x)
    elif node.op_type == 'Reshape' and node.inputs[1].const_value is None:
      shape = [n if isinstance(n, int) else -1 for n in out.shape]
      value = onnx_ir.Value(
        name=f'{out.name}_shape',
        const_value=onnx_ir.tensor(np.array(shape, np.int64)),
      )
      model.graph.register_initializer(value)
      node.replace_input_with(1, value)
    elif node.op_type == 'Max':
      numbers = [x for x in node.inputs if x.const_value is not None]
      if len(numbers) == 1 and not numbers[0].const_value.numpy().any():
        (x,) = (x for x in node.inputs if x is not numbers[0])
        node.op_type = 'Relu'
        node.replace_input_with(0, x)
        node.resize_inputs(1)
    elif node.op_type == 'MaxPool':
      _pool_two_dimensions(model.graph, node)
  common.RemoveUnusedNodesPass()(model)


def _pool_two_dimensions(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
  """Replaces a MaxPool over [1, 1, B, H, W, C] by one over [B, C, H, W]."""
  x = node.inputs[0].producer().inputs[0].producer().inputs[0]
  ((squeeze, _),) = node.outputs[0].uses()
  window = {
    name: node.attributes[name].as_ints()
    for name in ('kernel_shape', 'strides')
  }
  window = {name: value[1:3] for name, value in window.items()}
  pads = node.attributes['pads'].as_ints()
  to_nchw = onnx_ir.node('Transpose', [x], {'perm': [0, 3, 1, 2]})
  pool = onnx_ir.node(
    'MaxPool', to_nchw.outputs, {**window, 'pads': [*pads[1:3], *pads[5:7]]}
  )
  to_nhwc = onnx_ir.node('Transpose', pool.outputs, {'perm': [0, 2, 3, 1]})
  graph.insert_after(node, [to_nchw, pool, to_nhwc])
  squeeze.outputs[0].replace_all_uses_with(to_nhwc.outputs[0])


def _optimize(path: str, output: str) -> None:
  """Writes the model at `path` with ONNX Runtime's basic optimizations."""
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # Errors.
  level = onnxruntime.GraphOptimizationLevel
  options.graph_optimization_level = level.ORT_ENABLE_BASIC
  options.optimized_model_filepath = output
  options.add_session_config_entry(
    'session.optimized_model_external_initializers_file_name',
    f'{os.path.basename(output)}.data',
  )
  onnxruntime.InferenceSession(
    path, options, providers=['CPUExecutionProvider']
  )


def _describe(
  graph: onnx.ModelProto, network: networks.Network, float16: bool
) -> None:
  """Fills in what the file says about itself."""
  model = network.model
  del graph.opset_import[:]
  graph.opset_import.append(onnx.helper.make_opsetid('', OPSET))
  graph.ir_version = onnx.helper.find_min_ir_version_for(graph.opset_import)
  graph.producer_name, graph.producer_version = 'nfnets', ''
  graph.graph.name = model.name
  output = graph.graph.output[0].name
  graph.doc_string = (
    f'{model.name}. Input: images, float32 [B, {model.test_size}, '
    f'{model.test_size}, 3], RGB in 0-255 minus mean and divided by std, both '
    f'in the metadata. Output: {output}.'
  )
  props = {
    'model': model.name,
    'image_size': str(model.test_size),
    'num_classes': str(model.num_classes),
    'mean': json.dumps(np.asarray(model.entry.mean).tolist()),
    'std': json.dumps(np.asarray(model.entry.std).tolist()),
    'preprocessing': model.entry.eval_preproc,
    'precision': 'float16' if float16 else 'float32',
  }
  if model.class_names:
    props['class_names'] = json.dumps(model.class_names)
  onnx.helper.set_model_props(graph, props)


def _save(model: onnx.ModelProto, path: str) -> None:
  """Writes a model, in two files if it is large."""
  size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
  onnx.save_model(
    model,
    path,
    save_as_external_data=size > _MAX_BYTES,
    location=f'{os.path.basename(path)}.data',
  )
