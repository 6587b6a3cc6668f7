"""Times a forward pass of NFNet-F0 on each runtime, and in timm.

python benchmarks/inference.py [--timm_python=/path/to/python]

Prints the seconds of one batch on all cores: JAX with plain weights, with
folded weights, and with folded weights as constants of the program ('frozen',
`nfnets.weights.freeze`), and ONNX Runtime and OpenVINO, if installed.
--timm_python, the Python of an environment with timm and PyTorch, adds timm's
`dm_nfnet_f0` (eager, channels last). Each form has a process, and they take
turns. The last line of standard output is JSON.
"""

import functools
import importlib.util
import pathlib
import sys
import tempfile

import timing

_FORMS = ('jax', 'folded', 'frozen', 'onnxruntime', 'openvino')


def _serve(form: str, path: str) -> None:
  """Serve F0 in one form, such as openvino-bfloat16."""
  name, _, precision = form.partition('-')
  precision = precision or 'float32'
  if name == 'timm':
    return timing.serve_timm(precision)
  import numpy as np

  import nfnets
  from nfnets import weights

  runtime = name if importlib.util.find_spec(name) else 'jax'
  model, params, _ = nfnets.load(path, runtime=runtime, precision=precision)
  if name == 'folded':
    params = weights.fold_weights(params, model)
  logits = functools.partial(model.logits, params)
  if name == 'frozen':
    logits = weights.freeze(model, params)

  def prepare(_, batch, size):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    return lambda: np.asarray(logits(images))

  timing.serve(prepare)


def main() -> None:
  """Run the benchmark."""
  args = timing.arguments(
    *(__doc__,),
    **{'batches': '1,8', 'image_size': 256, 'repeats': 15},
    **{'timm_python': None, 'serve': None, 'weights': None},
  )
  if args.serve:
    return _serve(args.serve, args.weights)
  pythons = {
    form: sys.executable
    for form in (*_FORMS, 'openvino-bfloat16')
    if importlib.util.find_spec(form.partition('-')[0]) or form in _FORMS[:3]
  }
  if args.timm_python:
    pythons |= dict.fromkeys(('timm', 'timm-bfloat16'), args.timm_python)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'f0.safetensors'
    timing.save_random_network(path)
    found = timing.take_turns(
      {
        form: [python, __file__, f'--serve={form}', f'--weights={path}']
        for form, python in pythons.items()
      },
      [f'infer {batch} {args.image_size}' for batch in args.batches.split(',')],
      args.repeats,
    )
  timing.emit(seconds=found)


if __name__ == '__main__':
  main()
