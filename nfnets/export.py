"""Writes a network as an ONNX file, and checks it against JAX.

python -m nfnets.export --weights=F0_haiku.npz --output=f0.onnx

The model is recognized from its weights. The file holds the network with
standardized kernels, for images of one size and batches of any.
"""

import argparse
import json
import os
import sys
import tempfile

import jax

from nfnets import paths, weights
from nfnets.inference import command_line, networks

# Of float32; where a graph is right, it is about 1e-6.
_TOLERANCE = 1e-3
_FLOAT16_TOLERANCE = 1e-2

_DESCRIPTION = """\
Writes a network as an ONNX file and compares it with JAX: ten random inputs go
through ONNX Runtime and through JAX, on the CPU.
"""
_EPILOG = f"""\
The input, images, is float32 [B, N, N, 3], normalized; the output is logits,
float32 [B, classes], or embedding where the weights have no last layer. The
file says the model's name, the normalization and more as its metadata. It is
written only if ONNX's checker accepts it and no output is further from JAX's
float32 than {_TOLERANCE:g} of its norm ({_FLOAT16_TOLERANCE:g} with --float16).
The last line of standard output is JSON; everything else goes to standard
error. The exit status is 0 if all went well, 1 for a failure and 2 for a wrong
command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('export', _DESCRIPTION, _EPILOG)
  parser.add_argument(
    '--output', required=True, metavar='FILE', help='the .onnx to write'
  )
  parser.add_argument(
    '--float16',
    action='store_true',
    help='compute in float16, but for means; input and output stay float32',
  )
  return command_line.run(_export, parser.parse_args(argv))


def _export(args: argparse.Namespace) -> int:
  # It leaves no half of a file.
  command_line.let_interrupts_raise()
  command_line.check_installed('ONNX export', ('onnx', 'onnxruntime'), 'onnx')
  from nfnets.inference import onnx_check, onnx_graph

  command_line.check_output(args.output, '.onnx')
  # Where float32 is float32, and the latencies are of the same machine.
  jax.config.update('jax_platforms', 'cpu')
  network = command_line.open_network(args)
  model = network.model
  folded = weights.fold_weights(network.params, model)
  network = networks.of(model, folded, network.state)
  _say(f'{model.name}, {model.test_size} px: converting')
  target = paths.path(args.output)
  name = target.name
  # On the same disk, because renaming works inside one only.
  folder = None if paths.is_remote(args.output) else target.parent
  with tempfile.TemporaryDirectory(dir=folder, prefix='.export-') as tmp:
    path = os.path.join(tmp, name)
    try:
      operators = onnx_graph.write(network, path, args.float16)
      onnx_graph.check(path)
    except onnx_graph.GraphError as error:
      raise command_line.CommandError(error) from error
    size = sum(entry.stat().st_size for entry in os.scandir(tmp))
    _say(f'{size / 1e6:.1f} MB; comparing ONNX Runtime with JAX')
    results = onnx_check.compare(network, path)
    results = {
      'output': args.output,
      'model': model.name,
      'image_size': model.test_size,
      'float16': args.float16,
      'opset': onnx_graph.OPSET,
      'operators': operators,
      **results,
      'megabytes': round(size / 1e6, 3),
    }
    tolerance = _FLOAT16_TOLERANCE if args.float16 else _TOLERANCE
    agrees = results['relative_difference'] <= tolerance  # False for NaN.
    if agrees:
      # The data first: a graph without them would be no network.
      for file in sorted(os.listdir(tmp), key=lambda file: file == name):
        paths.put(os.path.join(tmp, file), target.with_name(file))
  _say(
    f'largest difference: {results["relative_difference"]:.2g} of the norm, '
    f'{results["max_difference"]:.2g} absolute\n'
    f'one image: ONNX Runtime {results["onnxruntime_ms"]:.1f} ms, JAX '
    f'{results["jax_ms"]:.1f} ms'
  )
  if not agrees:
    raise command_line.CommandError(
      f'ONNX Runtime and JAX differ by {results["relative_difference"]:.2g} of '
      f'the norm, more than {tolerance:g}; nothing is written.'
    )
  print(json.dumps(results), flush=True)
  return 0


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
