"""Compares timm's normalizer-free networks here with the same ones in timm.

python benchmarks/compare_timm.py --timm_python=/path/to/python

--timm_python is the Python of an environment with timm and PyTorch. Both sides
get the same random weights and images. Prints relative L2 distances in float32
of the logits, the pooled features and the worst of the five feature maps. The
published networks, timm's `dm_nfnet_*`, run with timm's GELU and kernels (see
tests/timm_lib.py). The last line of standard output is JSON.

--golden writes the reference of the tests: keys and shapes of all state dicts;
training and test size, crop, and normalization of the red channel; every fifth
logit, every twelfth pooled feature, and every 32nd channel mean of the feature
maps.
"""

import contextlib
import fnmatch
import json
import lzma
import subprocess
import sys
import tempfile

import numpy as np
import timing

import nfnets
from nfnets.weights import timm as timm_weights

_OUTPUTS = ('logits', 'pool', 'features')
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
  """Return ||actual - expected|| / ||expected||."""
  actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
  if actual.shape != expected.shape:
    raise ValueError(f'{actual.shape} instead of {expected.shape}')
  return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _ours(name: str, shapes: dict[str, list[int]], size: int) -> dict:
  """Return the outputs of timm's network `name` in this project."""
  import reference_params
  import timm_lib

  state_dict = reference_params.reference_state_dict(shapes)
  params = timm_weights.from_timm(name, state_dict)
  kwargs, kernels = {}, contextlib.nullcontext()
  if name.startswith('dm_'):
    kwargs['activation'] = 'gelu_erf'
    kernels = timm_lib.kernels_as_in_timm()
  model = nfnets.create_model(timm_weights.NETWORKS[name], **kwargs)
  with kernels:
    return timm_lib.outputs(model, params, size, size)


def main() -> None:
  """Run the comparison."""
  args = timing.arguments(
    __doc__, timm_python=None, models='*', size=64, golden=None
  )
  names = fnmatch.filter(timm_weights.NETWORKS, args.models)
  if not (names and args.timm_python):
    sys.exit('--timm_python is missing, or --models matches no network.')
  distances, golden, shapes, settings = {}, {}, {}, {}
  for name in names:
    with tempfile.TemporaryDirectory() as folder:
      path = f'{folder}/outputs.npz'
      command = [args.timm_python, '-c', _TIMM, str(timing.ROOT / 'tests')]
      command += [name, str(args.size), path]
      subprocess.run(command, stdout=sys.stderr, check=True)
      theirs = dict(np.load(path))
    keys = theirs['keys'].tolist()
    shapes[name] = {
      key: theirs[f'shape{i}'].tolist() for i, key in enumerate(keys)
    }
    settings[name] = theirs['settings'].tolist()
    maps = [theirs[f'features{i}'] for i in range(5)]
    out = _ours(name, shapes[name], args.size)
    distances[name] = {
      'logits': _distance(out['logits'], theirs['logits']),
      'pool': _distance(out['pool'], theirs['pool']),
      'features': max(map(_distance, out['features'], maps)),
    }
    timing.table({name: distances[name]})
    golden[f'{name}/logits'] = theirs['logits'][:, ::5]
    golden[f'{name}/pool'] = theirs['pool'][:, ::12]
    means = [x.mean((0, 1, 2)) for x in maps]
    golden[f'{name}/features'] = np.concatenate(means)[::32]
  for key, value in (('shapes', shapes), ('settings', settings)):
    packed = lzma.compress(json.dumps(value).encode())
    golden[key] = np.frombuffer(packed, np.uint8)
  if args.golden:
    np.savez(args.golden, **golden)
  worst = {key: max(x[key] for x in distances.values()) for key in _OUTPUTS}
  timing.emit(size=args.size, worst=worst, networks=distances)


if __name__ == '__main__':
  main()
