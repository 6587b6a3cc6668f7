"""Writes a network as an ONNX file and compares ONNX Runtime with JAX.

python -m nfnets.export --weights=F0_haiku.npz --output=f0.onnx

The input `images` is float32 [B, N, N, 3], normalized. The output is `logits`,
float32 [B, classes], or `embedding` if the weights have no last layer. The
metadata include the model's name and the normalization. The comparison runs ten
random inputs on the CPU. The file is written only if ONNX's checker accepts it
and the relative difference from JAX in float32 is at most 0.001 (0.01 with
--float16). The last line of standard output is JSON. Messages go to standard
error. The exit status is 0 for success, 1 for a failure and 2 for a wrong
command.
"""

import os
import statistics
import sys
import tempfile
import time

import numpy as np

from nfnets import finite_json, paths
from nfnets.errors import UserError
from nfnets.inference import command_line, networks

# Relative difference. Correct float32 graphs have about 1e-6.
_TOLERANCE = 1e-3
_FLOAT16_TOLERANCE = 1e-2
_NUM_INPUTS = 10
_BATCH = 3


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Run the command; return its exit status."""
  parser = command_line.make_parser('export', __doc__)
  parser.add_argument(
    '--output', required=True, metavar='FILE', help='the .onnx to write'
  )
  parser.add_argument(
    '--float16',
    action='store_true',
    help='compute in float16, except means; input and output are float32',
  )
  args = parser.parse_args(argv)
  # An interrupt must not leave a partial file.
  command_line.let_interrupts_raise()
  command_line.check_installed('ONNX export', ('onnx', 'onnxruntime'), 'onnx')
  from onnx import checker

  from nfnets.inference import onnx_graph

  command_line.check_output(args.output, '.onnx')
  # Accelerators compute float32 with less precision.
  import jax

  jax.config.update('jax_platforms', 'cpu')
  network = command_line.open_network(args)
  _say(f'{network.name}, {network.image_size} px: converting')
  target = paths.path(args.output)
  # On the same disk, because a rename cannot cross disks.
  folder = None if paths.is_remote(args.output) else target.parent
  with tempfile.TemporaryDirectory(dir=folder, prefix='.export-') as tmp:
    path = os.path.join(tmp, target.name)
    operators = onnx_graph.write(network, path, args.float16)
    checker.check_model(path, full_check=True)
    size = sum(entry.stat().st_size for entry in os.scandir(tmp))
    _say(f'{size / 1e6:.1f} MB; comparing ONNX Runtime with JAX')
    results = compare(network, path)
    difference = results['relative_difference']
    _say(
      f'largest difference: {difference:.2g} of the norm, '
      f'{results["max_difference"]:.2g} absolute\n'
      f'one image: ONNX Runtime {results["onnxruntime_ms"]:.1f} ms, JAX '
      f'{results["jax_ms"]:.1f} ms'
    )
    tolerance = _FLOAT16_TOLERANCE if args.float16 else _TOLERANCE
    if difference > tolerance:
      raise UserError(
        f'ONNX Runtime and JAX differ by {difference:.2g} of the norm, more '
        f'than {tolerance:g}; nothing is written.'
      )
    # The weights first: a graph without weights would be broken.
    for file in sorted(os.listdir(tmp), key=lambda file: file == target.name):
      paths.put(os.path.join(tmp, file), target.with_name(file))
  return finite_json.print_results(
    {
      'output': args.output,
      'model': network.name,
      'image_size': network.image_size,
      'float16': args.float16,
      'opset': onnx_graph.OPSET,
      'operators': operators,
      **results,
      'megabytes': round(size / 1e6, 3),
    }
  )


def compare(network: networks.Network, path: str) -> dict[str, float]:
  """Run ten random inputs one by one, and three of them as a batch.

  Args:
    network: the network in JAX.
    path: the ONNX file.

  Returns:
    `relative_difference`: norm of the difference / norm of JAX's output, of the
    worst image. `max_difference`: the largest absolute difference. Both are
    infinite if ONNX Runtime's output is not finite. `onnxruntime_ms` and
    `jax_ms`: median times for one image.

  Raises:
    UserError: if JAX's output is not finite.
  """
  import onnxruntime

  session = onnxruntime.InferenceSession(
    path, providers=['CPUExecutionProvider']
  )
  runs = {
    'onnxruntime_ms': lambda x: session.run(None, {'images': x})[0],
    'jax_ms': network.logits if network.num_classes else network.embed,
  }
  size = network.image_size
  rng = np.random.default_rng(0)
  inputs = rng.standard_normal((_NUM_INPUTS, 1, size, size, 3), np.float32)
  outputs, times = {}, {}
  for name, run in runs.items():
    run(inputs[0])  # Compiles.
    outputs[name], taken = [], []
    for x in inputs:
      start = time.perf_counter()
      outputs[name].append(run(x))
      taken.append(1e3 * (time.perf_counter() - start))
    times[name] = round(statistics.median(taken), 3)
  batch = runs['onnxruntime_ms'](np.concatenate(inputs[:_BATCH]))
  # In float64, where no norm overflows.
  actual = np.float64(np.concatenate([*outputs['onnxruntime_ms'], batch]))
  expected = np.float64(np.concatenate(outputs['jax_ms']))
  expected = np.concatenate([expected, expected[:_BATCH]])
  if not np.isfinite(expected).all():
    raise UserError(
      "The network's output is not finite. Its weights may contain non-finite "
      'or very large numbers.'
    )
  differences = np.abs(actual - expected)
  differences[np.isnan(differences)] = np.inf
  norms = np.maximum(np.linalg.norm(expected, axis=1), 1e-30)
  relative = np.linalg.norm(differences, axis=1) / norms
  return {
    'relative_difference': float(np.max(relative)),
    'max_difference': float(np.max(differences)),
    **times,
  }


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
