"""Compares the outputs of timm's normalizer-free networks, here and in timm.

python benchmarks/compare_timm.py --timm_python=/path/to/python

needs the Python of an environment that has timm and PyTorch. Every network gets
the same random weights and images there and here. Prints how far logits, pooled
features and the five feature maps are from timm's: relative L2 distances in
float32, for the maps the largest. The published networks, timm's `dm_nfnet_*`,
run with GELU and kernels as timm has them (see tests/timm_lib.py). The last
line of standard output is JSON.

--golden writes what the tests compare with: the keys and shapes of all state
dicts; the sizes of images for training and test, the part that is cropped, and
what the red channel is normalized by; every fifth of the logits, every twelfth
of the pooled features, and every 32nd of the means of the channels in the
feature maps, one after the other.
"""

import argparse
import contextlib
import fnmatch
import json
import lzma
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# For `reference_params` and `timm_lib`.
sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

import reference_params  # noqa: E402
import timm_lib  # noqa: E402

import nfnets  # noqa: E402
from nfnets.weights import timm as timm_weights  # noqa: E402

_TIMM = """
import sys
import numpy as np, timm, torch
tests, name, size, path = sys.argv[1:]
sys.path.insert(0, tests)
import reference_params
images = reference_params.reference_images(2, int(size), int(size))
images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
with torch.device('meta'):
  model = timm.create_model(name).eval()
  maps = timm.create_model(name, features_only=True).eval()
shapes = {key: list(x.shape) for key, x in model.state_dict().items()}
values = reference_params.reference_state_dict(shapes)
values = {key: torch.from_numpy(x) for key, x in values.items()}
model.load_state_dict(values, assign=True)
# The same parameters in the same order, but for the head.
pairs = zip(maps.state_dict(), model.state_dict().values())
maps.load_state_dict(dict(pairs), assign=True)
with torch.inference_mode():
  out = {'logits': model(images)}
  features = model.forward_features(images)
  out['pool'] = model.forward_head(features, pre_logits=True)
  for i, x in enumerate(maps(images)):
    out[f'features{i}'] = x.permute(0, 2, 3, 1)
for i, x in enumerate(shapes.values()):
  out[f'shape{i}'] = x
train, test = (
  timm.data.resolve_model_data_config(model, use_test_size=use_test)
  for use_test in (False, True)
)
sizes = [train['input_size'][1], test['input_size'][1]]
out['settings'] = [*sizes, test['crop_pct'], test['mean'][0], test['std'][0]]
np.savez(path, keys=list(shapes), **out)
"""


def _distance(actual, expected) -> float:
  """Returns ||actual - expected|| / ||expected||."""
  actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
  if actual.shape != expected.shape:
    raise ValueError(f'{actual.shape} instead of {expected.shape}')
  return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _shapes(theirs: dict[str, np.ndarray]) -> dict[str, list[int]]:
  return {
    key: theirs[f'shape{i}'].tolist()
    for i, key in enumerate(theirs['keys'].tolist())
  }


def _compare(name: str, theirs: dict[str, np.ndarray], size: int):
  """Returns {output: distance} of one network."""
  state_dict = reference_params.reference_state_dict(_shapes(theirs))
  params = timm_weights.from_timm(name, state_dict)
  is_published = name.startswith('dm_')
  kwargs = {'activation': 'gelu_erf'} if is_published else {}
  model = nfnets.create_model(timm_weights.NETWORKS[name], **kwargs)
  kernels = contextlib.nullcontext()
  if is_published:
    kernels = timm_lib.kernels_as_in_timm()
  with kernels:
    out = timm_lib.outputs(model, params, size, size)
  maps = [
    _distance(x, theirs[f'features{i}']) for i, x in enumerate(out['features'])
  ]
  return {
    'logits': _distance(out['logits'], theirs['logits']),
    'pool': _distance(out['pool'], theirs['pool']),
    'features': max(maps),
  }


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def main() -> None:
  """Runs the comparison."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--timm_python', required=True, help='a Python with timm and PyTorch'
  )
  parser.add_argument('--models', default='*', help="a pattern, as 'nf_*'")
  parser.add_argument('--size', type=int, default=64, help='pixels')
  parser.add_argument('--golden', help='a file to write')
  args = parser.parse_args()
  names = fnmatch.filter(timm_weights.NETWORKS, args.models)
  if not names:
    parser.error(f'no network is called {args.models}')

  distances, shapes, settings, golden = {}, {}, {}, {}
  _say(f'{"network":17}{"logits":>10}{"pool":>10}{"features":>10}')
  for name in names:
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'outputs.npz'
      command = [args.timm_python, '-c', _TIMM, str(_ROOT / 'tests')]
      command += [name, str(args.size), str(path)]
      subprocess.run(command, stdout=sys.stderr, check=True)
      with np.load(path) as arrays:
        theirs = dict(arrays)
    distances[name] = _compare(name, theirs, args.size)
    _say(f'{name:17}' + ''.join(f'{d:10.1e}' for d in distances[name].values()))
    shapes[name] = _shapes(theirs)
    settings[name] = theirs['settings'].tolist()
    maps = [theirs[f'features{i}'].mean((0, 1, 2)) for i in range(5)]
    golden[f'{name}/logits'] = theirs['logits'][:, ::5]
    golden[f'{name}/pool'] = theirs['pool'][:, ::12]
    golden[f'{name}/features'] = np.concatenate(maps)[::32]

  if args.golden:
    for key, value in (('shapes', shapes), ('settings', settings)):
      packed = lzma.compress(json.dumps(value).encode())
      golden[key] = np.frombuffer(packed, np.uint8)
    np.savez(args.golden, **golden)
  worst = {
    key: max(of[key] for of in distances.values())
    for key in ('logits', 'pool', 'features')
  }
  print(json.dumps({'size': args.size, 'worst': worst, 'networks': distances}))


if __name__ == '__main__':
  main()
