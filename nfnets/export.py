"""Writes a network as an ONNX file, and checks it against JAX.

python -m nfnets.export --weights=F0_haiku.npz --output=f0.onnx

The model is recognized from its weights. The file holds the network with
standardized kernels, for images of one size and batches of any.
"""

import argparse
from collections.abc import Callable
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from nfnets import onnx_graph, predict, weights

# Of float32; where a graph is right, it is about 1e-6.
_TOLERANCE = 1e-3
_FLOAT16_TOLERANCE = 1e-2
_NUM_INPUTS = 10
_BATCH = 3

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
  parser = argparse.ArgumentParser(
    prog='python -m nfnets.export',
    description=_DESCRIPTION,
    epilog=_EPILOG,
    allow_abbrev=False,
  )
  predict.add_network_arguments(parser)
  parser.add_argument(
    '--output', required=True, metavar='FILE', help='the .onnx to write'
  )
  parser.add_argument(
    '--float16',
    action='store_true',
    help='compute in float16, but for means; input and output stay float32',
  )
  try:
    return _export(parser.parse_args(argv))
  except predict.CommandError as error:
    return predict.fail(error, error.status)
  except KeyboardInterrupt:
    return predict.fail('interrupted', 130)
  except OSError as error:
    return predict.fail(error, 1)


def _export(args: argparse.Namespace) -> int:
  _check_installed()
  _check_output(args.output)
  # Where float32 is float32, and the latencies are of the same machine.
  jax.config.update('jax_platforms', 'cpu')
  network = predict.open_network(args)
  model = network.model
  network = predict.Network(
    model, weights.fold_weights(network.params, model), network.state
  )
  _say(f'{model.name}, {model.test_size} px: converting')
  folder, name = os.path.split(args.output)
  with tempfile.TemporaryDirectory(dir=folder or '.', prefix='.export-') as tmp:
    path = os.path.join(tmp, name)
    try:
      operators = onnx_graph.write(network, path, args.float16)
    except onnx_graph.GraphError as error:
      raise predict.CommandError(error) from error
    size = sum(entry.stat().st_size for entry in os.scandir(tmp))
    _say(f'{size / 1e6:.1f} MB; comparing ONNX Runtime with JAX')
    results = compare(network, path)
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
        os.replace(os.path.join(tmp, file), os.path.join(folder, file))
  _say(
    f'largest difference: {results["relative_difference"]:.2g} of the norm, '
    f'{results["max_difference"]:.2g} absolute\n'
    f'one image: ONNX Runtime {results["onnxruntime_ms"]:.1f} ms, JAX '
    f'{results["jax_ms"]:.1f} ms'
  )
  if not agrees:
    raise predict.CommandError(
      f'ONNX Runtime and JAX differ by {results["relative_difference"]:.2g} of '
      f'the norm, more than {tolerance:g}; nothing is written.'
    )
  print(json.dumps(results), flush=True)
  return 0


def compare(network: predict.Network, path: str) -> dict[str, float]:
  """Runs ten random inputs, one by one, and a batch of some of them.

  Args:
    network: the network in JAX.
    path: the ONNX file.

  Returns:
    `relative_difference`, the largest norm of a difference between the outputs
    for one image, as a part of the norm of JAX's output; `max_difference`, the
    largest absolute one; `onnxruntime_ms` and `jax_ms`, the median times for
    one image. Infinite where ONNX Runtime gave no finite output.
  """
  import onnxruntime  # pylint: disable=g-import-not-at-top

  session = onnxruntime.InferenceSession(
    path, providers=['CPUExecutionProvider']
  )
  run_jax = network.logits if network.model.num_classes else network.embed
  runs: dict[str, Callable[[np.ndarray], Any]] = {
    'onnxruntime_ms': lambda x: session.run(None, {'images': x})[0],
    'jax_ms': lambda x: np.asarray(run_jax(x)),
  }
  size = network.model.test_size
  rng = np.random.default_rng(0)
  inputs = rng.standard_normal((_NUM_INPUTS, 1, size, size, 3), np.float32)
  outputs = {name: [] for name in runs}
  times = {name: [] for name in runs}
  for run in runs.values():
    run(inputs[0])  # Compiles.
  for x in inputs:
    for name, run in runs.items():
      start = time.perf_counter()
      outputs[name].append(run(x))
      times[name].append(1e3 * (time.perf_counter() - start))
  batch = runs['onnxruntime_ms'](np.concatenate(inputs[:_BATCH]))
  # In float64, where no norm overflows.
  actual = np.float64(np.concatenate([*outputs['onnxruntime_ms'], batch]))
  expected = np.float64(
    np.concatenate([*outputs['jax_ms'], *outputs['jax_ms'][:_BATCH]])
  )
  differences = actual - expected
  norms = np.linalg.norm(expected, axis=1)
  relative = np.linalg.norm(differences, axis=1) / np.maximum(norms, 1e-30)
  worst = float(np.max(relative)), float(np.max(np.abs(differences)))
  if not np.isfinite(worst).all():
    worst = float('inf'), float('inf')
  return {
    'relative_difference': worst[0],
    'max_difference': worst[1],
    **{name: round(statistics.median(ms), 3) for name, ms in times.items()},
  }


def _check_installed() -> None:
  missing = []
  for name in ('jax2onnx', 'onnx', 'onnxruntime'):
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as error:
      missing.append(error.name or name)
  if missing:
    raise predict.CommandError(
      'ONNX export needs packages that are not installed: '
      f'{", ".join(missing)}; pip install ".[onnx]" in the folder of this '
      'project.'
    )


def _check_output(path: str) -> None:
  """Raises CommandError unless the file can be written, as far as one sees."""
  folder = os.path.dirname(path) or '.'
  if not path.endswith('.onnx'):
    raise predict.CommandError(f'--output={path} does not end in .onnx.', 2)
  if not os.path.isdir(folder):
    raise predict.CommandError(f'--output={path}: there is no folder {folder}.')
  if os.path.isdir(path):
    raise predict.CommandError(f'--output={path} is a folder.')
  if not os.access(folder, os.W_OK):
    raise predict.CommandError(
      f'--output={path}: nothing can be written to the folder {folder}.'
    )


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
